"""Tests of scores over seeds: against SciPy, against Holm's correction by hand, and by how often intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from training.evaluation.statistics import compare, holm, independent_test, paired_test, stars


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (3, 5), (10, 30)])
def test_the_independent_test_is_scipys(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (rng.normal(0.4, 0.02, size) for size in sizes)
        expected = stats.ttest_ind(a, b)
        own = independent_test(a.tolist(), b.tolist())
        assert (own.t, own.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
        interval = expected.confidence_interval(0.95)
        assert own.interval == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_paired_test_is_scipys(n: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = rng.normal(0.4, 0.02, (2, n))
        expected = stats.ttest_rel(a, b)
        own = paired_test(a.tolist(), b.tolist())
        assert (own.t, own.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
        interval = expected.confidence_interval(0.95)
        assert own.interval == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_holms_correction_by_hand() -> None:
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 = 0.02, 0.03, 0.06, 0.04 -> not below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    corrected = holm([0.02, float("nan"), 0.01])
    assert corrected[0] == corrected[2] == pytest.approx(0.02)
    assert np.isnan(corrected[1])


@pytest.mark.parametrize("kind", ["paired", "independent"])
@pytest.mark.parametrize("effect", [0.0, 1.5])
def test_intervals_cover_at_their_rate(kind: str, effect: float) -> None:
    """Three seeds, 1,000 draws: 80 % intervals of the difference and of the effect cover the truth in 80 %."""
    rng, n, sd, draws = np.random.default_rng(2), 3, 0.02, 1000
    covered = np.zeros((draws, 2), bool)
    for i in range(draws):
        if kind == "paired":
            shared = rng.normal(0, 0.1, n)  # of the seed, in both systems
            a, b = shared + rng.normal(effect * sd, sd, n), shared
            test = paired_test(a.tolist(), b.tolist(), confidence=0.8)
        else:
            a, b = rng.normal(effect * sd, sd, n), rng.normal(0, sd, n)
            test = independent_test(a.tolist(), b.tolist(), confidence=0.8)
        covered[i] = [
            test.interval[0] < effect * sd < test.interval[1],
            test.effect_interval[0] < effect < test.effect_interval[1],
        ]
    margin = 3 * np.sqrt(0.8 * 0.2 / draws)
    assert covered.mean(0) == pytest.approx([0.8, 0.8], abs=margin)


@pytest.mark.parametrize(("t", "degrees"), [(0.3, 1), (-2.5, 2), (4.0, 4), (3.0, 18)])
def test_the_interval_of_the_effect_is_that_of_the_noncentral_t(t: float, degrees: int) -> None:
    n = degrees + 1
    differences = np.random.default_rng(5).normal(size=n)
    differences = (differences - differences.mean()) / differences.std(ddof=1) + t / np.sqrt(n)
    low, high = paired_test(differences.tolist(), [0.0] * n).effect_interval
    at = [stats.nct.cdf(t, degrees, end * np.sqrt(n)) for end in (low, high)]
    assert at == pytest.approx([0.975, 0.025], abs=1e-4)


def test_two_pairs_have_no_effect_size() -> None:
    """The correction is 0 with one degree of freedom, which would call every effect none."""
    test = paired_test([1.0, 1.3], [0.0, 0.1])
    assert np.isnan(test.effect)
    assert test.difference == pytest.approx(1.1)
    assert np.isfinite([test.p, *test.effect_interval]).all()


def test_hedges_correction_makes_the_effect_unbiased() -> None:
    rng = np.random.default_rng(3)
    effects = [
        independent_test(rng.normal(1.0, 1, 4).tolist(), rng.normal(0, 1, 4).tolist()).effect for _ in range(1000)
    ]
    assert np.mean(effects) == pytest.approx(1.0, abs=0.09)  # without the correction 1.15


def test_seeds_are_paired_by_their_number_and_not_by_their_place() -> None:
    a, b = {0: 0.40, 1: 0.50, 2: 0.61}, {2: 0.60, 0: 0.38, 3: 0.1}
    (found,) = compare([(a, b)])
    assert found.paired.n == 2
    assert found.paired.p == pytest.approx(stats.ttest_rel([0.40, 0.61], [0.38, 0.60]).pvalue)
    assert found.independent.p == pytest.approx(stats.ttest_ind(list(a.values()), list(b.values())).pvalue)
    assert found.p_holm == found.paired.p


def test_all_comparisons_of_a_study_are_corrected_together() -> None:
    rng = np.random.default_rng(4)
    pairs = [tuple(dict(enumerate(rng.normal(mean, 0.01, 4))) for mean in (0.40, 0.42)) for _ in range(5)]
    found = compare(pairs)  # type: ignore[arg-type]
    assert [one.p_holm for one in found] == pytest.approx(holm([one.paired.p for one in found]))


@pytest.mark.parametrize(("a", "b"), [([0.4], [0.5]), ([], []), ([0.5, 0.6], [0.4, 0.5]), ([0.4], [0.5, 0.6])])
def test_where_nothing_can_be_tested_there_is_no_p(a: list[float], b: list[float]) -> None:
    if len(a) == len(b):
        test = paired_test(a, b)
        assert np.isnan(test.p)
        assert stars(test.p) == "-"
    independent_test(a, b)  # no warning, no error


def test_stars() -> None:
    assert [stars(p) for p in (0.2, 0.049, 0.009, 0.0009, 0.00009)] == ["n.s.", "*", "**", "***", "****"]
