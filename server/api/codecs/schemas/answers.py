"""What a twin answers: responses, gradients and attention, with the model that computed them and what was assumed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from server.api.codecs.schemas.fields import ClosedModel, Plane, Row, State, Units

__all__ = [
    "AttentionReply",
    "Derivatives",
    "GradientReply",
    "ModelInfo",
    "MousePrediction",
    "Note",
    "PredictMiceReply",
    "PredictReply",
]


class ModelInfo(ClosedModel):
    name: str = Field(description="the bundle's name")
    version: str = Field(description="of the model; 1 unless the bundle lies in a folder of versions")
    hash: str = Field(description="SHA-256 over the bundle's manifest, which holds that of every file")
    members: int
    provider: str = Field(description="what ran the cores")
    precision: str = Field(description="of the cores' arithmetic: fp32, fp16 or bf16")
    simulated: bool = Field(description="True: trained on simulated recordings")
    notice: str | None


class _Reply(ClosedModel):
    request_id: str
    model: ModelInfo


class Note(ClosedModel):
    """What a reader of the responses should know about the inputs."""

    code: Literal["outside_recording", "standardized_inputs"] = Field(
        description="outside_recording: an input lies outside of what the training trials held, where the twin was "
        "never fitted; standardized_inputs: this mouse takes standardised inputs"
    )
    input: str | None = Field(description="the field that it is about")
    message: str


class _Noted(ClosedModel):
    mouse: str
    state: State = Field(description="what filled in the behaviour and the pupil centre that were left out")
    assumed: list[str] = Field(description="what was filled in, changed or ignored, in words")
    notes: list[Note]


class _Responses(_Noted):
    neuron_ids: list[int]
    responses: list[list[float]] = Field(description="(B, n), in the order of neuron_ids")


class MousePrediction(_Responses):
    spread: list[list[float]] | None = Field(default=None, description="(B, n), only if asked for")


class PredictReply(MousePrediction, _Reply):
    units: Units


class PredictMiceReply(_Reply):
    """The reply where several mice were asked: all by one bundle."""

    units: Units
    mice: list[MousePrediction] = Field(description="in the order that they were asked")


class Derivatives(ClosedModel):
    image: list[list[Plane]] = Field(description="(B, C, H, W), per unit of the recording")
    behavior: list[Row] = Field(description="(B, K), in the order of behavior_channels")
    pupil_center: list[Row] = Field(description="(B, 2)")


class GradientReply(_Responses, _Reply):
    units: Units
    behavior_channels: list[str] = Field(description="the mouse's, as listed by GET /mice/{mouse}")
    gradient: Derivatives = Field(description="of the sum over neurons of weight times response, for each image")


class AttentionReply(_Noted, _Reply):
    attention: list[list[Plane]] = Field(
        description="(B, M, h, w) in [0, 1]: the attention rollout of each member, at the size of the core's image"
    )
