"""Trials: images with the behaviour and gaze of each, read from arrays or image files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument
from v1t_client._file_types import load_npy
from v1t_client._protocol.arguments import channel_arguments
from v1t_client.insilico.stimuli.pictures import Pictures

__all__ = ["Trials"]


@dataclass(frozen=True, eq=False)
class Trials:
    """B trials.

    Attributes:
        pictures: the images.
        behavior: by channel, (B,) each. pupil_center: (B, 2). Where they are given.
    """

    pictures: Pictures
    behavior: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    pupil_center: npt.NDArray[np.float32] | None = None

    @classmethod
    def open(
        cls,
        images: Path,
        shape: tuple[int, int, int],
        *,
        channels: Sequence[str],
        behavior: Path | None = None,
        pupil_center: Path | None = None,
        standardized: bool = False,
    ) -> Trials:
        """Reads trials.

        Args:
            images: a .npy file of (B, C, H, W) or (B, H, W); a folder of image files; or a folder with images.npy and,
                optionally, behavior.npy and pupil_center.npy.
            channels: names of the mouse's K behaviour channels.
            behavior: a .npy file of (B, K), a column per channel. pupil_center: of (B, 2).
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
        values, gaze = {}, None
        if behavior is not None:
            columns = _array(behavior, (len(pictures), len(channels)), f"a row per image of {', '.join(channels)}")
            values = {name: columns[:, i] for i, name in enumerate(channels)}
        if pupil_center is not None:
            gaze = _array(pupil_center, (len(pictures), 2), "a row per image")
        return cls(pictures, values, gaze)

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, piece: slice) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Images (b, C, H, W) of some of the trials, and their behaviour and gaze as arguments of `predict`."""
        images = self.pictures.read(np.arange(len(self))[piece])
        arguments = channel_arguments({name: values[piece] for name, values in self.behavior.items()})
        return images, arguments | ({} if self.pupil_center is None else {"pupil_center": self.pupil_center[piece]})


def _array(path: Path, shape: tuple[int, int], rows: str) -> npt.NDArray[np.float32]:
    array = load_npy(path)
    if array.shape != shape or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise InvalidArgument(
            f"{path.name} does not fit the images",
            got=f"{array.dtype} {array.shape}",
            expected=f"{shape}, finite numbers, {rows}",
        )
    return array.astype(np.float32)
