"""Responses with NaN or infinity: refused, or their trials or neurons left out."""

from __future__ import annotations

from typing import Literal

import numpy as np

from training.tables import counted

__all__ = ["NOT_FINITE", "NotFinite", "finite_part"]

NotFinite = Literal["refuse", "drop-trials", "drop-neurons"]
NOT_FINITE: tuple[NotFinite, ...] = ("refuse", "drop-trials", "drop-neurons")


def finite_part(responses: np.ndarray, choice: NotFinite) -> tuple[np.ndarray, np.ndarray, str | None]:
    """(T',) trials and (N',) neurons to take, and a note on those left out. responses: (T, N)."""
    trials, neurons = np.arange(len(responses)), np.arange(responses.shape[1])
    bad = ~np.isfinite(responses)
    if choice == "refuse" or not bad.any():
        return trials, neurons, None
    left = bad.any(1) if choice == "drop-trials" else bad.any(0)
    noun = "trial" if choice == "drop-trials" else "neuron"
    note = f"{counted(int(left.sum()), noun)} with NaN or infinity left out"
    return (trials[~left], neurons, note) if choice == "drop-trials" else (trials, neurons[~left], note)
