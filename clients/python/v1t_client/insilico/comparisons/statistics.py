"""Two-sided paired tests with their effect size, correction for several tests, and the paper's stars.

`training.evaluation.statistics` has the same numbers for scores over seeds; the client does without `training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from v1t_client._extras import needed

__all__ = ["PairedTest", "holm", "p_text", "paired_test", "stars"]

LEVELS = ((0.0001, "****"), (0.001, "***"), (0.01, "**"), (0.05, "*"))  # p below -> stars
CONFIDENCE = 0.95
Array = npt.NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedTest:
    """Student's t-test of differences; NaN where there is no spread to compare with.

    Attributes:
        difference: the mean. interval: its 95 % confidence interval.
        p: two-sided.
        effect: the mean in units of the standard deviation of the differences (d_z), with Hedges' correction.
        effect_interval: from the noncentral t distribution.
    """

    n: int
    difference: float
    interval: Interval
    p: float
    effect: float
    effect_interval: Interval


def paired_test(a: npt.ArrayLike, b: npt.ArrayLike) -> PairedTest:
    """The test of the differences a - b."""
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    n, mean = len(differences), float(differences.mean())
    sd = float(differences.std(ddof=1)) if n > 1 else 0.0
    if sd <= 1e-12 * max(1.0, abs(mean)):  # one pair, or differences that are equal up to rounding
        nan = float("nan")
        return PairedTest(n, mean, (nan, nan), nan, nan, (nan, nan))
    t, degrees = needed("scipy.stats").t, n - 1
    error = sd / np.sqrt(n)
    half = float(t.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    tails = ((1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2)
    low, high = (_noncentrality(mean / error, degrees, p) / np.sqrt(n) for p in tails)
    return PairedTest(
        n=n,
        difference=mean,
        interval=(mean - half, mean + half),
        p=float(2 * t.sf(abs(mean / error), degrees)),
        # Hedges (1981); with one degree of freedom there is no estimate.
        effect=mean / sd * (1 - 3 / (4 * degrees - 1)) if degrees > 1 else float("nan"),
        effect_interval=(float(low), float(high)),
    )


def _noncentrality(statistic: float, degrees: int, p: float) -> float:
    """The noncentrality c for which P(t < statistic) = E[Phi(statistic s - c)] is p, with degrees s^2 ~ chi^2.

    Over the quantiles of s, since `scipy.stats.nct` has no value where t is large.
    """
    nodes, weights = _nodes_and_weights()
    scaled = statistic * np.sqrt(needed("scipy.stats").chi2.ppf((1 + nodes) / 2, degrees) / degrees)
    normal = needed("scipy.special").ndtr

    def excess(c: float) -> float:
        return float(weights @ normal(scaled - c)) / 2 - p

    return float(needed("scipy.optimize").brentq(excess, scaled.min() - 10, scaled.max() + 10))


@cache
def _nodes_and_weights() -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(400)


def holm(p: Sequence[float]) -> list[float]:
    """Corrected p-values (Holm 1979), in the given order; NaN, where there was no test, stays NaN."""
    known = sorted((value, i) for i, value in enumerate(p) if np.isfinite(value))
    corrected, largest = [float("nan")] * len(p), 0.0
    for rank, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        corrected[i] = largest
    return corrected


def stars(p: float) -> str:
    """The paper's stars of a p-value; "-" if there is none."""
    if not np.isfinite(p):
        return "-"
    return next((words for level, words in LEVELS if p < level), "n.s.")


def p_text(p: float) -> str:
    """`0.013`, `2.1e-08` or `-`."""
    return "-" if not np.isfinite(p) else f"{p:.2g}"
