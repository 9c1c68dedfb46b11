"""Tuning curves: selectivity indices, a permutation test, and four standard functions fitted to all neurons at once.

orientation  von Mises               r = base + height exp(kappa (cos 2(theta - preferred) - 1))
frequency    log-Gaussian            r = base + height exp(-(ln f - ln preferred)^2 / (2 width^2))
contrast     Naka-Rushton            r = base + height c^n / (c^n + c50^n)
size         difference of           r = base + center erf(d / a) - surround erf(d / b),  b > a
             error functions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from v1t_client._extras import needed
from v1t_client.insilico.fitting.least_squares import Array, least_squares

__all__ = [
    "CurveFit",
    "direction_selectivity",
    "fit_contrast",
    "fit_frequency",
    "fit_orientation",
    "fit_size",
    "naka_rushton",
    "orientation_peaks",
    "orientation_selectivity",
    "preferred_angle",
    "shuffled_selectivity",
]

SECOND_APART, SECOND_PROMINENCE = 40.0, 1 / 3  # degrees; share of the range of the curve
FLAT = 0.25
_STEPS, _DELTA = 100, 1e-5


def orientation_selectivity(responses: Array, degrees: npt.ArrayLike) -> Array:
    """OSI = |sum r exp(2 i theta)| / sum r, over the last axis."""
    return _selectivity(responses, degrees, 2)


def direction_selectivity(responses: Array, degrees: npt.ArrayLike) -> Array:
    """DSI = |sum r exp(i theta)| / sum r, over the last axis; theta covers the whole circle."""
    return _selectivity(responses, degrees, 1)


def _selectivity(responses: Array, degrees: npt.ArrayLike, harmonic: int) -> Array:
    vector = responses @ np.exp(harmonic * 1j * np.radians(degrees))
    total = responses.sum(-1)
    return np.abs(vector) / np.where(total > 0, total, np.inf)


def preferred_angle(responses: Array, degrees: npt.ArrayLike) -> Array:
    """The orientation of the vector sum, in [0, 180)."""
    return np.degrees(np.angle(responses @ np.exp(2j * np.radians(degrees)))) / 2 % 180


def orientation_peaks(responses: Array, degrees: npt.ArrayLike) -> tuple[Array, Array]:
    """The orientations of the highest peak and of a second one, (N,) each in [0, 180); NaN where there is no second.

    A second peak is at least SECOND_APART degrees away, and its prominence (its height above the higher of the two
    valleys that separate it from the first) is at least SECOND_PROMINENCE of the range of the curve. A von Mises
    function, which has one peak, must not be fitted to such a curve. A curve whose range is at most FLAT of its
    maximum has no second peak.

    Args:
        responses: (N, K) to orientations that are evenly spaced over 180 degrees.
    """
    theta = np.asarray(degrees, dtype=np.float64)
    K = len(theta)
    first, second = np.full(len(responses), np.nan), np.full(len(responses), np.nan)
    for row, curve in enumerate(responses):
        best = int(curve.argmax())
        first[row] = _vertex(curve, best, theta)
        span, found = curve[best] - curve.min(), 0.0
        for k in range(K):
            steps = (k - best) % K
            apart = min(steps, K - steps) * 180 / K
            if apart < SECOND_APART or not (curve[k] >= curve[k - 1] and curve[k] > curve[(k + 1) % K]):
                continue
            around = np.roll(curve, -best)  # the first peak is at 0, this one at `steps`
            prominence = curve[k] - max(around[: steps + 1].min(), np.append(around[steps:], around[0]).min())
            if span > FLAT * curve[best] and prominence > max(found, SECOND_PROMINENCE * span):
                second[row], found = _vertex(curve, k, theta), prominence
    return first, second


def _vertex(curve: Array, k: int, theta: Array) -> float:
    """The top of the parabola through a highest point and its two neighbours, on the circle of 180 degrees."""
    before, here, after = curve[k - 1], curve[k], curve[(k + 1) % len(curve)]
    bend = before - 2 * here + after
    shift = 0.0 if bend == 0 else 0.5 * (before - after) / bend
    return float((theta[k] + shift * 180 / len(curve)) % 180)


def shuffled_selectivity(responses: Array, degrees: npt.ArrayLike, *, rng: np.random.Generator, n: int = 1000) -> Array:
    """(N,) p-values of the OSI: how often orientations shuffled over all images give an OSI at least as large.

    Args:
        responses: (N, K, P), to P images of each of K orientations.
    """
    N, K, P = responses.shape
    flat = responses.reshape(N, K * P)
    seen = orientation_selectivity(responses.mean(2), degrees)
    larger = np.zeros(N)
    for _ in range(n):
        shuffled = flat[:, rng.permutation(K * P)].reshape(N, K, P).mean(2)
        larger += orientation_selectivity(shuffled, degrees) >= seen
    return (larger + 1) / (n + 1)


@dataclass(frozen=True, eq=False)
class CurveFit:
    """One row per neuron.

    Attributes:
        values: (N, p) parameters, in the order of the fit function's docstring.
        r2: (N,) share of the curve's variance that the fit explains; NaN for a constant curve.
        ok: (N,) False where the fit failed: a constant curve, no convergence, or r2 below 0.5.
        curve: the fitted functions: K points -> (N, K).
    """

    values: Array
    r2: Array
    ok: npt.NDArray[np.bool_]
    curve: Callable[[Array], Array]


def fit_orientation(degrees: npt.ArrayLike, responses: Array) -> CurveFit:
    """preferred [deg], kappa, height, base."""
    theta = np.radians(np.asarray(degrees, dtype=np.float64))

    def model(p: Array, x: Array) -> Array:
        return np.exp(np.exp(p[:, 1:2]) * (np.cos(2 * (x - p[:, :1])) - 1))

    first = np.radians(preferred_angle(responses, degrees))
    starts = [np.stack([first, np.full_like(first, np.log(k))], axis=1) for k in (0.7, 3.0, 8.0)]
    fit = _fit(model, theta, responses, starts, bounds=((-np.inf, np.inf), (np.log(0.05), np.log(60.0))))
    values = np.stack(
        [np.degrees(fit.values[:, 0]) % 180, np.exp(fit.values[:, 1]), fit.values[:, 2], fit.values[:, 3]], axis=1
    )
    return CurveFit(values, fit.r2, fit.ok, lambda x: fit.curve(np.radians(x)))


def fit_frequency(frequencies: npt.ArrayLike, responses: Array) -> CurveFit:
    """preferred [unit of the frequencies], width [octaves, full width at half height], height, base.

    Both a log-Gaussian and a Gaussian are fitted, and the better one is used: Gabor-like neurons are Gaussian in
    frequency, and a log-Gaussian fit would underestimate their peak.
    """
    f = np.asarray(frequencies, dtype=np.float64)

    def model(p: Array, x: Array) -> Array:
        return np.exp(-0.5 * ((x - p[:, :1]) / np.exp(p[:, 1:2])) ** 2)

    def fitted(x: Array) -> CurveFit:
        first, span = x[responses.argmax(1)], np.log(x[-1] - x[0])
        starts = [np.stack([first, np.full_like(first, span + np.log(part))], axis=1) for part in (0.15, 0.35)]
        # A peak far beyond the frequencies shown cannot be measured: allow half a step outside.
        low, high = x[0] - (x[1] - x[0]) / 2, x[-1] + (x[-1] - x[-2]) / 2
        return _fit(
            model, x, responses, starts, bounds=((low, high), (span + np.log(0.04), span + np.log(1.5))), positive=True
        )

    log, linear = fitted(np.log(f)), fitted(f)
    better = linear.ok & (~log.ok | (linear.r2 > log.r2))
    half = np.sqrt(2 * np.log(2))  # half width at half height, in sigmas
    peak, sigma = linear.values[:, 0], np.exp(linear.values[:, 1])
    flanks = np.maximum(peak - half * sigma, f[0] / 4), peak + half * sigma
    linear_octaves = np.log2(flanks[1] / flanks[0])
    values = np.stack(
        [
            np.where(better, peak, np.exp(log.values[:, 0])),
            np.where(better, linear_octaves, 2 * half * np.exp(log.values[:, 1]) / np.log(2)),
            *np.where(better, linear.values[:, 2:].T, log.values[:, 2:].T),
        ],
        axis=1,
    )
    return CurveFit(
        values,
        np.where(better, linear.r2, log.r2),
        np.where(better, linear.ok, log.ok),
        lambda x: np.where(better[:, None], linear.curve(x), log.curve(np.log(x))),
    )


def naka_rushton(contrast: Array, c50: Array, exponent: Array) -> Array:
    """c^n / (c^n + c50^n)."""
    with np.errstate(divide="ignore"):
        return np.asarray(1 / (1 + np.exp(exponent * (np.log(c50) - np.log(contrast)))))


def fit_contrast(contrasts: npt.ArrayLike, responses: Array) -> CurveFit:
    """c50, exponent, height, base. The c50 is bounded at twice the highest contrast."""
    x = np.asarray(contrasts, dtype=np.float64)

    def model(p: Array, x: Array) -> Array:
        return naka_rushton(x, np.exp(p[:, :1]), np.exp(p[:, 1:2]))

    starts = [np.tile(np.log([c, n]), (len(responses), 1)) for c in (0.15, 0.5) for n in (1.0, 2.5)]
    fit = _fit(model, x, responses, starts, bounds=((np.log(0.01), np.log(2 * x.max())), (np.log(0.3), np.log(8.0))))
    values = np.concatenate([np.exp(fit.values[:, :2]), fit.values[:, 2:]], axis=1)
    return CurveFit(values, fit.r2, fit.ok, fit.curve)


def fit_size(diameters: npt.ArrayLike, responses: Array) -> CurveFit:
    """a, b [unit of the diameters], center, surround, base."""
    x = np.asarray(diameters, dtype=np.float64)
    erf = needed("scipy.special").erf

    def model(p: Array, x: Array) -> tuple[Array, Array]:
        a = np.exp(p[:, :1])
        return erf(x / a), -erf(x / (a * (1.05 + np.exp(p[:, 1:2]))))

    positive = x[x > 0]
    low, high = np.log(positive.min() / 4), np.log(4 * x.max())
    sizes = np.exp(np.linspace(np.log(positive.min()), np.log(x.max()), 5))[1:4]
    starts = [np.tile([np.log(a), np.log(r)], (len(responses), 1)) for a in sizes for r in (0.7, 2.5)]
    fit = _fit(model, x, responses, starts, bounds=((low, high), (np.log(0.05), np.log(20.0))), positive=True)
    a = np.exp(fit.values[:, 0])
    b = a * (1.05 + np.exp(fit.values[:, 1]))
    values = np.stack([a, b, *fit.values[:, 2:].T], axis=1)
    return CurveFit(values, fit.r2, fit.ok, fit.curve)


def _fit(
    model: Callable[[Array, Array], Array | tuple[Array, ...]],
    x: Array,
    responses: Array,
    starts: Sequence[Array],
    *,
    bounds: Sequence[tuple[float, float]],
    positive: bool = False,
) -> CurveFit:
    """Fits all neurons together: shape parameters by Levenberg-Marquardt, heights and base by linear least squares.

    Args:
        model: shape parameters (N, p) and x (K,) -> one or more curves (N, K); r = base + sum of height x curve.
        starts: first guesses of the shape parameters; the best result is kept.
        bounds: of each shape parameter.
        positive: the base, and heights after the first, are at least 0.
    """
    y = responses.astype(np.float64)
    low, high = np.array(bounds, dtype=np.float64).T

    def linearize(p: Array, rows: npt.NDArray[np.intp]) -> tuple[Array, Array]:
        residual = _scales(model(p, x), y[rows], positive)[1]
        jacobian = np.empty((*residual.shape, p.shape[1]))
        for k in range(p.shape[1]):
            moved = p.copy()
            moved[:, k] += _DELTA
            jacobian[..., k] = (residual - _scales(model(moved, x), y[rows], positive)[1]) / _DELTA
        return residual, jacobian

    shape, error, converged = least_squares(
        linearize,
        starts,
        low=low,
        high=high,
        max_step=1.0,
        damping_floor=1e-12,
        tolerance=1e-6,
        max_steps=_STEPS,
        refine=True,
    )
    scale, _ = _scales(model(shape, x), y, positive)
    spread = np.square(y - y.mean(1, keepdims=True)).sum(1)
    flat = spread <= 1e-12 * np.maximum(np.square(y).sum(1), 1e-30)
    r2 = np.where(flat, np.nan, 1 - error / np.where(flat, 1, spread))

    def curve(points: Array) -> Array:
        parts = model(shape, np.asarray(points, dtype=np.float64))
        parts = parts if isinstance(parts, tuple) else (parts,)
        return scale[:, -1:] + sum(scale[:, [i]] * part for i, part in enumerate(parts))

    ok = converged & ~flat & (np.nan_to_num(r2) >= 0.5) & (scale[:, 0] > 0)
    return CurveFit(np.concatenate([shape, scale], axis=1), r2, ok, curve)


def _scales(parts: Array | tuple[Array, ...], y: Array, positive: bool) -> tuple[Array, Array]:
    """The best heights and base (N, q), and the residuals (N, K)."""
    curves = np.stack([*(parts if isinstance(parts, tuple) else (parts,)), np.ones_like(y)], axis=2)  # (N, K, q)
    scale = _solved(curves, y)
    if positive:
        for i in range(1, curves.shape[2]):  # a negative surround or base is set to 0
            wrong = scale[:, i] < 0
            if wrong.any():
                without = np.delete(curves[wrong], i, axis=2)
                scale[wrong] = np.insert(_solved(without, y[wrong]), i, 0.0, axis=1)
    return scale, y - (curves @ scale[..., None])[..., 0]


def _solved(curves: Array, y: Array) -> Array:
    gram = curves.transpose(0, 2, 1) @ curves
    gram = gram + 1e-10 * np.eye(gram.shape[1]) * np.einsum("nkk->n", gram)[:, None, None]
    return np.asarray(np.linalg.solve(gram, curves.transpose(0, 2, 1) @ y[..., None])[..., 0])
