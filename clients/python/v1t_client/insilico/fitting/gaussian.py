"""Two-dimensional Gaussians fitted to many maps at once.

    g(x, y) = offset + amplitude exp(-(a / major)^2 / 2 - (b / minor)^2 / 2)
    a = (x - cx) cos(angle) + (y - cy) sin(angle),  b = (y - cy) cos(angle) - (x - cx) sin(angle)

Seven parameters (paper A.5). Lengths are elements of the map, x along columns, y along rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from v1t_client.insilico.fitting.least_squares import Array, least_squares

__all__ = ["GaussianFit", "blurred", "fit_gaussians"]

_BATCH = 64  # maps at once: 8 MB of Jacobian at 36 x 64
_STEPS = 60
_STARTS = (1.5, 4.0)  # first guesses of sigma at 36 rows
_TINY, _FLAT = 0.3, 1e-9
# Of amplitude, cx, cy, log major, log minor, angle, offset: only the log sigmas are bounded.
_LOW = np.array([-np.inf] * 3 + [-4.0] * 2 + [-np.inf] * 2)
_HIGH = np.array([np.inf] * 3 + [6.0] * 2 + [np.inf] * 2)
_MAX_STEP = np.array([np.inf] * 3 + [0.7] * 2 + [np.inf] * 2)  # a sigma changes by at most a factor of two


@dataclass(frozen=True, eq=False)
class GaussianFit:
    """One row per map.

    Attributes:
        center: (n, 2) x, y. major, minor: (n,) sigmas, major >= minor. angle: (n,) degrees of the major axis, 0 to 180.
        amplitude, offset: (n,).
        r2: (n,) share of the map's variance that the Gaussian explains.
        center_error: (n,) standard error of the centre's place, root of the sum over both axes, if the elements of the
            map have independent noise of std 1. size_error: (n,) that of the mean of both sigmas, relative to it.
        ok: (n,) False where the fit failed: no convergence, a centre outside the map, a width below 0.3 elements or
            above the map's height, or a negative amplitude. The other values are then the last attempt.
    """

    center: Array
    major: Array
    minor: Array
    angle: Array
    amplitude: Array
    offset: Array
    r2: Array
    center_error: Array
    size_error: Array
    ok: npt.NDArray[np.bool_]


def fit_gaussians(maps: npt.NDArray[np.floating], *, tick: Callable[[int], object] = lambda n: None) -> GaussianFit:
    """Fits a Gaussian to each of (n, h, w) maps with one peak, such as absolute z-scores.

    Args:
        tick: called with the number of maps in each finished batch.
    """
    n, h, w = maps.shape
    found, r2, converged = np.zeros((n, 7)), np.zeros(n), np.zeros(n, dtype=bool)
    covariance = np.zeros((n, 7, 7))
    y, x = np.mgrid[:h, :w].reshape(2, -1).astype(np.float64)  # (P,)
    for start in range(0, n, _BATCH):
        rows = slice(start, start + _BATCH)
        batch = maps[rows].astype(np.float64)
        values = batch.reshape(-1, h * w)
        found[rows], error, converged[rows] = least_squares(
            lambda parameters, open_, values=values: _linearize(parameters, x, y, values[open_]),  # type: ignore[misc]
            [_first_guess(batch, max(sigma * h / 36, 0.7)) for sigma in _STARTS],
            low=_LOW,
            high=_HIGH,
            max_step=_MAX_STEP,
            damping_floor=_FLAT,
            tolerance=1e-7,
            max_steps=_STEPS,
            refine=False,
        )
        spread = np.square(values - values.mean(1, keepdims=True)).sum(1)
        r2[rows] = 1 - error / np.maximum(spread, _FLAT)
        _, jacobian = _linearize(found[rows], x, y, values)
        curvature = jacobian.transpose(0, 2, 1) @ jacobian
        covariance[rows] = np.linalg.pinv(curvature, hermitian=True)
        tick(len(values))
    return _fit_of(found, covariance, r2, converged, h, w)


def _first_guess(maps: Array, sigma: float) -> Array:
    """(n, 7): a round Gaussian at the highest point of the smoothed map."""
    w = maps.shape[2]
    smooth = blurred(maps, sigma)
    peak = smooth.reshape(len(maps), -1).argmax(1)
    offset = np.median(maps, axis=(1, 2))
    height = np.maximum(smooth.reshape(len(maps), -1).max(1) - offset, 1e-3)
    columns = [2 * height, peak % w, peak // w, np.log(sigma), np.log(sigma) - 0.1, 0.0, offset]
    return np.stack([np.broadcast_to(column, len(maps)) for column in columns], axis=1).astype(np.float64)


def blurred(maps: Array, sigma: float) -> Array:
    """Each of (n, h, w) maps blurred by a Gaussian of `sigma` elements, renormalised at the edges."""
    for axis in (1, 2):
        distance = np.arange(maps.shape[axis])
        kernel = np.exp(-0.5 * ((distance[:, None] - distance) / sigma) ** 2)
        kernel /= kernel.sum(1, keepdims=True)
        maps = np.moveaxis(np.moveaxis(maps, axis, -1) @ kernel.T, -1, axis)
    return maps


def _linearize(parameters: Array, x: Array, y: Array, values: Array) -> tuple[Array, Array]:
    """Residuals (k, P), and the Jacobian of the model (k, P, 7)."""
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


def _fit_of(
    found: Array, covariance: Array, r2: Array, converged: npt.NDArray[np.bool_], h: int, w: int
) -> GaussianFit:
    amplitude, cx, cy, log_a, log_b, angle, offset = found.T
    sigma = np.exp([log_a, log_b])
    turned = sigma[1] > sigma[0]
    major, minor = sigma.max(0), sigma.min(0)
    share = (sigma / sigma.sum(0)).T  # d log(mean sigma) / d log sigma
    spread = np.einsum("ni,nij,nj->n", share, covariance[:, 3:5, 3:5], share)
    inside = (cx > -0.5) & (cx < w - 0.5) & (cy > -0.5) & (cy < h - 0.5)
    return GaussianFit(
        center=np.stack([cx, cy], axis=1),
        major=major,
        minor=minor,
        angle=np.degrees(angle + np.where(turned, np.pi / 2, 0)) % 180,
        amplitude=amplitude,
        offset=offset,
        r2=r2,
        center_error=np.sqrt(np.maximum(covariance[:, 1, 1] + covariance[:, 2, 2], 0)),
        size_error=np.sqrt(np.maximum(spread, 0)),
        ok=converged & inside & (minor > _TINY) & (major < h) & (amplitude > 0) & np.isfinite(found).all(1),
    )
