"""What a twin can be asked: predictions, gradients, attention and responses to noise, in JSON or as a form."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SkipValidation, Strict

from server.api.codecs.schemas.fields import Behavior, Filled, Pairs, PerImage, Plane, RequestModel, Resize, Row, Units
from server.inference.noise import NoiseKind

__all__ = [
    "AttentionForm",
    "AttentionRequest",
    "GradientForm",
    "GradientRequest",
    "ImageFile",
    "NoiseRequest",
    "PredictForm",
    "PredictRequest",
    "SensoriumBehavior",
]


class ImageFile(RequestModel):
    base64: str = Field(description="the bytes of a PNG, JPEG or .npy file", json_schema_extra={"format": "byte"})


class _OneMouse(RequestModel):
    mouse: str = Field(description="as listed by GET /mice", examples=["A"])


class _Mice(RequestModel):
    mouse: str | list[str] = Field(
        description='as listed by GET /mice; or a list of them, or "*" for all of a bundle, all shown the same images: '
        "those whose recordings standardise it alike share a pass of the core",
        examples=["A"],
    )


class SensoriumBehavior(RequestModel):
    """The channels of Sensorium 2022, as fields of their own."""

    pupil_dilation: PerImage = Field(default=None, description="eye-camera px; one for all images, or one each")
    pupil_dilation_derivative: PerImage = Field(default=None, description="eye-camera px/s")
    running_speed: PerImage = Field(default=None, description="cm/s")


class _Shown(Filled, SensoriumBehavior):
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


class _Neurons(RequestModel):
    neuron_ids: list[int] | None = Field(
        default=None,
        min_length=1,
        description="unit ids as listed by GET /mice/{mouse}/neurons; the reply keeps their order",
    )
    units: Units = Field(default="standardized", description="raw: standardized times the neuron's response std")


class _Spread(RequestModel):
    spread: bool = Field(default=False, description="also return the std over the ensemble's members")


class _Weights(RequestModel):
    weights: Annotated[list[float] | list[Row], SkipValidation] = Field(
        description="(n,) for all images, or (B, n): how much each neuron counts, in the order of neuron_ids"
    )


class _InJson(RequestModel):
    image: Annotated[ImageFile | Plane | list[Plane] | list[list[Plane]], SkipValidation] = Field(
        description="(H, W) for a mouse of one channel, (C, H, W) or (B, C, H, W), in the recording's own units"
    )
    pupil_center: Pairs = Field(
        default=None, description="[x, y] in eye-camera px; one pair for all images, or one each"
    )


class _AsForm(RequestModel):
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


class NoiseRequest(Filled, _OneMouse):
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
