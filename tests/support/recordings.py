"""Recordings that are written by hand, not by the simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["NAME", "SHAPE", "N", "T", "write_recording"]

T, N, SHAPE = 23, 7, (1, 12, 20)
NAME = "static21067-10-18-GrayImageNet-94c6ff995dac583098847cfecd43e7b6"


def write_recording(
    folder: Path, *, seed: int = 0, shape: tuple[int, int, int] = SHAPE, image_dtype: str = "uint8", flat: bool = True
) -> dict[str, np.ndarray]:
    """A recording of random values. Returns what was written."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (T, *shape)).astype(image_dtype)
    arrays = {
        "images": images,
        "responses": rng.gamma(1.0, 2.0, (T, N)),
        "behavior": rng.normal(3, 1, (T, 3)),
        "pupil_center": rng.normal(100, 5, (T, 2)),
    }
    trials = {
        "tiers": rng.permutation(["train"] * 12 + ["validation"] * 5 + ["test"] * 6),
        "trial_idx": rng.permutation(T) + 100,
        "frame_image_id": rng.integers(0, 9, T),
    }
    neurons = {"unit_ids": rng.permutation(N) + 3, "cell_motor_coordinates": rng.normal(0, 100, (N, 3))}
    for name, values in arrays.items():
        (folder / "data" / name).mkdir(parents=True)
        statistics = folder / "meta" / "statistics" / name / "all"
        statistics.mkdir(parents=True)
        for trial in range(T):
            value = values[trial] if flat or values.ndim > 2 else values[trial][None]
            np.save(folder / "data" / name / f"{trial}.npy", value)
        axis = None if name == "images" else 0
        for statistic in ("mean", "std", "min", "max", "median"):
            np.save(statistics / f"{statistic}.npy", getattr(np, statistic)(values, axis=axis))
    for group, values in (("trials", trials), ("neurons", neurons)):
        (folder / "meta" / group).mkdir(parents=True)
        for name, value in values.items():
            np.save(folder / "meta" / group / f"{name}.npy", value)
    return arrays | trials | neurons
