"""Descriptions of mice and of their neurons."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.api.codecs.schemas.answers import ModelInfo
from server.api.codecs.schemas.fields import ClosedModel
from server.bundle.manifest import BehaviorState, Channel, Crop

__all__ = [
    "Distilled",
    "MiceReply",
    "MouseDetail",
    "MouseSummary",
    "NeuronsReply",
]


class _Described(ClosedModel):
    mouse: str
    data_key: str | None = Field(description="animal-session-scan")
    n_neurons: int
    image_shape: tuple[int, int, int] = Field(description="(C, H, W)")
    simulated: bool
    standardized_inputs: bool = Field(description="True: no statistics are known, inputs must be standardised already")
    uses: list[str] = Field(description="the inputs that change the responses")


class MouseSummary(_Described):
    model: str = Field(description="the bundle's name")


class MiceReply(ClosedModel):
    mice: list[MouseSummary]


class Distilled(ClosedModel):
    """The teacher that this twin learned from, and how far it answers like it for one mouse."""

    teacher: list[str] = Field(description="SHA-256 of the weights of each of the teacher's members")
    speedup: float = Field(description="the teacher's operations of one image, divided by this twin's")
    agreement: dict[str, float] = Field(description="over the neurons, on images that the twin did not learn from")


class MouseDetail(_Described):
    model: ModelInfo
    image_channels: list[Channel]
    behavior: list[Channel]
    pupil_center: list[Channel]
    states: list[BehaviorState] = Field(description="behavioural states that `state` may name, beside median and mean")
    crop: Crop | None = Field(description="the part of the image that the core sees; null where it is not known")
    scores: dict[str, float]
    distilled: Distilled | None = Field(description="of a student of another twin; null for others")
    members: int
    licence: str
    citation: str


class NeuronsReply(ClosedModel):
    mouse: str
    model: str = Field(description="the bundle's name")
    hash: str = Field(description="the bundle's, as in its predictions")
    total: int = Field(description="neurons that match, before limit and offset")
    neuron_ids: list[int]
    coordinates_um: list[tuple[float, float, float] | None]
    readout_position_px: list[Annotated[list[float], Field(min_length=2, max_length=2)]] | None = Field(
        default=None,
        description="where each neuron's readout looks, x and y in pixels of the mouse's images (the middle of the top "
        "left pixel is 0, 0), at the training medians of behaviour and gaze; it can lie outside of the image; null "
        "where the bundle does not say",
    )
    response_std: list[float | None]
    scores: dict[str, list[float | None]]
