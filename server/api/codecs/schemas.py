"""What travels over HTTP, as types: they become the OpenAPI document, and say which fields a request may have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, Strict

from server.bundle.manifest import BehaviorState, Channel, Crop
from server.inference.noise import NoiseKind

__all__ = [
    "API_VERSION",
    "AttentionForm",
    "AttentionReply",
    "AttentionRequest",
    "Derivatives",
    "ErrorBody",
    "ErrorReply",
    "GradientForm",
    "GradientReply",
    "GradientRequest",
    "ImageFile",
    "InferReply",
    "InferRequest",
    "MiceReply",
    "ModelInfo",
    "ModelMetadata",
    "MouseDetail",
    "MousePrediction",
    "MouseSummary",
    "NeuronsReply",
    "NoiseRequest",
    "Note",
    "PredictForm",
    "PredictMiceReply",
    "PredictReply",
    "PredictRequest",
    "ProtocolError",
    "RequestedOutput",
    "Resize",
    "SensoriumBehavior",
    "State",
    "Tensor",
    "TensorMetadata",
    "Units",
]

API_VERSION = "1.0.0"

Units = Literal["standardized", "raw"]
Resize = Literal["fit", "fill", "crop"]
State = Literal["median", "mean", "rest", "running"]

Row = list[float]
Plane = list[Row]
PerImage = Annotated[float | list[float] | None, SkipValidation]
Behavior = Annotated[dict[str, float | list[float]] | None, SkipValidation]
Pairs = Annotated[list[float] | list[list[float]] | None, SkipValidation]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class _Request(_Closed):
    """Checked as it is documented, by `validation.validated`. Fields that hold arrays have a reader of their own."""

    model_config = ConfigDict(strict=True, frozen=True)  # pydantic copies a default that is not frozen for each request


class ImageFile(_Request):
    base64: str = Field(description="the bytes of a PNG, JPEG or .npy file", json_schema_extra={"format": "byte"})


class _OneMouse(_Request):
    mouse: str = Field(description="as listed by GET /mice", examples=["A"])


class _Mice(_Request):
    mouse: str | list[str] = Field(
        description='as listed by GET /mice; or a list of them, or "*" for all of a bundle, all shown the same images: '
        "those whose recordings standardise it alike share a pass of the core",
        examples=["A"],
    )


class _Filled(_Request):
    state: State = Field(
        default="median",
        description="what fills in behaviour values and the pupil centre that are left out: the median or mean of the "
        "training trials, or the medians of those at rest or running, as listed by GET /mice/{mouse}",
    )
    strict: bool = Field(
        default=False, description="refuse inputs outside of what was recorded, instead of adding a note to the reply"
    )


class SensoriumBehavior(_Request):
    """The channels of Sensorium 2022, as fields of their own."""

    pupil_dilation: PerImage = Field(default=None, description="eye-camera px; one for all images, or one each")
    pupil_dilation_derivative: PerImage = Field(default=None, description="eye-camera px/s")
    running_speed: PerImage = Field(default=None, description="cm/s")


class _Shown(_Filled, SensoriumBehavior):
    behavior: Behavior = Field(
        default=None,
        description="any behaviour channels of the mouse, as listed by GET /mice/{mouse}, by name: one value for all "
        "images, or one each",
        examples=[{"running_speed": 3}],
    )
    resize: Resize | None = Field(
        default=None,
        description="how an image of another size is brought to the mouse's: `fit` pads with the mean intensity, "
        "`fill` cuts what overflows, `crop` cuts the centre unscaled. Without it such an image is refused.",
    )
    model: str | None = Field(
        default=None, description="a bundle's name, where several hold this mouse; NAME@VERSION for an older version"
    )


class _Neurons(_Request):
    neuron_ids: list[int] | None = Field(
        default=None,
        min_length=1,
        description="unit ids as listed by GET /mice/{mouse}/neurons; the reply keeps their order",
    )
    units: Units = Field(default="standardized", description="raw: standardized times the neuron's response std")


class _Spread(_Request):
    spread: bool = Field(default=False, description="also return the std over the ensemble's members")


class _Weights(_Request):
    weights: Annotated[list[float] | list[Row], SkipValidation] = Field(
        description="(n,) for all images, or (B, n): how much each neuron counts, in the order of neuron_ids"
    )


class _InJson(_Request):
    image: Annotated[ImageFile | Plane | list[Plane] | list[list[Plane]], SkipValidation] = Field(
        description="(H, W) for a mouse of one channel, (C, H, W) or (B, C, H, W), in the recording's own units"
    )
    pupil_center: Pairs = Field(
        default=None, description="[x, y] in eye-camera px; one pair for all images, or one each"
    )


class _AsForm(_Request):
    image: list[bytes] = Field(
        description="one or more files: PNG, JPEG, or .npy of shape (H, W), (C, H, W) or (B, C, H, W)",
        json_schema_extra={"items": {"type": "string", "format": "binary"}},
    )
    pupil_center: Pairs = Field(default=None, description="[x, y], or the next two fields")
    pupil_center_x: PerImage = Field(default=None, description="eye-camera px")
    pupil_center_y: PerImage = Field(default=None, description="eye-camera px")


class PredictRequest(_InJson, _Spread, _Neurons, _Shown, _Mice):
    """A question in JSON. What is left out of behaviour and gaze is filled in by `state`, and the reply says so."""


class PredictForm(_AsForm, _Spread, _Neurons, _Shown, _Mice):
    """The same question as a form; lists are JSON text, such as `[1, 2]`."""


class NoiseRequest(_Filled, _OneMouse):
    """Responses to noise, weighted by it and summed. `server/inference/noise.py` defines image i of a seed."""

    model: str | None = Field(default=None, description="the bundle's name, where several hold this mouse")
    noise: NoiseKind = Field(
        default="white",
        description="white; antithetic: z and -z in turn; orthogonal: whole blocks of h w + 1 images cancel what "
        "elements have in common by chance; balanced: both, in blocks of 2 (h w + 1)",
    )
    seed: int = Field(ge=0, le=2**64 - 1, description="of the noise")
    first_image: int = Field(
        default=0, ge=0, le=2**63 - 1, description="sums over other images of the same seed add up"
    )
    n_images: int = Field(ge=1, le=1_000_000, description="how many")
    grid: Annotated[tuple[int, int], Strict(False)] = Field(
        description="[rows, columns] of the noise, each element a square of whole pixels"
    )
    luminance: float = Field(ge=-1e9, le=1e9, description="mean of the noise, in the recording's own units")
    contrast: float = Field(ge=0, le=1e9, description="std of the noise, in the recording's own units")
    neuron_ids: list[int] | None = Field(default=None, min_length=1, description="the maps keep their order")
    pupil_dilation: float | None = Field(default=None, description="eye-camera px")
    pupil_dilation_derivative: float | None = Field(default=None, description="eye-camera px/s")
    running_speed: float | None = Field(default=None, description="cm/s")
    behavior: dict[str, float] | None = Field(
        default=None, description="any behaviour channels of the mouse, as listed by GET /mice/{mouse}, by name"
    )
    pupil_center: list[float] | None = Field(default=None, description="[x, y] in eye-camera px")


class GradientRequest(_InJson, _Weights, _Neurons, _Shown, _OneMouse):
    """How the weighted sum of responses changes with the image, the behaviour and the pupil centre."""


class GradientForm(_AsForm, _Weights, _Neurons, _Shown, _OneMouse):
    """The same question as a form; lists are JSON text, such as `[1, 2]`."""


class AttentionRequest(_InJson, _Shown, _OneMouse):
    """Where the twin's core looks."""


class AttentionForm(_AsForm, _Shown, _OneMouse):
    """The same question as a form; lists are JSON text, such as `[1, 2]`."""


class ModelInfo(_Closed):
    name: str = Field(description="the bundle's name")
    version: str = Field(description="of the model; 1 unless the bundle lies in a folder of versions")
    hash: str = Field(description="SHA-256 over the bundle's manifest, which holds that of every file")
    members: int
    provider: str = Field(description="what ran the cores")
    precision: str = Field(description="of the cores' arithmetic: fp32, fp16 or bf16")
    simulated: bool = Field(description="True: trained on simulated recordings")
    notice: str | None


class _Reply(_Closed):
    request_id: str
    model: ModelInfo


class Note(_Closed):
    """What a reader of the responses should know about the inputs."""

    code: Literal["outside_recording", "standardized_inputs"] = Field(
        description="outside_recording: an input lies outside of what the training trials held, where the twin was "
        "never fitted; standardized_inputs: this mouse takes standardised inputs"
    )
    input: str | None = Field(description="the field that it is about")
    message: str


class _Noted(_Closed):
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


class Derivatives(_Closed):
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


class _Described(_Closed):
    mouse: str
    data_key: str | None = Field(description="animal-session-scan")
    n_neurons: int
    image_shape: tuple[int, int, int] = Field(description="(C, H, W)")
    simulated: bool
    standardized_inputs: bool = Field(description="True: no statistics are known, inputs must be standardised already")
    uses: list[str] = Field(description="the inputs that change the responses")


class MouseSummary(_Described):
    model: str = Field(description="the bundle's name")


class MiceReply(_Closed):
    mice: list[MouseSummary]


class Distilled(_Closed):
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


class NeuronsReply(_Closed):
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


class ErrorBody(_Closed):
    code: str = Field(examples=["invalid_input"])
    message: str
    got: Any = None
    expected: Any = None
    hint: str | None = None


class ErrorReply(_Closed):
    error: ErrorBody
    request_id: str


# The Open Inference Protocol v2


class InputParameters(_Request):
    binary_data_size: int | None = Field(
        default=None, description="bytes of this tensor, where it follows the JSON; such tensors keep their order"
    )


class InputTensor(_Request):
    name: Literal["image", "behavior", "pupil_center", "neuron_ids"]
    datatype: Literal["FP32", "INT64"]
    shape: list[Annotated[int, Field(ge=1, lt=2**31)]] = Field(max_length=8)
    parameters: InputParameters = InputParameters()
    data: Annotated[list[Any] | None, SkipValidation] = Field(
        default=None, description="flat, in row-major order, or nested like the shape"
    )


class OutputParameters(_Request):
    binary_data: bool | None = Field(default=None, description="whether this one comes in binary")


class RequestedOutput(_Request):
    name: Literal["responses", "spread"]
    parameters: OutputParameters = OutputParameters()


class InferParameters(_Filled):
    timeout: int = Field(default=0, ge=0, lt=2**63, description="microseconds; 0: the server's own limit")
    priority: int = Field(
        default=0,
        ge=0,
        le=2**64 - 1,
        description="1: interactive; more: bulk, answered after interactive requests; 0: as V1T-Priority says",
    )
    units: Units = "standardized"
    binary_data_output: bool = Field(default=False, description="whether outputs come in binary unless they say")


class InferRequest(_Request):
    """image FP32 (B, C, H, W); if given, behavior FP32 (B, K), pupil_center FP32 (B, 2), neuron_ids INT64 (n)."""

    id: str | None = None
    parameters: InferParameters = InferParameters()
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[RequestedOutput] | None = Field(default=None, description="empty: all")


class Tensor(_Closed):
    name: str
    datatype: Literal["FP32"]
    shape: list[int]
    parameters: dict[str, int] = Field(
        default={}, description="binary_data_size: of this tensor, where it follows the JSON; they keep their order"
    )
    data: list[float] | None = Field(default=None, description="flat, in row-major order")


class InferReply(_Closed):
    id: str | None = None
    model_name: str
    model_version: str
    parameters: dict[str, str | int | bool] = Field(description="whose answer it is, and what was assumed")
    outputs: list[Tensor]


class TensorMetadata(_Closed):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any size")
    parameters: dict[str, bool | str] = Field(
        default={}, description="optional: whether it can be left out; channels: name and unit of each column"
    )


class ModelMetadata(_Closed):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str | int | bool]


class ServedBundle(_Closed):
    name: str
    version: str
    hash: str = Field(description="SHA-256 over the bundle's manifest")
    in_memory: bool = Field(description="False: loaded on the next request")


class ReloadReply(_Closed):
    loaded: list[ServedBundle]
    kept: list[ServedBundle]
    removed: list[ServedBundle]


class ProtocolError(_Closed):
    error: str
