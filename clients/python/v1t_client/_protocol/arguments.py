"""The arguments of the client's methods: once as keyword arguments, once as a request with its defaults.

The methods of `Client` document what they mean.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from v1t_client._answers.gradient import BEHAVIOR_NAMES
from v1t_client._arrays import as_array
from v1t_client._images import Image

__all__ = [
    "ChunkOptions",
    "GradientOptions",
    "GradientRequest",
    "ImageOptions",
    "ImageRequest",
    "ManyOptions",
    "NeuronFilters",
    "PredictOptions",
    "PredictRequest",
    "Resize",
    "State",
    "StreamOptions",
    "Units",
    "part_of",
    "per_image",
]

Units = Literal["standardized", "raw"]
Resize = Literal["fit", "fill", "crop"]
State = Literal["median", "mean", "rest", "running"]


class ImageOptions(TypedDict, total=False):
    """Keyword arguments of every method that takes an image; all that `Client.attention` takes."""

    pupil_dilation: npt.ArrayLike | None
    pupil_dilation_derivative: npt.ArrayLike | None
    running_speed: npt.ArrayLike | None
    pupil_center: npt.ArrayLike | None
    resize: Resize | None
    model: str | None
    state: State | None
    strict: bool


class GradientOptions(ImageOptions, total=False):
    """Keyword arguments of `Client.gradient` beside `weights`."""

    neuron_ids: Sequence[int] | npt.ArrayLike | None
    units: Units


class PredictOptions(GradientOptions, total=False):
    """Keyword arguments of `Client.predict` and `predict_mice`."""

    spread: bool


class ChunkOptions(PredictOptions, total=False):
    """Keyword arguments of both methods for large sets of images."""

    chunk: int
    in_flight: int


class StreamOptions(ChunkOptions, total=False):
    """Keyword arguments of `Client.predict_stream`."""

    first: int


class ManyOptions(ChunkOptions, total=False):
    """Keyword arguments of `Client.predict_many`."""

    output: str | os.PathLike[str] | None
    force: bool
    progress: bool | None


class NeuronFilters(TypedDict, total=False):
    """Keyword arguments of `Client.neurons`."""

    model: str | None
    x_min: float | None
    x_max: float | None
    y_min: float | None
    y_max: float | None
    z_min: float | None
    z_max: float | None
    score: str | None
    score_min: float | None
    limit: int | None
    offset: int | None


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """What a mouse is shown and what it does, as the caller gave it. The keyword arguments are `ImageOptions`."""

    mouse: str
    image: Image
    pupil_dilation: npt.ArrayLike | None = None
    pupil_dilation_derivative: npt.ArrayLike | None = None
    running_speed: npt.ArrayLike | None = None
    pupil_center: npt.ArrayLike | None = None
    resize: Resize | None = None
    model: str | None = None
    state: State | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        for name in (*BEHAVIOR_NAMES, "pupil_center", "weights", "neuron_ids"):
            value = getattr(self, name, None)
            if value is not None:
                object.__setattr__(self, name, as_array(value, name))


@dataclass(frozen=True, kw_only=True)
class PredictRequest(ImageRequest):
    """The arguments of one prediction."""

    neuron_ids: Sequence[int] | npt.ArrayLike | None = None
    units: Units = "standardized"
    spread: bool = False


@dataclass(frozen=True, kw_only=True)
class GradientRequest(ImageRequest):
    """The arguments of one gradient."""

    weights: npt.ArrayLike
    neuron_ids: Sequence[int] | npt.ArrayLike | None = None
    units: Units = "standardized"


def per_image(request: PredictRequest) -> dict[str, npt.NDArray[Any]]:
    """The arguments that hold one value per image rather than one for all images."""
    values = {name: np.asarray(getattr(request, name)) for name in (*BEHAVIOR_NAMES, "pupil_center")}
    return {name: value for name, value in values.items() if value.ndim > (name == "pupil_center")}


def part_of(request: PredictRequest, image: Image, rows: slice) -> PredictRequest:
    """The same request for some of its images: `image` holds those of `rows`."""
    parts: dict[str, Any] = {name: value[rows] for name, value in per_image(request).items()}
    return replace(request, image=image, **parts)
