"""Levenberg-Marquardt least squares for many curves or maps at once, each with parameters of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "least_squares"]

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
Linearize = Callable[[Array, Rows], tuple[Array, Array]]
_FIRST_DAMPING, _LAST_DAMPING = 1e-2, 1e8


def least_squares(
    linearize: Linearize,
    starts: Iterable[Array],
    *,
    low: Array,
    high: Array,
    max_step: Array | float,
    damping_floor: float,
    tolerance: float,
    max_steps: int,
    refine: bool,
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Minimizes the squared residuals of each of n fits from several starts, and keeps the best.

    Args:
        linearize: parameters (k, p) of the fits `rows` (k,) -> residuals data - model (k, P), and the Jacobian of the
            model (k, P, p).
        starts: first guesses (n, p).
        low, high: (p,), bounds of the parameters.
        max_step: (p,) or one number, the largest change of a parameter in one step.
        damping_floor: added to the damped diagonal, so that a parameter without effect does not make it singular.
        tolerance: a fit has converged when a step lowers its error by less than this share.
        max_steps: steps from each start.
        refine: True: converged fits take further steps until the last has converged; False: they stop.

    Returns:
        Parameters (n, p), squared errors (n,), and whether they converged (n,).
    """
    best: tuple[Array, Array, npt.NDArray[np.bool_]] | None = None
    for start in starts:
        parameters = np.clip(start, low, high)
        n, p = parameters.shape
        damping, done, rows = np.full(n, _FIRST_DAMPING), np.zeros(n, dtype=bool), np.arange(n)
        residual, jacobian = linearize(parameters, rows)
        error = np.square(residual).sum(1)
        for _ in range(max_steps):
            curvature = jacobian.transpose(0, 2, 1) @ jacobian  # (k, p, p)
            slope = jacobian.transpose(0, 2, 1) @ residual[..., None]  # (k, p, 1)
            diagonal = np.einsum("kii->ki", curvature)
            damped = curvature + (damping[rows, None] * diagonal + damping_floor)[:, :, None] * np.eye(p)
            step = np.clip(np.linalg.solve(damped, slope)[..., 0], -max_step, max_step)
            tried = np.clip(parameters[rows] + step, low, high)
            new_residual, new_jacobian = linearize(tried, rows)
            new_error = np.square(new_residual).sum(1)
            better = new_error < error[rows]
            converged = better & (error[rows] - new_error <= tolerance * error[rows])
            done[rows] |= converged | (damping[rows] > _LAST_DAMPING)
            parameters[rows[better]], error[rows[better]] = tried[better], new_error[better]
            residual[better], jacobian[better] = new_residual[better], new_jacobian[better]
            damping[rows] = np.where(better, damping[rows] / 5, np.minimum(damping[rows] * 4, 10 * _LAST_DAMPING))
            if done.all():
                break
            if not refine:
                unfinished = ~done[rows]
                rows, residual, jacobian = rows[unfinished], residual[unfinished], jacobian[unfinished]
        if best is None:
            best = parameters, error, done
        else:
            wins = error < best[1]
            for kept, new in zip(best, (parameters, error, done), strict=True):
                kept[wins] = new[wins]
    assert best is not None, "no starts"
    return best
