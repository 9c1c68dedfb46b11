"""Whether trials belong to their images, and if not, by how many trials they are shifted.

Two measures, both over neurons and near zero if trials and images are paired wrongly:

    repeats   mean correlation of two trials of the same image: <z_t z_u> over pairs of trials, z standardised responses
    relation  correlation of the responses with a cross-validated linear prediction from the image (coarse grey levels
              and local contrast), with images, not trials, held out

Repeats do not exist in every recording, and cannot tell whether the images are in another order; the relation
can. Both are computed for shifts of the images against the responses in the order of time, and compared with random
pairs: z = (value - mean) / std over permutations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["SHIFTS", "Alignment", "Measure", "align", "image_features"]

SHIFTS = 10  # trials to each side
PERMUTATIONS = 20
NEURONS, TRIALS = 300, 4000  # more of them, drawn at random, would change little
GRID = 8  # rows of the coarse image
FOLDS = 2
RIDGE = 0.1  # times the mean variance of the features times the number of trials
LEAST_PAIRS = 20
PARTS = 4  # of the session, for a shift that begins in the middle
PRESENT, CLEAR = 3.0, 6.0  # z: of what is there, and of what is worth telling where
MUCH = 2.0  # a shift is told if it is this much better than none


@dataclass(frozen=True, eq=False)
class Measure:
    """One measure by shift.

    Attributes:
        values: (2 SHIFTS + 1,) for shifts from -SHIFTS to SHIFTS: trial t with the image of trial t + shift.
        z: (2 SHIFTS + 1,) the same in standard deviations of random pairs.
    """

    values: np.ndarray
    z: np.ndarray

    @property
    def value(self) -> float:
        return float(self.values[SHIFTS])

    @property
    def present(self) -> bool:
        return bool(self.z[SHIFTS] >= PRESENT)

    @property
    def shift(self) -> int:
        """The shift that is clearly better than none; 0 if there is none."""
        best = int(np.argmax(self.values))
        clear = self.z[best] >= CLEAR and self.values[best] > MUCH * max(self.value, 0)
        return best - SHIFTS if clear else 0


@dataclass(frozen=True, eq=False)
class Alignment:
    """How trials and images fit.

    Attributes:
        repeats: None without repeated images; relation: None without images.
        parts: (first trial in time, last, shift) of parts of the session that are shifted against the others.
    """

    repeats: Measure | None
    relation: Measure | None
    parts: tuple[tuple[int, int, int], ...]

    def flags(self) -> list[str]:
        """What is wrong, a sentence each."""
        if self.parts:
            told = ", ".join(f"{first} to {last} (by {shift:+d})" for first, last, shift in self.parts)
            return [f"trials are misaligned with their images in a part of the session: {told} in the order of time"]
        if shift := next((one.shift for one in (self.repeats, self.relation) if one is not None and one.shift), 0):
            return [
                f"trials are misaligned with their images by {abs(shift)}: the response of trial t fits the image of "
                f"trial t{shift:+d} in the order of time, not its own"
            ]
        repeated = None if self.repeats is None else self.repeats.present
        related = None if self.relation is None else self.relation.present
        if not repeated and not related:
            return [
                "trials are misaligned with their images, or the neurons do not respond to them: responses to the same "
                "image agree no better than to different ones, and images do not predict them"
                if repeated is not None
                else "trials are misaligned with their images, or the neurons do not respond to them: images do not "
                "predict responses"
            ]
        if repeated and related is False:
            return [
                "responses repeat, but have no relation to the images: their order may differ from that of their ids"
            ]
        if repeated is False and related:
            return ["images predict responses, but trials of the same image do not agree: image ids may be wrong"]
        return []


def align(responses: np.ndarray, image_ids: np.ndarray, features: np.ndarray | None, *, seed: int = 0) -> Alignment:
    """Measures how trials and images fit.

    Args:
        responses: (T, N); image_ids: (T,); features: (T, F) of `image_features`, or None. All in the order of time.
    """
    rng = np.random.default_rng(seed)
    neurons = np.sort(rng.permutation(responses.shape[1])[:NEURONS])
    z = _standardized(responses[:, neurons].astype(np.float64))
    _, index, counts = np.unique(image_ids, return_inverse=True, return_counts=True)
    repeats = None
    if (counts * (counts - 1) // 2).sum() >= LEAST_PAIRS:
        repeats = _measure(lambda order: _repeats(z, index[order]), index, rng, only=counts[index] > 1)
    relation = None
    if features is not None and len(counts) >= 2 * FOLDS:
        some = np.sort(rng.permutation(len(z))[:TRIALS])
        fold = rng.permutation(len(counts)) % FOLDS  # by image
        relation = _measure(
            lambda order: _relation(z, features[order], fold[index[order]], some), index, rng, only=None
        )
    parts = () if repeats is None else _shifted_parts(z, index, rng)
    return Alignment(repeats, relation, parts)


def _measure(
    value: Callable[[np.ndarray], float], index: np.ndarray, rng: np.random.Generator, *, only: np.ndarray | None
) -> Measure:
    """A measure for every shift, and for random pairs of trials and images. `value` takes (T,) whose image each has."""
    order = np.arange(len(index))
    values = np.array([value(np.roll(order, -shift)) for shift in range(-SHIFTS, SHIFTS + 1)])
    random = []
    for _ in range(PERMUTATIONS):
        shuffled = order.copy()
        if only is None:
            shuffled = rng.permutation(order)
        else:
            shuffled[only] = rng.permutation(order[only])
        random.append(value(shuffled))
    spread = max(float(np.std(random, ddof=1)), 1e-9)
    return Measure(values, (values - np.mean(random)) / spread)


def _standardized(responses: np.ndarray) -> np.ndarray:
    std = responses.std(0)
    return (responses - responses.mean(0)) / np.where(std > 0, std, 1)


def _sums(z: np.ndarray, index: np.ndarray, n: int) -> np.ndarray:
    """(n, N) sums over the trials of each image."""
    result = np.zeros((n, z.shape[1]))
    order = np.argsort(index, kind="stable")
    present, starts = np.unique(index[order], return_index=True)
    result[present] = np.add.reduceat(z[order], starts, axis=0)
    return result


def _repeats(z: np.ndarray, index: np.ndarray) -> float:
    counts = np.bincount(index)
    pairs = float((counts * (counts - 1)).sum())
    several = counts[index] > 1
    total = (_sums(z[several], index[several], len(counts)) ** 2).sum() - (z[several] ** 2).sum()
    return float(total / pairs / z.shape[1])


def _relation(z: np.ndarray, features: np.ndarray, fold: np.ndarray, some: np.ndarray) -> float:
    z, x, fold = z[some], features[some], fold[some]
    predicted = np.zeros_like(z)
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        center = x[train].mean(0)
        a, b = x[train] - center, z[train] - z[train].mean(0)
        gram = a.T @ a
        weights = np.linalg.solve(gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), a.T @ b)
        predicted[test] = (x[test] - center) @ weights
        predicted[test] -= predicted[test].mean(0)
    return float((_standardized(predicted) * z).mean())


def _shifted_parts(z: np.ndarray, index: np.ndarray, rng: np.random.Generator) -> tuple[tuple[int, int, int], ...]:
    """The parts whose trials fit the other parts' trials of the same image better after a shift."""
    n, found = int(index.max()) + 1, []
    for own in np.array_split(np.arange(len(z)), PARTS):
        others = np.setdiff1d(np.arange(len(z)), own)
        sums, counts = _sums(z[others], index[others], n), np.bincount(index[others], minlength=n)

        def value(images: np.ndarray, own: np.ndarray = own, s: np.ndarray = sums, c: np.ndarray = counts) -> float:
            return float((z[own] * s[images]).sum() / max(c[images].sum(), 1) / z.shape[1])

        shifts = range(-SHIFTS, SHIFTS + 1)
        values = np.array([value(index[np.clip(own + shift, 0, len(z) - 1)]) for shift in shifts])
        random = [value(rng.permutation(index[own])) for _ in range(PERMUTATIONS)]
        scores = (values - np.mean(random)) / max(float(np.std(random, ddof=1)), 1e-9)
        measure = Measure(values, scores)
        if measure.shift:
            found.append((int(own[0]), int(own[-1]), measure.shift))
    return tuple(found)


def image_features(images: np.ndarray) -> np.ndarray:
    """(B, F) coarse grey levels, and the local contrast at half that resolution. images: (B, C, H, W)."""
    gray = images.astype(np.float64).mean(1)  # (B, H, W)
    levels = _blocks(gray, GRID)
    contrast = np.sqrt(np.maximum(_blocks(gray**2, GRID // 2) - _blocks(gray, GRID // 2) ** 2, 0))
    return np.concatenate([levels.reshape(len(gray), -1), contrast.reshape(len(gray), -1)], axis=1)


def _blocks(gray: np.ndarray, rows: int) -> np.ndarray:
    """(B, h, w) means over blocks, `rows` of them in the height."""
    _, H, W = gray.shape
    rows, columns = min(rows, H), min(max(round(rows * W / H), 1), W)
    parts = [np.linspace(0, length, n + 1).astype(int)[:-1] for length, n in ((H, rows), (W, columns))]
    sums = np.add.reduceat(np.add.reduceat(gray, parts[0], axis=1), parts[1], axis=2)
    sizes = np.diff([*parts[0], H])[:, None] * np.diff([*parts[1], W])
    return sums / sizes
