"""The arguments of the client's methods: once as keyword arguments, once as a request with its defaults.

The methods of `Client` document what they mean.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from v1t_client._answers.mice import SENSORIUM_BEHAVIOR
from v1t_client._arrays import as_array
from v1t_client._errors import InvalidArgument
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
    "channel_arguments",
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
    behavior: Mapping[str, npt.ArrayLike] | None
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
    behavior: Mapping[str, npt.ArrayLike] | None = None
    pupil_center: npt.ArrayLike | None = None
    resize: Resize | None = None
    model: str | None = None
    state: State | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        self._sort_behavior()
        for name in (*SENSORIUM_BEHAVIOR, "pupil_center", "weights", "neuron_ids"):
            value = getattr(self, name, None)
            if value is not None:
                object.__setattr__(self, name, as_array(value, name))

    def _sort_behavior(self) -> None:
        """Leaves in `behavior` only the channels without an argument of their own: older servers know the others."""
        if self.behavior is None:
            return
        if not isinstance(self.behavior, Mapping) or not all(isinstance(name, str) for name in self.behavior):
            raise InvalidArgument(
                "behavior is not a mapping",
                got=repr(self.behavior)[:60],
                expected="channels and their values, such as {'whisking': 0.3}",
            )
        if twice := [name for name in SENSORIUM_BEHAVIOR if name in self.behavior and getattr(self, name) is not None]:
            raise InvalidArgument(f"{twice[0]} is given twice", got=f"{twice[0]} and behavior", expected="one of them")
        given = {name: value for name, value in self.behavior.items() if value is not None}
        arguments = {"behavior": None, **channel_arguments(given)}
        if arguments["behavior"] is not None:
            arguments["behavior"] = {name: as_array(value, name) for name, value in arguments["behavior"].items()}
        for name, value in arguments.items():
            object.__setattr__(self, name, value)


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


def channel_arguments(channels: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `predict` for these behaviour channels: their own where they have one, and `behavior` for others."""
    others = {name: value for name, value in sorted(channels.items()) if name not in SENSORIUM_BEHAVIOR}
    own = {name: value for name, value in channels.items() if name in SENSORIUM_BEHAVIOR}
    return own | ({"behavior": others} if others else {})


def per_image(request: PredictRequest) -> dict[str, npt.NDArray[Any]]:
    """The behaviour and gaze that hold one value per image rather than one for all images."""
    values = {name: np.asarray(getattr(request, name)) for name in (*SENSORIUM_BEHAVIOR, "pupil_center")}
    values |= {name: np.asarray(value) for name, value in (request.behavior or {}).items()}
    return {name: value for name, value in values.items() if value.ndim > (name == "pupil_center")}


def part_of(request: PredictRequest, image: Image, rows: slice) -> PredictRequest:
    """The same request for some of its images: `image` holds those of `rows`."""
    parts: dict[str, Any] = {name: value[rows] for name, value in per_image(request).items()}
    if request.behavior is not None:
        parts["behavior"] = {name: parts.pop(name, value) for name, value in request.behavior.items()}
    return replace(request, image=image, **parts)
