"""Scores of predictions, per neuron: correlations, explained variance and reliability.

Arrays are recorded `responses` (T, N) and `predictions` (T, N), in the same units, with trials in any order. Equal
`image_ids` (T,) mark trials of the same image. All sums are float64. A neuron whose responses (or predictions) are
constant has no correlation: it counts as 0, as in the reference code, so that it cannot raise a mean.
"""

from __future__ import annotations

import numpy as np

from training.errors import ScoringError

__all__ = [
    "FEV_THRESHOLD",
    "average_by_image",
    "ccnorm",
    "correlation_to_average",
    "fev_feve",
    "mean_feve",
    "single_trial_correlation",
    "split_half_reliability",
]

FEV_THRESHOLD = 0.15  # Cadena et al. 2019, not the V1T paper: neurons below it are left out of the mean FEVE


def single_trial_correlation(responses: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """(N,) correlation over single trials: corr_t(r_t, p_t) (paper, equation 5; Willeke et al. 2022)."""
    responses, predictions = _pair(responses, predictions)
    return _correlate(responses, predictions)


def correlation_to_average(responses: np.ndarray, predictions: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """(N,) correlation over images of the means over repeats: corr_i(<r>_i, <p>_i) (paper, equation 6).

    Predictions of a model with behaviour differ between repeats, so they are averaged as well.
    """
    responses, predictions = _pair(responses, predictions)
    return _correlate(average_by_image(responses, image_ids)[0], average_by_image(predictions, image_ids)[0])


def fev_feve(
    responses: np.ndarray, predictions: np.ndarray, image_ids: np.ndarray, *, dtype: type[np.floating] = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) fraction of explainable variance, and (N,) the fraction of it that predictions explain.

        FEV  = (Var[r] - s2) / Var[r]
        FEVE = 1 - (mean (r - p)^2 - s2) / (Var[r] - s2)
        s2   = mean over images of the variance over repeats

    with unbiased variances (Cadena et al. 2019; Willeke et al. 2022). FEVE is meaningless where FEV is small: there it
    is a quotient of two rounding errors, see `mean_feve`. Both are NaN for a silent neuron.

    Args:
        dtype: float32, with the trials in the order of their trial ids, reproduces the rounding of the reference code,
            which reaches 4e-4 in FEVE where FEV is about 0.
    """
    responses, predictions = _pair(responses, predictions, dtype)
    image_ids = np.asarray(image_ids)
    ids = _images(responses, image_ids, at_least=2)[0]
    shown = [responses[image_ids == image_id] for image_id in ids]  # I times (R, N)
    predicted = [predictions[image_ids == image_id] for image_id in ids]
    noise = np.mean([r.var(0, ddof=1) for r in shown], axis=0)  # (N,)
    total = np.vstack(shown).var(0, ddof=1)
    error = ((np.vstack(shown) - np.vstack(predicted)) ** 2).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        fev = (total - noise) / total
        feve = 1 - (error - noise) / (total - noise)
    return fev, feve


def mean_feve(fev: np.ndarray, feve: np.ndarray, threshold: float = FEV_THRESHOLD) -> float:
    """Mean FEVE over the neurons with FEV >= threshold; NaN if there are none."""
    kept = feve[fev >= threshold]
    return float(kept.mean()) if len(kept) else float("nan")


def split_half_reliability(
    responses: np.ndarray, image_ids: np.ndarray, *, n_splits: int = 20, seed: int = 0
) -> np.ndarray:
    """(N,) reliability of the mean over repeats: split-half correlation, corrected by Spearman and Brown (1910).

        rho = 2 c / (1 + c),  c = corr_i(<r>_i over one random half of the repeats, <r>_i over the other)

    averaged over random splits. With an odd number of repeats, each split leaves one out.
    """
    responses = np.asarray(responses, dtype=np.float64)
    _, inverse, repeats = _images(responses, image_ids, at_least=2)
    rng = np.random.default_rng(seed)
    first = np.concatenate([[0], np.cumsum(repeats)[:-1]])  # index of each image's first trial among the sorted trials
    correlation = np.zeros(responses.shape[1])
    for _ in range(n_splits):
        order = np.lexsort((rng.random(len(inverse)), inverse))  # trials by image, in random order within
        place = np.arange(len(order)) - first[inverse[order]]
        half = repeats[inverse[order]] // 2
        one, other = order[place < half], order[(place >= half) & (place < 2 * half)]
        correlation += _correlate(
            average_by_image(responses[one], inverse[one])[0], average_by_image(responses[other], inverse[other])[0]
        )
    correlation /= n_splits
    return np.where(correlation > -1, 2 * correlation / np.maximum(1 + correlation, 1e-12), -1.0)


def ccnorm(responses: np.ndarray, predictions: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """(N,) correlation to the average, normalised by its noise ceiling (Schoppe et al. 2016, equation 7).

        CCnorm = Cov(<p>, y) / sqrt(Var(<p>) SP),  y = mean response over R repeats
        SP     = (Var(sum over repeats of r) - sum over repeats of Var(r)) / (R (R - 1))     signal power

    over images, per neuron. NaN where the signal power is not positive: such a neuron has no reliable response. This is
    not the reference code's `normalized_correlation`, which correlates across neurons.

    Raises:
        ScoringError: not all images were shown equally often, for which the formula is not defined.
    """
    responses, predictions = _pair(responses, predictions)
    _, inverse, repeats = _images(responses, image_ids, at_least=2)
    if len(set(repeats.tolist())) > 1:
        raise ScoringError(
            "CCnorm needs the same number of repeats of every image",
            got=f"{repeats.min()} to {repeats.max()} repeats",
            hint="Leave out images or repeats.",
        )
    R = int(repeats[0])
    cube = responses[np.argsort(inverse, kind="stable")].reshape(len(repeats), R, -1)  # (I, R, N)
    power = (cube.sum(1).var(0, ddof=1) - cube.var(0, ddof=1).sum(0)) / (R * (R - 1))  # (N,)
    average = average_by_image(predictions, image_ids)[0]  # (I, N)
    average = average - average.mean(0)
    covariance = (average * cube.mean(1)).sum(0) / (len(repeats) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(np.where(power > 0, power, np.nan) * average.var(0, ddof=1))
        return np.where(scale == 0, 0.0, covariance / scale)


def average_by_image(values: np.ndarray, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (I, N) over the trials of each image, and the image ids (I,), sorted."""
    values = np.asarray(values, dtype=np.float64)
    ids, inverse, repeats = _images(values, image_ids)
    return _sum_by_image(values, inverse, len(ids)) / repeats[:, None], ids


def _images(
    values: np.ndarray, image_ids: np.ndarray, *, at_least: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct image ids (I,), each trial's index among them (T,), and how often each was shown (I,)."""
    if np.shape(image_ids) != values.shape[:1]:
        raise ScoringError("image_ids do not fit the responses", got=np.shape(image_ids), expected=values.shape[:1])
    ids, inverse, repeats = np.unique(image_ids, return_inverse=True, return_counts=True)
    if repeats.min() < at_least:
        raise ScoringError(
            f"image {ids[repeats.argmin()]} was not repeated",
            got=f"{repeats.min()} trial",
            expected=f"{at_least} or more of every image",
            hint="Use the test tier: only its images are repeated.",
        )
    return ids, inverse, repeats


def _sum_by_image(values: np.ndarray, inverse: np.ndarray, n_images: int) -> np.ndarray:
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(n_images))
    return np.add.reduceat(values[order], starts, axis=0)


def _pair(
    responses: np.ndarray, predictions: np.ndarray, dtype: type[np.floating] = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    responses, predictions = np.asarray(responses, dtype), np.asarray(predictions, dtype)
    if responses.ndim != 2 or responses.shape != predictions.shape or responses.size == 0:
        raise ScoringError(
            "responses and predictions must have the same shape",
            got=f"{responses.shape} and {predictions.shape}",
            expected="(T, N)",
        )
    return responses, predictions


def _correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) Pearson correlation over the first axis; 0 where either is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return np.divide((a * b).sum(0), scale, out=np.zeros_like(scale), where=scale > 0)
