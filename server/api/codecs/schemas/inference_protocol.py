"""Requests, replies and metadata of the Open Inference Protocol v2."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SkipValidation

from server.api.codecs.schemas.fields import ClosedModel, Filled, RequestModel, Units

__all__ = [
    "InferParameters",
    "InferReply",
    "InferRequest",
    "InputParameters",
    "InputTensor",
    "ModelMetadata",
    "OutputParameters",
    "RequestedOutput",
    "Tensor",
    "TensorMetadata",
]


class InputParameters(RequestModel):
    binary_data_size: int | None = Field(
        default=None, description="bytes of this tensor, where it follows the JSON; such tensors keep their order"
    )


class InputTensor(RequestModel):
    name: Literal["image", "behavior", "pupil_center", "neuron_ids"]
    datatype: Literal["FP32", "INT64"]
    shape: list[Annotated[int, Field(ge=1, lt=2**31)]] = Field(max_length=8)
    parameters: InputParameters = InputParameters()
    data: Annotated[list[Any] | None, SkipValidation] = Field(
        default=None, description="flat, in row-major order, or nested like the shape"
    )


class OutputParameters(RequestModel):
    binary_data: bool | None = Field(default=None, description="whether this one comes in binary")


class RequestedOutput(RequestModel):
    name: Literal["responses", "spread"]
    parameters: OutputParameters = OutputParameters()


class InferParameters(Filled):
    timeout: int = Field(default=0, ge=0, lt=2**63, description="microseconds; 0: the server's own limit")
    priority: int = Field(
        default=0,
        ge=0,
        le=2**64 - 1,
        description="1: interactive; more: bulk, answered after interactive requests; 0: as V1T-Priority says",
    )
    units: Units = "standardized"
    binary_data_output: bool = Field(default=False, description="whether outputs come in binary unless they say")


class InferRequest(RequestModel):
    """image FP32 (B, C, H, W); if given, behavior FP32 (B, K), pupil_center FP32 (B, 2), neuron_ids INT64 (n)."""

    id: str | None = None
    parameters: InferParameters = InferParameters()
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[RequestedOutput] | None = Field(default=None, description="empty: all")


class Tensor(ClosedModel):
    name: str
    datatype: Literal["FP32"]
    shape: list[int]
    parameters: dict[str, int] = Field(
        default={}, description="binary_data_size: of this tensor, where it follows the JSON; they keep their order"
    )
    data: list[float] | None = Field(default=None, description="flat, in row-major order")


class InferReply(ClosedModel):
    id: str | None = None
    model_name: str
    model_version: str
    parameters: dict[str, str | int | bool] = Field(description="whose answer it is, and what was assumed")
    outputs: list[Tensor]


class TensorMetadata(ClosedModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any size")
    parameters: dict[str, bool | str] = Field(
        default={}, description="optional: whether it can be left out; channels: name and unit of each column"
    )


class ModelMetadata(ClosedModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str | int | bool]
