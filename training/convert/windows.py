"""One number per trial from what was sampled over time.

Times are seconds. A window (from, to) is relative to a trial's onset, and takes the samples at onset + from <= t <
onset + to. A sample is missing where its frame was lost: it was not stored, or is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

__all__ = ["STATISTICS", "Statistic", "Window", "frame_windows", "rate_of", "trace_change", "trace_mean", "windowed"]

Window = tuple[float, float]
Statistic = Literal["mean", "sum", "max", "median"]
STATISTICS: tuple[Statistic, ...] = ("mean", "sum", "max", "median")

BLOCK = 64  # trials that are read at once
EDGE = 1e-6  # seconds: times that were computed from a rate are rounded
LEAST_SHARE = 0.5  # of a window's samples must be there


def rate_of(times: np.ndarray) -> float:
    """Samples per second: one over the median interval, which lost frames do not change."""
    return float(1 / np.median(np.diff(times))) if len(times) > 1 else 0.0


def frame_windows(times: np.ndarray, onsets: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """(T,) first and (T,) last (excluded) sample of each trial's window. times: (F,) ascending."""
    first = np.searchsorted(times, onsets + window[0] - EDGE, side="left")
    return first, np.searchsorted(times, onsets + window[1] - EDGE, side="left")


def windowed(
    read: Callable[[int, int], np.ndarray],
    times: np.ndarray,
    onsets: np.ndarray,
    *,
    window: Window,
    baseline: Window | None = None,
    statistic: Statistic = "mean",
) -> np.ndarray:
    """(T, N) a statistic of each neuron's samples in the window, less the mean of those in the baseline.

    A frame in which all neurons are NaN is missing. A trial is NaN if more than half of a window's frames are missing.

    Args:
        read: gives the samples (F, N) of frames from first to last (excluded); called for some trials at a time.
        times: (F,) ascending. onsets: (T,) in any order.
    """
    windows = [window] if baseline is None else [window, baseline]
    bounds = [frame_windows(times, onsets, one) for one in windows]
    least = [max(1.0, LEAST_SHARE * np.floor((end - start) * rate_of(times) + EDGE)) for start, end in windows]
    order = np.argsort(onsets, kind="stable")
    values: list[np.ndarray] = []
    for start in range(0, len(order), BLOCK):
        trials = order[start : start + BLOCK]
        low = min(int(first[trials].min()) for first, _ in bounds)
        high = max(low, *(int(last[trials].max()) for _, last in bounds))
        samples = np.asarray(read(low, high), dtype=np.float64)  # (F', N)
        present = np.asarray(~np.isnan(samples).all(axis=1))  # (F',)
        for trial in trials:
            parts = []
            for (first, last), needed in zip(bounds, least, strict=True):
                rows = slice(int(first[trial]) - low, int(last[trial]) - low)
                part = samples[rows][present[rows]]
                parts.append(part if len(part) >= needed else None)
            values.append(_reduced(parts, statistic, samples.shape[1]))
    result = np.empty((len(order), values[0].shape[0] if values else 0))
    result[order] = values
    return result


def _reduced(parts: list[np.ndarray | None], statistic: Statistic, n: int) -> np.ndarray:
    if any(part is None for part in parts):
        return np.full(n, np.nan)
    evoked, *rest = (part for part in parts if part is not None)
    baseline = rest[0].mean(0) if rest else 0.0
    return np.asarray(getattr(np, statistic)(evoked - baseline, axis=0))


def trace_mean(
    times: np.ndarray, values: np.ndarray, onsets: np.ndarray, *, window: Window, max_gap: float
) -> np.ndarray:
    """(T, ...) the mean over each window of a trace that is interpolated linearly between its finite samples.

    It is NaN where the window touches a gap, a pause between finite samples that is longer than `max_gap` seconds.

    Args:
        times: (F,) ascending; values: (F,) or (F, K), a sample counts if all K are finite.
    """
    count = max(10, int(np.ceil((window[1] - window[0]) * rate_of(times))))
    places = window[0] + (np.arange(count) + 0.5) / count * (window[1] - window[0])  # (P,) middles of equal parts
    at = onsets[:, None] + places  # (T, P)
    return _interpolated(times, values, at.ravel(), max_gap).reshape(*at.shape, *values.shape[1:]).mean(1)


def trace_change(
    times: np.ndarray, values: np.ndarray, onsets: np.ndarray, *, window: Window, max_gap: float
) -> np.ndarray:
    """(T,) the mean rate of change over each window [1/s]: last value less first, over the window's length."""
    start, end = (_interpolated(times, values, onsets + edge, max_gap) for edge in window)
    return (end - start) / (window[1] - window[0])


def _interpolated(times: np.ndarray, values: np.ndarray, at: np.ndarray, max_gap: float) -> np.ndarray:
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    times, columns = times[finite], values[finite].reshape(int(finite.sum()), -1).astype(np.float64)
    if len(times) == 0:
        return np.full((len(at), *values.shape[1:]), np.nan)
    result = np.stack([np.interp(at, times, column) for column in columns.T], axis=1)
    after = np.searchsorted(times, at, side="left").clip(0, len(times) - 1)
    before = (np.searchsorted(times, at, side="right") - 1).clip(0, len(times) - 1)
    gap = np.where(at < times[0], times[0] - at, np.where(at > times[-1], at - times[-1], times[after] - times[before]))
    result[gap > max_gap] = np.nan
    return result.reshape(len(at), *values.shape[1:])
