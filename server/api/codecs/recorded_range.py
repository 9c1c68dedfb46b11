"""Whether inputs lie within what the training trials of a mouse held.

A twin interpolates between the inputs that it was fitted to, and no response outside of them was ever compared with a
recorded one. The bound is therefore the recorded range itself:

- a behaviour value and the pupil centre: the smallest and the largest value of the training trials, and a tenth of
  their std beyond, so that a mouse that stands still (0 cm/s) is not outside of a recording whose slowest trial had
  0.01 cm/s;
- an image, in each channel: the smallest and the largest training pixel; the smallest and the largest mean of a
  training image; the smallest and the largest contrast (std over the pixels) of one.

Where a bundle lacks one of these, it is not checked. Nothing is known about the recording of a mouse that takes
standardised inputs: there an image or a pupil centre of more than 10 standard deviations counts as outside, and a
behaviour value of more than 50 (it is divided by its std, but not centred).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from server.api.codecs.schemas import Note
from server.bundle.manifest import Channel, MouseRecord
from server.errors import OutsideRecording

__all__ = ["ImageRange", "Outside", "check_values", "refuse", "standardized_note"]

_ROUNDING = 1e-5  # of the larger bound: the recorded range and the request are float32
_MARGIN = 0.1  # of the std of a behaviour channel, beyond its range
_STANDARDIZED, _STANDARDIZED_BEHAVIOR = 10.0, 50.0  # bounds of inputs that are standardised

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Outside:
    """An input outside of what was recorded.

    Attributes:
        input: the request's field.
        got, expected: values and recorded ranges, in words.
        which: for how many of the images, such as "3 of 8 images"; empty where there is one.
        remark: what explains it, where that was checked.
    """

    input: str
    got: str
    expected: str
    which: str = ""
    remark: str = ""

    def note(self) -> Note:
        which = f"{self.which}: " if self.which else ""
        remark = f"; {self.remark}" if self.remark else ""
        message = f"{which}{self.input} is outside of what was recorded: {self.got}; recorded: {self.expected}{remark}"
        return Note(code="outside_recording", input=self.input, message=message)


def refuse(outside: Outside, mouse_id: str) -> OutsideRecording:
    """The error of a strict request."""
    which = f" ({outside.which})" if outside.which else ""
    remark = f"{outside.remark[0].upper()}{outside.remark[1:]}. " if outside.remark else ""
    return OutsideRecording(
        f"{outside.input} is outside of what mouse {mouse_id!r} was recorded with{which}",
        got=outside.got,
        expected=outside.expected,
        hint=f"{remark}Leave strict out to have it answered with a note; GET /mice/{mouse_id} has the ranges.",
    )


def standardized_note(record: MouseRecord) -> list[Note]:
    """The note of every reply of a mouse that takes standardised inputs."""
    if not record.standardized_inputs:
        return []
    message = (
        f"mouse {record.mouse_id} takes standardised inputs: images and pupil centres in standard deviations from the "
        "mean, behaviour divided by its std. The bundle has no statistics to check them by"
    )
    return [Note(code="standardized_inputs", input=None, message=message)]


def check_values(name: str, values: np.ndarray, channels: list[Channel], record: MouseRecord) -> list[Outside]:
    """The behaviour values (B,) or pupil centres (B, 2) of a request; at most one finding.

    Args:
        name: of the field.
        channels: one for each column.
    """
    outside = np.zeros(len(values), dtype=bool)
    got, expected = [], []
    for channel, column in zip(channels, values.reshape(len(values), -1).T, strict=True):  # (B,)
        bounds = _of_channel(name, channel, record)
        if bounds is None or not (beyond := _beyond(column.astype(np.float64), bounds)).any():
            continue
        outside |= beyond
        axis = f"{channel.name[-1]} " if len(channels) > 1 else ""
        got.append(axis + _text(column[beyond][0]))
        expected.append(f"{axis}{_range_text(_recorded(channel, bounds))} {channel.unit}")
    if not got:
        return []
    return [Outside(name, ", ".join(got), ", ".join(expected), _count(int(outside.sum()), len(values)))]


def _of_channel(name: str, channel: Channel, record: MouseRecord) -> Bounds | None:
    if record.standardized_inputs:
        bound = _STANDARDIZED if name in ("image", "pupil_center") else _STANDARDIZED_BEHAVIOR
        return -bound, bound
    if channel.min is None or channel.max is None:
        return None
    margin = 0.0 if name == "image" else _MARGIN * (channel.std or 0.0)
    return channel.min - margin, channel.max + margin


def _recorded(channel: Channel, bounds: Bounds) -> Bounds:
    """The recorded range itself, where there is one."""
    return bounds if channel.min is None or channel.max is None else (channel.min, channel.max)


@dataclass
class ImageRange:
    """Checks images, a few at a time; memory does not grow with their number."""

    record: MouseRecord
    n_images: int = 0
    n_outside: int = 0
    _worst: dict[str, tuple[float, str, str]] = field(default_factory=dict)  # test -> excess, value, recorded range
    _extent: Bounds = (np.inf, -np.inf)  # of the pixels of images that are outside

    def add(self, images: np.ndarray) -> None:
        """Checks images (B, C, H, W)."""
        tests = self._tests()
        if tests:
            pixels = images.reshape(*images.shape[:2], -1)  # (B, C, H W)
            smallest, largest = (reduce(pixels, axis=2).astype(np.float64) for reduce in (np.min, np.max))  # (B, C)
            mean = contrast = smallest
            if any(test in tests for test in ("mean", "contrast")):
                mean, contrast = _moments(pixels)
            outside = np.zeros(len(images), dtype=bool)
            for test, channels in tests.items():
                values = {"darkest pixel": smallest, "brightest pixel": largest, "mean": mean, "contrast": contrast}
                for c, bounds in channels:
                    outside |= self._compare(test, values[test][:, c], bounds, c)
            if outside.any():
                low, high = self._extent
                self._extent = min(low, float(smallest[outside].min())), max(high, float(largest[outside].max()))
            self.n_outside += int(outside.sum())
        self.n_images += len(images)

    def _tests(self) -> dict[str, list[tuple[int, Bounds]]]:
        """Each test with the channels that it applies to, and their bounds."""
        tests: dict[str, list[tuple[int, Bounds]]] = {}
        for c, channel in enumerate(self.record.image_channels):
            bounds = {"mean": channel.image_mean, "contrast": channel.image_contrast}
            bounds["darkest pixel"] = bounds["brightest pixel"] = _of_channel("image", channel, self.record)
            for test, limits in bounds.items():
                if limits is not None:
                    tests.setdefault(test, []).append((c, limits))
        return tests

    def _compare(self, test: str, values: np.ndarray, bounds: Bounds, c: int) -> np.ndarray:
        """Which images are outside; remembers the value that is furthest."""
        beyond = _beyond(values, bounds)
        if beyond.any():
            excess = np.maximum(bounds[0] - values, values - bounds[1])
            furthest = int(excess.argmax())
            channel = f" of {self.record.image_channels[c].name}" if len(self.record.image_channels) > 1 else ""
            if excess[furthest] > self._worst.get(test, (0.0,))[0]:
                what = f"{test}{channel}"
                self._worst[test] = (
                    float(excess[furthest]),
                    f"{what} {_text(values[furthest])}",
                    f"{what} {_range_text(bounds)}",
                )
        return beyond

    def found(self) -> list[Outside]:
        """At most one finding about all images."""
        if not self.n_outside:
            return []
        got, expected = (", ".join(texts) for texts in zip(*(worst[1:] for worst in self._worst.values()), strict=True))
        return [Outside("image", got, expected, _count(self.n_outside, self.n_images), self._remark())]

    def _remark(self) -> str:
        low, high = self._extent
        grey = [channel for channel in self.record.image_channels if channel.max is not None and channel.max > 1]
        if self.record.standardized_inputs or not grey:
            return ""
        if low >= 0 and high <= 1:
            return "all of these pixels lie in 0 to 1, and grey levels are 0 to 255"
        return ""


def _moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std over the last axis of (B, C, P), float64.

    From sums in float32, which take a tenth of the time; in float64 where these overflow or cancel.
    """
    mean, contrast = (np.empty(pixels.shape[:2]) for _ in range(2))
    P = pixels.shape[-1]
    ones = np.ones(P, dtype=np.float32)
    for index in np.ndindex(*pixels.shape[:2]):
        plane = pixels[index]
        with np.errstate(over="ignore", invalid="ignore"):
            mean[index] = np.dot(plane, ones) / P
            square = float(np.dot(plane, plane)) / P
            variance = square - mean[index] ** 2
        if not np.isfinite(variance) or variance < 1e-3 * square:
            wide = plane.astype(np.float64)
            mean[index], variance = wide.mean(), wide.var()
        contrast[index] = np.sqrt(variance)
    return mean, contrast


def _beyond(values: np.ndarray, bounds: Bounds) -> Any:
    low, high = bounds
    rounding = _ROUNDING * max(abs(low), abs(high))
    return (values < low - rounding) | (values > high + rounding)


def _count(n: int, total: int) -> str:
    return f"{n} of {total} images" if total > 1 else ""


def _text(value: float) -> str:
    return f"{value:.4g}"


def _range_text(bounds: Bounds) -> str:
    return f"{bounds[0]:.4g} to {bounds[1]:.4g}"
