"""Two-dimensional Gaussians fitted to many maps at once: Levenberg-Marquardt on whole batches of neurons.

    g(x, y) = offset + amplitude exp(-(a / major)^2 / 2 - (b / minor)^2 / 2)
    a = (x - cx) cos(angle) + (y - cy) sin(angle),  b = (y - cy) cos(angle) - (x - cx) sin(angle)

Seven parameters (paper A.5). Lengths are elements of the map, x along columns, y along rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["GaussianFit", "blurred", "fit_gaussians"]

_BATCH = 64  # maps at once: 8 MB of Jacobian at 36 x 64
_STEPS = 60
_STARTS = (1.5, 4.0)  # first guesses of sigma at 36 rows
_TINY, _FLAT = 0.3, 1e-9
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GaussianFit:
    """One row per map.

    Attributes:
        center: (n, 2) x, y. major, minor: (n,) sigmas, major >= minor. angle: (n,) degrees of the major axis, 0 to 180.
        amplitude, offset: (n,).
        r2: (n,) share of the map's variance that the Gaussian explains.
        ok: (n,) False where there is no fit: no convergence, or a centre outside of the map, a width below 0.3
            elements or above the map's height, or no hill. The other values are then what was tried, not a result.
    """

    center: Array
    major: Array
    minor: Array
    angle: Array
    amplitude: Array
    offset: Array
    r2: Array
    ok: npt.NDArray[np.bool_]


def fit_gaussians(maps: npt.NDArray[np.floating], *, tick: Callable[[int], object] = lambda n: None) -> GaussianFit:
    """Fits each of (n, h, w) maps, which should be hills: absolute z-scores.

    Args:
        tick: told how many maps are done, batch by batch.
    """
    n, h, w = maps.shape
    found, r2, settled = np.zeros((n, 7)), np.zeros(n), np.zeros(n, dtype=bool)
    y, x = np.mgrid[:h, :w].reshape(2, -1).astype(np.float64)  # (P,)
    for start in range(0, n, _BATCH):
        rows = slice(start, start + _BATCH)
        values = maps[rows].reshape(-1, h * w).astype(np.float64)
        best = np.full(len(values), np.inf)
        for sigma in _STARTS:
            first = _first_guess(maps[rows].astype(np.float64), max(sigma * h / 36, 0.7))
            parameters, error, done = _descend(first, x, y, values)
            better = error < best
            found[rows][better], settled[rows][better] = parameters[better], done[better]
            best = np.minimum(best, error)
        spread = np.square(values - values.mean(1, keepdims=True)).sum(1)
        r2[rows] = 1 - best / np.maximum(spread, _FLAT)
        tick(len(values))
    return _described(found, r2, settled, h, w)


def _first_guess(maps: Array, sigma: float) -> Array:
    """(n, 7): the highest point of the smoothed map."""
    w = maps.shape[2]
    smooth = blurred(maps, sigma)
    peak = smooth.reshape(len(maps), -1).argmax(1)
    offset = np.median(maps, axis=(1, 2))
    height = np.maximum(smooth.reshape(len(maps), -1).max(1) - offset, 1e-3)
    columns = [2 * height, peak % w, peak // w, np.log(sigma), np.log(sigma) - 0.1, 0.0, offset]
    return np.stack([np.broadcast_to(column, len(maps)) for column in columns], axis=1).astype(np.float64)


def blurred(maps: Array, sigma: float) -> Array:
    """Each of (n, h, w) maps under a Gaussian of `sigma` elements, renormalised at the edges."""
    for axis in (1, 2):
        distance = np.arange(maps.shape[axis])
        kernel = np.exp(-0.5 * ((distance[:, None] - distance) / sigma) ** 2)
        kernel /= kernel.sum(1, keepdims=True)
        maps = np.moveaxis(np.moveaxis(maps, axis, -1) @ kernel.T, -1, axis)
    return maps


def _descend(parameters: Array, x: Array, y: Array, values: Array) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Levenberg-Marquardt for all maps together; (n, 7), squared error (n,), converged (n,)."""
    parameters = parameters.copy()
    damping = np.full(len(parameters), 1e-2)
    residual, jacobian = _linearised(parameters, x, y, values)
    error = np.square(residual).sum(1)
    done = np.zeros(len(parameters), dtype=bool)
    open_ = np.arange(len(parameters))
    for _ in range(_STEPS):
        curvature = jacobian.transpose(0, 2, 1) @ jacobian  # (k, 7, 7)
        slope = jacobian.transpose(0, 2, 1) @ residual[..., None]  # (k, 7, 1)
        diagonal = np.einsum("kii->ki", curvature)
        damped = curvature + (damping[open_, None] * diagonal + _FLAT)[:, :, None] * np.eye(7)
        step = np.linalg.solve(damped, slope)[..., 0]
        step[:, 3:5] = np.clip(step[:, 3:5], -0.7, 0.7)  # log sigmas: at most a factor of two
        tried = parameters[open_] + step
        tried[:, 3:5] = np.clip(tried[:, 3:5], -4.0, 6.0)
        new_residual, new_jacobian = _linearised(tried, x, y, values[open_])
        new_error = np.square(new_residual).sum(1)
        better = new_error < error[open_]
        gain = error[open_] - new_error
        small = gain < 1e-7 * error[open_]
        moved = open_[better]
        parameters[moved], error[moved] = tried[better], new_error[better]
        residual[better], jacobian[better] = new_residual[better], new_jacobian[better]
        damping[open_] = np.where(better, damping[open_] / 5, damping[open_] * 4)
        finished = (better & small) | (damping[open_] > 1e8)
        done[open_[finished]] = True
        keep = ~finished
        open_, residual, jacobian = open_[keep], residual[keep], jacobian[keep]
        if not len(open_):
            break
    return parameters, error, done


def _linearised(parameters: Array, x: Array, y: Array, values: Array) -> tuple[Array, Array]:
    """Residual (k, P) and the model's Jacobian (k, P, 7)."""
    amplitude, cx, cy, log_major, log_minor, angle, offset = (column[:, None] for column in parameters.T)
    dx, dy, cos, sin = x - cx, y - cy, np.cos(angle), np.sin(angle)
    a, b = dx * cos + dy * sin, dy * cos - dx * sin
    p, q = np.exp(-2 * log_major), np.exp(-2 * log_minor)  # 1 / sigma^2
    hill = np.exp(-0.5 * (p * a**2 + q * b**2))
    g = amplitude * hill
    jacobian = np.empty((*g.shape, 7))
    jacobian[..., 0] = hill
    jacobian[..., 1] = g * (p * a * cos - q * b * sin)
    jacobian[..., 2] = g * (p * a * sin + q * b * cos)
    jacobian[..., 3] = g * p * a**2
    jacobian[..., 4] = g * q * b**2
    jacobian[..., 5] = g * (q - p) * a * b
    jacobian[..., 6] = 1
    return values - (g + offset), jacobian


def _described(found: Array, r2: Array, settled: npt.NDArray[np.bool_], h: int, w: int) -> GaussianFit:
    amplitude, cx, cy, log_a, log_b, angle, offset = found.T
    sigma = np.exp([log_a, log_b])
    turned = sigma[1] > sigma[0]
    major, minor = sigma.max(0), sigma.min(0)
    inside = (cx > -0.5) & (cx < w - 0.5) & (cy > -0.5) & (cy < h - 0.5)
    return GaussianFit(
        center=np.stack([cx, cy], axis=1),
        major=major,
        minor=minor,
        angle=np.degrees(angle + np.where(turned, np.pi / 2, 0)) % 180,
        amplitude=amplitude,
        offset=offset,
        r2=r2,
        ok=settled & inside & (minor > _TINY) & (major < h) & (amplitude > 0) & np.isfinite(found).all(1),
    )
