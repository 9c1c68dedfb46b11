"""Recordings with other behaviour channels than those of Sensorium 2022, made of simulated ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from training.data.layout import BEHAVIOR, SENSORIUM_BEHAVIOR, STATISTICS, BehaviorChannel

__all__ = ["FOUR", "LICKING", "TWO", "WHISKING", "with_channels"]

WHISKING, LICKING = BehaviorChannel("whisking", "std"), BehaviorChannel("lick_rate", "1/s")
FOUR = (*SENSORIUM_BEHAVIOR, WHISKING)
TWO = (LICKING, SENSORIUM_BEHAVIOR[2])


def with_channels(recording: Path, folder: Path, channels: tuple[BehaviorChannel, ...]) -> Path:
    """A copy of a recording in `folder`. Channels that it has keep their values; others are random."""
    copy = Path(shutil.copytree(recording, folder / recording.name))
    tiers = np.load(copy / "meta/trials/tiers.npy")
    before = np.stack([np.load(copy / f"data/behavior/{trial}.npy") for trial in range(len(tiers))])  # (T, 3)
    rng = np.random.default_rng(len(channels))
    columns = [
        before[:, SENSORIUM_BEHAVIOR.index(channel)]
        if channel in SENSORIUM_BEHAVIOR
        else rng.gamma(2.0, 0.5 + i, len(tiers))
        for i, channel in enumerate(channels)
    ]
    behavior = np.stack(columns, axis=1).astype(np.float32)  # (T, K)
    for trial, row in enumerate(behavior):
        np.save(copy / f"data/behavior/{trial}.npy", row)
    for statistic in STATISTICS:
        value = getattr(np, statistic)(behavior[tiers == "train"], axis=0)
        np.save(copy / f"meta/statistics/behavior/all/{statistic}.npy", value)
    (copy / BEHAVIOR).write_text(json.dumps([channel._asdict() for channel in channels]))
    return copy
