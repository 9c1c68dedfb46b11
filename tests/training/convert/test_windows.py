"""One number per trial: windows, baselines, missing frames and gaps, against loops and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from training.convert.windows import STATISTICS, trace_change, trace_mean, windowed


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("baseline", [None, (-0.3, 0.0)])
def test_windows_are_what_a_loop_over_trials_gives(statistic: str, baseline: tuple[float, float] | None) -> None:
    rng = np.random.default_rng(0)
    times = np.sort(np.arange(3000) / 15 + rng.uniform(-0.01, 0.01, 3000))
    values = rng.normal(size=(3000, 4))
    onsets = rng.permutation(np.arange(1, 199, 1.3))  # in no order, more than one block
    found = windowed(
        lambda first, last: values[first:last],
        times,
        onsets,
        window=(0.05, 0.5),
        baseline=baseline,
        statistic=statistic,  # type: ignore[arg-type]
    )
    for trial, onset in enumerate(onsets):
        inside = values[(times >= onset + 0.05) & (times < onset + 0.5)]
        before = values[(times >= onset - 0.3) & (times < onset)]
        level = before.mean(0) if baseline else 0
        assert found[trial] == pytest.approx(getattr(np, statistic)(inside - level, axis=0))


def test_a_sample_at_the_start_counts_and_one_at_the_end_does_not() -> None:
    times = 3.0 + np.arange(40) / 10  # computed from a rate: 3.1 is not exactly 3.1
    values = np.arange(40.0)[:, None]
    found = windowed(lambda first, last: values[first:last], times, np.array([4.0]), window=(0.1, 0.4))
    assert found[0, 0] == pytest.approx(np.mean([11, 12, 13]))


def test_a_trial_without_half_of_its_frames_is_missing_and_others_are_not() -> None:
    times = np.arange(100) / 10 + 0.01
    values = np.ones((100, 2))
    values[20:23] = np.nan  # 3 of the 5 frames of the trial at 2 s; stored, but lost
    kept = np.ones(100, dtype=bool)
    kept[40:42] = False  # 2 of 5; not stored
    kept[60:63] = False  # 3 of 5
    t, v = times[kept], values[kept]
    found = windowed(lambda first, last: v[first:last], t, np.array([1.0, 2, 4, 6]), window=(0.0, 0.5))
    assert np.isnan(found).all(1).tolist() == [False, True, False, True]


def test_a_frame_in_which_one_neuron_is_nan_is_not_missing() -> None:
    values = np.ones((50, 3))
    values[:, 1] = np.nan
    found = windowed(lambda first, last: values[first:last], np.arange(50) / 10, np.array([1.0]), window=(0.0, 0.5))
    assert np.isnan(found[0]).tolist() == [False, True, False]


def test_a_trace_is_interpolated_over_short_gaps_and_missing_over_long_ones() -> None:
    times = np.arange(0, 60, 1 / 30)
    line = 2 * times + 1  # its mean over a window is its value in the middle
    values = line.copy()
    values[(times > 9.9) & (times < 10.6)] = np.nan  # a blink of 0.7 s
    values[(times > 29.0) & (times < 31.0)] = np.nan
    onsets = np.array([5.0, 10.0, 30.0, 40.0])
    found = trace_mean(times, values, onsets, window=(0.05, 0.5), max_gap=1.0)
    assert found[[0, 1, 3]] == pytest.approx(2 * (onsets[[0, 1, 3]] + 0.275) + 1)
    assert np.isnan(found[2])
    change = trace_change(times, values, onsets, window=(0.05, 0.5), max_gap=1.0)
    assert change[[0, 1, 3]] == pytest.approx([2, 2, 2])
    assert np.isnan(change[2])


def test_a_trace_is_missing_outside_of_its_times() -> None:
    times = np.arange(10, 20, 0.1)
    found = trace_mean(times, np.ones(100), np.array([2.0, 15.0, 30.0]), window=(0, 0.5), max_gap=1.0)
    assert np.isnan(found).tolist() == [True, False, True]
