"""The variance of responses, partitioned into image, behaviour, gaze and rest.

A prediction f depends on a trial's image i, behaviour b (dilation, its derivative, running speed) and gaze g. Images
come in random order, so i is independent of (b, g). With

    f_i  = E[f | i]       over the pairs (b, g) of the trials, as they were recorded together
    f_b  = E[f | b]       over the images, and over the gazes of the trials
    f_ib = E[f | i, b]    over the gazes of the trials

and e(h) = 2 Cov(r, h) - Cov(f, h), which is what h explains of Var(r) if it is added to the prediction, the parts are

    image            e(f_i)
    behavior         e(f_b)                        the same for all images
    image_x_behavior e(f_ib) - e(f_i) - e(f_b)     such as a gain, which scales what the image evokes
    gaze             e(f) - e(f_ib)                with all of its interactions
    rest             Var(r - f)                    noise, and what the prediction misses

They sum to Var(r). For r = f, e(h) is Cov(f, h), the parts are those of the prediction's own variance (Sobol' indices,
in the order image, behaviour, gaze), and the rest is 0. Conditional means are estimated by shuffling the other inputs
over the trials. Cov(f, h) is then unbiased for any number of shuffles, since f and h share only what is not shuffled.
Where b and g depend on each other, what both could explain counts for b.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["PARTS", "partition", "share_that_needs"]

PARTS = ("image", "behavior", "image_x_behavior", "gaze", "rest")


def partition(responses: np.ndarray, prediction: np.ndarray, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parts (N,) of each neuron's variance, as shares of it; NaN for a neuron with constant responses.

    Args:
        responses, prediction: (T, N) r and f.
        means: "i", "b" and "ib" -> (T, N) estimates of f_i, f_b and f_ib.
    """
    explained = {
        name: 2 * _covariance(responses, mean) - _covariance(prediction, mean)
        for name, mean in {**means, "all": prediction}.items()
    }
    total = _covariance(responses, responses)
    parts = {
        "image": explained["i"],
        "behavior": explained["b"],
        "image_x_behavior": explained["ib"] - explained["i"] - explained["b"],
        "gaze": explained["all"] - explained["ib"],
        "rest": total - explained["all"],
    }
    return {name: _share(part, total) for name, part in parts.items()}


def share_that_needs(prediction: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """(N,) share of the prediction's variance that needs an input, alone or together with others (total Sobol' index).

    Args:
        prediction, shuffled: (T, N), with the input as recorded, and shuffled over trials (mean over shuffles).
    """
    total = _covariance(prediction, prediction)
    return _share(total - _covariance(prediction, shuffled), total)


def _covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) over trials, unbiased."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.asarray(((a - a.mean(0)) * (b - b.mean(0))).sum(0) / (len(a) - 1))


def _share(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(part, total, out=np.full_like(total, np.nan), where=total > 0)
