"""Metrics: the reference code's numbers, numpy's own, and closed forms, on trials in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.errors import ScoringError
from training.metrics import (
    average_by_image,
    ccnorm,
    correlation_to_average,
    fev_feve,
    mean_feve,
    single_trial_correlation,
    split_half_reliability,
)


@pytest.fixture
def golden(reference: Path) -> dict[str, np.ndarray]:
    with np.load(reference / "metrics.npz") as arrays:
        return dict(arrays)


def simulated(*, images: int, repeats: int, neurons: int, noise: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Gaussian signal (variance 1) and noise: responses, the true signal and image ids, trials in random order."""
    rng = np.random.default_rng(seed)
    image_ids = rng.permutation(np.repeat(rng.permutation(5 * images)[:images], repeats))
    signal = rng.normal(size=(5 * images, neurons))[image_ids]
    return signal + noise * rng.normal(size=signal.shape), signal, image_ids


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_reference_correlations_are_reproduced_on_permuted_trials(
    golden: dict[str, np.ndarray], seed: int | None
) -> None:
    order = np.arange(200) if seed is None else np.random.default_rng(seed).permutation(200)
    responses, predictions = golden["responses"][order], golden["predictions"][order]
    single = single_trial_correlation(responses, predictions)
    average = correlation_to_average(responses, predictions, golden["image_id"][order])
    np.testing.assert_allclose(single, golden["single_trial_correlation"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(average, golden["correlation_to_average"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_reference_explained_variance_is_reproduced_on_permuted_trials(
    golden: dict[str, np.ndarray], seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(200)
    permuted = [golden[name][order] for name in ("responses", "predictions", "image_id")]
    fev, feve = fev_feve(*permuted)
    assert mean_feve(fev, feve) == pytest.approx(golden["feve_mean_above_0_15"], abs=1e-6)
    # The reference summed in float32, in the order of trial ids; there its rounding can be had as well.
    again = np.argsort(golden["trial_id"][order])
    fev32, feve32 = fev_feve(*(values[again] for values in permuted), dtype=np.float32)
    np.testing.assert_allclose(fev32, golden["fev"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(feve32, golden["feve_all"], rtol=0, atol=1e-6)
    # In float64 the two agree as far as float32 can: its rounding of the variances, over the explainable share.
    rounding = 16 * np.finfo(np.float32).eps
    np.testing.assert_array_less(np.abs(fev - golden["fev"]), rounding)
    np.testing.assert_array_less(np.abs(feve - golden["feve_all"]), rounding * (1 + np.abs(feve)) / np.abs(fev))


def test_correlation_is_numpys() -> None:
    responses, signal, image_ids = simulated(images=12, repeats=4, neurons=5, noise=1.0, seed=3)
    expected = [np.corrcoef(responses[:, n], signal[:, n])[0, 1] for n in range(5)]
    np.testing.assert_allclose(single_trial_correlation(responses, signal), expected, atol=1e-12)
    means = [
        [[values[image_ids == i, n].mean() for i in sorted(set(image_ids))] for values in (responses, signal)]
        for n in range(5)
    ]
    expected = [np.corrcoef(*pair)[0, 1] for pair in means]
    np.testing.assert_allclose(correlation_to_average(responses, signal, image_ids), expected, atol=1e-12)


def test_averages_come_with_their_images() -> None:
    values = np.array([[1.0], [5.0], [3.0], [4.0]])
    means, ids = average_by_image(values, np.array(["b", "a", "b", "c"]))
    assert ids.tolist() == ["a", "b", "c"]
    assert means.ravel().tolist() == [5.0, 2.0, 4.0]


def test_a_constant_prediction_correlates_with_nothing() -> None:
    responses, signal, image_ids = simulated(images=5, repeats=3, neurons=4, noise=1.0)
    signal[:, 2] = 7.0
    assert single_trial_correlation(responses, signal)[2] == 0
    assert correlation_to_average(responses, signal, image_ids)[2] == 0


def test_explained_variance_of_known_signal_and_noise() -> None:
    noise = 0.7
    responses, signal, image_ids = simulated(images=300, repeats=10, neurons=40, noise=noise)
    fev, feve = fev_feve(responses, signal, image_ids)
    assert fev.mean() == pytest.approx(1 / (1 + noise**2), abs=0.02)
    assert feve.mean() == pytest.approx(1, abs=0.02)
    _, half = fev_feve(responses, 0.5 * signal, image_ids)
    assert half.mean() == pytest.approx(0.75, abs=0.02)  # an error of (s / 2)^2


def test_mean_feve_leaves_out_unreliable_neurons() -> None:
    fev, feve = np.array([0.5, 0.1, 0.15, np.nan]), np.array([0.8, -30.0, 0.4, np.nan])
    assert mean_feve(fev, feve) == pytest.approx(0.6)
    assert np.isnan(mean_feve(fev[1:2], feve[1:2]))


def test_split_half_reliability_of_known_signal_and_noise() -> None:
    noise, repeats = 2.0, 10
    responses, _, image_ids = simulated(images=400, repeats=repeats, neurons=40, noise=noise)
    expected = 1 / (1 + noise**2 / repeats)  # reliability of the mean of all repeats
    assert split_half_reliability(responses, image_ids).mean() == pytest.approx(expected, abs=0.02)


def test_split_half_reliability_of_noise_is_small() -> None:
    rng = np.random.default_rng(0)
    reliability = split_half_reliability(rng.normal(size=(1000, 50)), np.repeat(np.arange(100), 10))
    assert abs(reliability.mean()) < 0.1


def test_ccnorm_is_one_for_the_truth_whatever_the_noise() -> None:
    for noise in (0.5, 2.0):
        responses, signal, image_ids = simulated(images=400, repeats=10, neurons=40, noise=noise)
        assert ccnorm(responses, signal, image_ids).mean() == pytest.approx(1, abs=0.02)
        assert correlation_to_average(responses, signal, image_ids).mean() < 0.995


def test_ccnorm_equals_its_closed_form() -> None:
    responses, signal, image_ids = simulated(images=20, repeats=5, neurons=3, noise=1.0)
    predictions = signal + np.random.default_rng(9).normal(size=(100, 3))[image_ids]
    values = ccnorm(responses, predictions, image_ids)
    for n in range(3):
        rows = np.stack([responses[image_ids == i, n] for i in sorted(set(image_ids))])  # (I, R)
        p = np.array([predictions[image_ids == i, n].mean() for i in sorted(set(image_ids))])
        power = (np.var(rows.sum(1), ddof=1) - np.var(rows, axis=0, ddof=1).sum()) / (5 * 4)
        expected = np.cov(p, rows.mean(1))[0, 1] / np.sqrt(np.var(p, ddof=1) * power)
        assert values[n] == pytest.approx(expected, rel=1e-10)


def test_metrics_refuse_what_they_cannot_score() -> None:
    responses, signal, image_ids = simulated(images=5, repeats=3, neurons=4, noise=1.0)
    with pytest.raises(ScoringError, match=r"\(15, 4\) and \(15, 3\)"):
        single_trial_correlation(responses, signal[:, :3])
    with pytest.raises(ScoringError, match="image_ids do not fit"):
        correlation_to_average(responses, signal, image_ids[:-1])
    with pytest.raises(ScoringError, match="was not repeated"):
        fev_feve(responses, signal, np.arange(15))
    with pytest.raises(ScoringError, match="same number of repeats"):
        ccnorm(responses[1:], signal[1:], image_ids[1:])
