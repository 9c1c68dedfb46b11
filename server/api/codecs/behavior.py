"""What the mouse does: behaviour values and pupil centre of a request, and what fills in those that are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from server.api.codecs.parsing.arrays import as_float32, is_number, shape_of
from server.api.codecs.recorded_range import Outside, check_values
from server.api.codecs.schemas import State
from server.bundle.manifest import BehaviorState, Channel, MouseRecord, channels_text
from server.errors import InvalidInput, brief

__all__ = ["BehaviorReader"]


@dataclass
class BehaviorReader:
    """Reads the behaviour and the pupil centre of one request for one mouse.

    Attributes:
        asked: the state that fills in what is left out.
        state: the one that did: "mean" where the median is not known.
        assumed: gains what was filled in or ignored.
        outside: gains the values that are outside of what was recorded.
    """

    record: MouseRecord
    n_images: int
    asked: State
    assumed: list[str]
    outside: list[Outside]

    def __post_init__(self) -> None:
        self.state = self.asked
        self._named = _named_state(self.record, self.asked)

    def behavior(self, given: dict[str, Any]) -> np.ndarray:
        """(B, K) float32.

        Args:
            given: channel -> a number, a list of one per image, or None.
        """
        channels = self.record.behavior
        if unknown := [name for name in given if name not in {channel.name for channel in channels}]:
            raise InvalidInput(
                f"mouse {self.record.mouse_id!r} has no behaviour channel {brief(unknown[0])}",
                got=", ".join(map(brief, unknown)),
                expected=channels_text(channels),
                hint=f"GET /mice/{self.record.mouse_id} lists them under behavior.",
            )
        columns = []
        for i, channel in enumerate(channels):
            name = channel.name
            if (value := given.get(name)) is None:
                in_state = self._named.behavior[i : i + 1] if self._named else []
                filled = self._fill_in(name, [channel], in_state, "behavior")
                columns.append(np.full(self.n_images, filled[0], dtype=np.float32))
                continue
            column = _per_image(value, name, self.n_images)
            columns.append(column)
            self._check(name, column, [channel], "behavior")
        return np.stack(columns, axis=1)  # (B, K)

    def pupil_center(self, value: Any) -> np.ndarray:
        """(B, 2) float32 of a pair, a list of one pair per image, or None."""
        name, channels = "pupil_center", self.record.pupil_center
        if value is None:
            filled = self._fill_in(name, channels, self._named.pupil_center if self._named else [], name)
            return np.tile(np.array(filled, dtype=np.float32), (self.n_images, 1))
        if not isinstance(value, list):
            raise InvalidInput("pupil_center is not a pair", got=brief(value), expected="[x, y]")
        shape = shape_of(value, name)
        if shape not in {(2,), (self.n_images, 2)}:
            raise InvalidInput(
                "pupil_center does not fit the images",
                got=f"shape {shape}",
                expected=f"[x, y], or {self.n_images} such pairs",
            )
        centers = as_float32(np.array(value, dtype=np.float64), name)
        centers = np.array(np.broadcast_to(centers, (self.n_images, 2)))
        self._check(name, centers, channels, name)
        return centers

    def _check(self, name: str, values: np.ndarray, channels: list[Channel], group: str) -> None:
        if group in self.record.uses:
            self.outside += check_values(name, values, channels, self.record)
            return
        mouse_id = self.record.mouse_id
        self.assumed.append(f"{name} is ignored: the responses of mouse {mouse_id} do not depend on it in this model")

    def _fill_in(self, name: str, channels: list[Channel], in_state: list[float], group: str) -> list[float]:
        """A value for each channel, noted; an error where the mouse needs one and none is known."""
        means, medians = ([getattr(channel, kind) for channel in channels] for kind in ("mean", "median"))
        is_median = self.asked == "median" and None not in medians
        values = in_state or (medians if is_median else means)
        if group not in self.record.uses:
            return [value or 0.0 for value in values]  # changes nothing, so there is nothing to say
        if None in values:
            raise InvalidInput(
                f"{name} is missing and mouse {self.record.mouse_id!r} has no training statistics to fill it in from",
                expected=f"{name}, standardised" if self.record.standardized_inputs else name,
                hint=f"GET /mice/{self.record.mouse_id} says what this mouse uses.",
            )
        what, why = "training mean", ""
        if in_state:
            what = "median at rest" if self.asked == "rest" else "median while running"
        elif is_median:
            what = "training median"
        elif self.asked == "median":
            self.state, why = "mean", ", as the median is not known"
        text = f"{values[0]:.4g}" if len(values) == 1 else f"({', '.join(f'{value:.4g}' for value in values)})"
        self.assumed.append(
            f"{name} left out: the {what} {text} {channels[0].unit} of mouse {self.record.mouse_id} was used "
            f"(state={'median' if is_median else self.state}{why})"
        )
        return values


def _named_state(record: MouseRecord, state: State) -> BehaviorState | None:
    """The statistics of `rest` or `running`. Raises InvalidInput where the mouse has none of that state."""
    if state in ("median", "mean"):
        return None
    for known in record.states:
        if known.name == state:
            return known
    raise InvalidInput(
        f"the bundle has no state {state} of mouse {record.mouse_id!r}",
        got=state,
        expected=" or ".join(["median", "mean", *(known.name for known in record.states)]),
        hint=f"GET /mice/{record.mouse_id} lists them under states; give the behaviour values themselves instead.",
    )


def _per_image(value: Any, name: str, n_images: int) -> np.ndarray:
    if is_number(value):
        return np.full(n_images, as_float32(np.asarray(value, dtype=np.float64), name), dtype=np.float32)
    if not isinstance(value, list):
        raise InvalidInput(f"{name} is not a number", got=brief(value), expected="a number, or a list of one per image")
    shape = shape_of(value, name)
    if shape != (n_images,):
        raise InvalidInput(
            f"{name} does not fit the images", got=f"shape {shape}", expected=f"a number, or a list of {n_images}"
        )
    return as_float32(np.array(value, dtype=np.float64), name)
