"""The engine's input: arrays for one mouse, checked against its recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from server.bundle import tensor_names
from server.bundle.manifest import MouseRecord
from server.errors import InvalidInput, NotFound

__all__ = ["Stimulus", "floats", "merged"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Stimulus:
    """What one mouse is shown and does, in the recording's own units.

    Attributes:
        image: (B, C, H, W) float32.
        behavior: (B, K) float32, in the order of the manifest's behaviour channels.
        pupil_center: (B, 2) float32, x and y.
        neurons: (n,) int64 positions 0..N-1; None: all.
    """

    mouse_id: str
    image: Array
    behavior: Array
    pupil_center: Array
    neurons: npt.NDArray[np.int64] | None = None

    @classmethod
    def check(
        cls,
        mouse: MouseRecord,
        image: npt.ArrayLike,
        behavior: npt.ArrayLike,
        pupil_center: npt.ArrayLike,
        neurons: npt.ArrayLike | None = None,
    ) -> Self:
        """A stimulus of checked arrays.

        Raises:
            NotFound: no such neuron.
            InvalidInput: another shape than the mouse's, a type that is not numeric, NaN or infinity.
        """
        images = floats("image", image, (None, *mouse.image_shape), mouse.mouse_id)
        batch = len(images)
        return cls(
            mouse_id=mouse.mouse_id,
            image=images,
            behavior=floats("behavior", behavior, (batch, len(mouse.behavior)), mouse.mouse_id),
            pupil_center=floats("pupil_center", pupil_center, (batch, len(mouse.pupil_center)), mouse.mouse_id),
            neurons=None if neurons is None else _positions(neurons, mouse),
        )

    def __getitem__(self, images: slice) -> Self:
        """The stimulus of some of the images."""
        return replace(
            self,
            image=self.image[images],
            behavior=self.behavior[images],
            pupil_center=self.pupil_center[images],
        )

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """The inputs of the stem."""
        return {
            tensor_names.IMAGE: self.image,
            tensor_names.BEHAVIOR: self.behavior,
            tensor_names.PUPIL_CENTER: self.pupil_center,
        }


def merged(stimuli: Sequence[Stimulus]) -> list[tuple[Stimulus, list[int]]]:
    """Merges stimuli of one mouse and the same neurons. Returns each with the indices that it is made of, in order."""
    alike: dict[tuple[str, bytes | None], list[int]] = {}
    for i, stimulus in enumerate(stimuli):
        neurons = None if stimulus.neurons is None else stimulus.neurons.tobytes()
        alike.setdefault((stimulus.mouse_id, neurons), []).append(i)
    return [(_joined([stimuli[i] for i in places]), places) for places in alike.values()]


def _joined(stimuli: Sequence[Stimulus]) -> Stimulus:
    if len(stimuli) == 1:
        return stimuli[0]
    return replace(
        stimuli[0],
        image=np.concatenate([stimulus.image for stimulus in stimuli]),
        behavior=np.concatenate([stimulus.behavior for stimulus in stimuli]),
        pupil_center=np.concatenate([stimulus.pupil_center for stimulus in stimuli]),
    )


def floats(name: str, value: npt.ArrayLike, shape: tuple[int | None, ...], mouse_id: str) -> Array:
    """The value as float32 of that shape, None for any size. Raises InvalidInput, with its name, if it is not."""
    expected = "(" + ", ".join("B" if size is None else str(size) for size in shape) + ")"
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise InvalidInput(f"{name} is not numeric", got=f"dtype {array.dtype}", expected="floats or integers")
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if not fits or array.size == 0:
        raise InvalidInput(
            f"{name} has another shape than mouse {mouse_id!r} expects", got=str(array.shape), expected=expected
        )
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are reported below
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise InvalidInput(f"{name} holds NaN or infinite values", expected="finite numbers")
    return array


def _positions(neurons: npt.ArrayLike, mouse: MouseRecord) -> npt.NDArray[np.int64]:
    array = np.asarray(neurons)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise InvalidInput(
            "neurons is not a list of positions",
            got=f"shape {array.shape}, dtype {array.dtype}",
            expected="(n,) integers",
        )
    outside = array[(array < 0) | (array >= mouse.n_neurons)]
    if outside.size:
        raise NotFound(
            f"mouse {mouse.mouse_id!r} has no neuron at position {outside[0]}",
            got=int(outside[0]),
            expected=f"0 to {mouse.n_neurons - 1}",
        )
    return np.ascontiguousarray(array, dtype=np.int64)
