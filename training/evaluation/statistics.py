"""Are two systems different? Tests and effect sizes of scores over seeds.

Scores are one number per seed: the mean over mice. `compare` gives what the paper prints, a two-sided t-test of two
independent samples, and what is sound for few seeds: seeds in pairs (the same seed draws the same training trials for
both systems), p-values corrected for the number of comparisons (Holm 1979), and an effect size with its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import chi2, t

__all__ = ["LEVELS", "Comparison", "TTest", "compare", "holm", "independent_test", "paired_test", "stars"]

# p below -> stars. "n.s." above all of them.
LEVELS = ((0.0001, "****"), (0.001, "***"), (0.01, "**"), (0.05, "*"))
CONFIDENCE = 0.95
NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)


@dataclass(frozen=True)
class TTest:
    """A two-sided t-test, and its effect size.

    Attributes:
        difference: mean of the first sample minus mean of the second.
        interval: of the difference.
        t, p: NaN if all differences are equal.
        effect: the difference in units of the standard deviation, with Hedges' correction for few values: of the
            differences for a paired test (d_z), pooled for an independent one (Hedges' g). NaN with one degree of
            freedom, such as of two pairs.
        effect_interval: from the noncentral t distribution.
    """

    n: int
    difference: float
    interval: tuple[float, float]
    t: float
    p: float
    effect: float
    effect_interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Two systems over their seeds.

    Attributes:
        independent: the t-test, as in the paper.
        paired: over the seeds that both systems have.
        p_holm: of the paired test, corrected for all comparisons that were made together.
    """

    independent: TTest
    paired: TTest
    p_holm: float


def compare(pairs: Sequence[tuple[Mapping[int, float], Mapping[int, float]]]) -> list[Comparison]:
    """Compares pairs of systems, corrected for their number; each system is seed -> score."""
    independent = [independent_test(list(a.values()), list(b.values())) for a, b in pairs]
    paired = []
    for a, b in pairs:
        both = sorted(set(a) & set(b))
        paired.append(paired_test([a[seed] for seed in both], [b[seed] for seed in both]))
    corrected = holm([test.p for test in paired])
    return [Comparison(*tests) for tests in zip(independent, paired, corrected, strict=True)]


def independent_test(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> TTest:
    """Student's t-test of two independent samples with equal variances."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    degrees = len(x) + len(y) - 2
    if min(len(x), len(y)) == 0 or degrees < 1:
        return _unknown(min(len(x), len(y)), x, y)
    pooled = float(np.sqrt((((x - x.mean()) ** 2).sum() + ((y - y.mean()) ** 2).sum()) / degrees))
    size = len(x) * len(y) / (len(x) + len(y))
    return _test(min(len(x), len(y)), float(x.mean() - y.mean()), pooled, size, degrees, confidence)


def paired_test(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> TTest:
    """Student's t-test of the differences a - b."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    differences = x - y
    if len(differences) < 2:
        return _unknown(len(differences), x, y)
    sd = float(differences.std(ddof=1))
    return _test(len(differences), float(differences.mean()), sd, len(differences), len(differences) - 1, confidence)


def _unknown(n: int, x: np.ndarray, y: np.ndarray) -> TTest:
    nan = float("nan")
    difference = float(x.mean() - y.mean()) if len(x) and len(y) else nan
    return TTest(n, difference, (nan, nan), nan, nan, nan, (nan, nan))


def _test(n: int, difference: float, sd: float, size: float, degrees: int, confidence: float) -> TTest:
    """The test of a difference with standard error sd / sqrt(size)."""
    if sd <= 1e-12 * max(1.0, abs(difference)):  # equal differences, up to rounding: no spread to compare with
        nan = float("nan")
        return TTest(n, difference, (difference, difference), nan, nan, nan, (nan, nan))
    error = sd / np.sqrt(size)
    statistic = difference / error
    half = float(t.ppf((1 + confidence) / 2, degrees)) * error
    low, high = (_noncentrality(statistic, degrees, p) / np.sqrt(size) for p in _tails(confidence))
    return TTest(
        n=n,
        difference=difference,
        interval=(difference - half, difference + half),
        t=float(statistic),
        p=float(2 * t.sf(abs(statistic), degrees)),
        # Hedges (1981); with one degree of freedom the correction is 0, and so there is no estimate.
        effect=float(difference / sd * (1 - 3 / (4 * degrees - 1))) if degrees > 1 else float("nan"),
        effect_interval=(float(low), float(high)),
    )


def _tails(confidence: float) -> tuple[float, float]:
    """The probabilities of a smaller t at the lower and the upper end of the interval."""
    return (1 + confidence) / 2, (1 - confidence) / 2


def _noncentrality(statistic: float, degrees: int, p: float) -> float:
    """The noncentrality c for which P(t < statistic) = E[Phi(statistic s - c)] is p, with degrees s^2 ~ chi^2.

    Over the quantiles of s, since `scipy.stats.nct` has no value where t is large and the degrees of freedom are few.
    """
    scaled = statistic * np.sqrt(chi2.ppf((1 + NODES) / 2, degrees) / degrees)
    return float(brentq(lambda c: float(WEIGHTS @ ndtr(scaled - c)) / 2 - p, scaled.min() - 10, scaled.max() + 10))


def holm(p: Sequence[float]) -> list[float]:
    """Corrected p-values (Holm 1979), in the given order; NaN, where there was no test, stays NaN."""
    known = sorted((value, i) for i, value in enumerate(p) if np.isfinite(value))
    corrected, largest = [float("nan")] * len(p), 0.0
    for rank, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        corrected[i] = largest
    return corrected


def stars(p: float) -> str:
    """The stars of a p-value; "-" if there is none."""
    if not np.isfinite(p):
        return "-"
    return next((words for level, words in LEVELS if p < level), "n.s.")
