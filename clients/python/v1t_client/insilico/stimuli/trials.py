"""Trials: images with the behaviour and gaze of each, read from arrays or image files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._answers.gradient import BEHAVIOR_NAMES
from v1t_client._errors import InvalidArgument
from v1t_client._file_types import load_npy
from v1t_client.insilico.stimuli.pictures import Pictures

__all__ = ["Trials"]


@dataclass(frozen=True, eq=False)
class Trials:
    """B trials.

    Attributes:
        pictures: the images.
        state: behaviour by name, (B,) each, and pupil_center (B, 2), where they are given.
    """

    pictures: Pictures
    state: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        images: Path,
        shape: tuple[int, int, int],
        *,
        behavior: Path | None = None,
        pupil_center: Path | None = None,
        standardized: bool = False,
    ) -> Trials:
        """Reads trials.

        Args:
            images: a .npy file of (B, C, H, W) or (B, H, W); a folder of image files; or a folder with images.npy and,
                optionally, behavior.npy and pupil_center.npy.
            behavior: a .npy file of (B, 3): pupil dilation, its derivative, running speed. pupil_center: of (B, 2).
            standardized: the mouse takes standardised images.

        Raises:
            InvalidArgument: an array cannot be read or has another shape.
        """
        if (images / "images.npy").is_file():
            beside = {name: images / f"{name}.npy" for name in ("behavior", "pupil_center")}
            behavior = behavior or (beside["behavior"] if beside["behavior"].is_file() else None)
            pupil_center = pupil_center or (beside["pupil_center"] if beside["pupil_center"].is_file() else None)
            images = images / "images.npy"
        pictures = Pictures.open(images, shape, standardized=standardized)
        state: dict[str, npt.NDArray[np.float32]] = {}
        if behavior is not None:
            columns = _array(behavior, (len(pictures), len(BEHAVIOR_NAMES)))
            state |= {name: columns[:, i] for i, name in enumerate(BEHAVIOR_NAMES)}
        if pupil_center is not None:
            state["pupil_center"] = _array(pupil_center, (len(pictures), 2))
        return cls(pictures, state)

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, piece: slice) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Images (b, C, H, W) and behaviour of some of the trials."""
        images = self.pictures.read(np.arange(len(self))[piece])
        return images, {name: values[piece] for name, values in self.state.items()}


def _array(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    array = load_npy(path)
    if array.shape != shape or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise InvalidArgument(
            f"{path.name} does not fit the images",
            got=f"{array.dtype} {array.shape}",
            expected=f"{shape}, finite numbers, a row per image",
        )
    return array.astype(np.float32)
