"""Questions with their answers, computed beforehand: whoever gets another's reply, or half of one, sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from server.inference.engine import Engine

__all__ = ["Answer", "Kind", "Question", "closest", "draw_questions", "load"]

Kind = Literal["predict", "gradient", "attention"]
TOLERANCE = 1e-5  # absolute for values below 1, else relative: a batch's other images change the last bits
SIZES = (1, 1, 1, 2, 3, 4, 8, 13, 32, 64)  # images


@dataclass(frozen=True)
class Answer:
    """What a bundle must reply, the arrays in the order of the .npy reply."""

    arrays: tuple[np.ndarray, ...]

    def differs(self, got: Sequence[np.ndarray]) -> str | None:
        """What is wrong with a reply, in words."""
        if len(got) != len(self.arrays):
            return f"{len(got)} arrays in place of {len(self.arrays)}"
        for i, (a, b) in enumerate(zip(got, self.arrays, strict=True)):
            if a.shape != b.shape:
                return f"array {i} has shape {a.shape} in place of {b.shape}"
            error = np.abs(np.asarray(a, np.float64) - b) / np.maximum(1, np.abs(b))
            if not error.max() <= TOLERANCE:
                return f"array {i} is off by {error.max():.2g}"
        return None


@dataclass(frozen=True, eq=False)
class Question:
    """One request, in numbers.

    Attributes:
        model: the bundle's name.
        image: (B, C, H, W), whole grey levels, so that a PNG can carry them.
        behavior: (B, 3).
        pupil_center: (B, 2).
        neuron_ids: None for all.
        weights: (n,) of a gradient.
        answers: by the hash of the bundle that may give them.
        alike: the bundle's other mice take the same images.
    """

    kind: Kind
    model: str
    mouse: str
    image: np.ndarray
    behavior: np.ndarray
    pupil_center: np.ndarray
    neuron_ids: list[int] | None
    units: Literal["standardized", "raw"]
    weights: np.ndarray | None
    answers: dict[str, Answer]
    alike: bool

    def __len__(self) -> int:
        return len(self.image)


def load(bundles: Iterable[Path]) -> list[Engine]:
    """The judges: engines of this process, one thread each."""
    return [Engine.load(bundle, provider="cpu", threads=1, max_batch=8) for bundle in bundles]


def draw_questions(
    engines: Sequence[Engine],
    rng: np.random.Generator,
    *,
    sizes: Sequence[int] = SIZES,
    each: int = 1,
    kinds: Sequence[Kind] = ("predict", "gradient", "attention"),
    subsets: bool = True,
) -> list[Question]:
    """`each` questions of every size for every mouse, and some of each other kind. Engines of one name share them.

    Args:
        subsets: let half of them ask about some neurons only.
    """
    questions: list[Question] = []
    alike: dict[tuple[str, str], list[Engine]] = {}
    for engine in engines:
        for mouse in engine.manifest.mice:
            alike.setdefault((engine.manifest.name, mouse), []).append(engine)
    for (_, mouse), judges in alike.items():
        if "predict" in kinds:
            questions += [_draw("predict", mouse, judges, size, rng, subsets) for size in sizes for _ in range(each)]
        if "gradient" in kinds and judges[0].manifest.has_gradients:
            questions += [_draw("gradient", mouse, judges, size, rng, subsets) for size in (1, 2)]
        if "attention" in kinds and judges[0].manifest.attention:
            questions += [_draw("attention", mouse, judges, size, rng, subsets) for size in (1, 3)]
    return questions


def _draw(
    kind: Kind, mouse: str, judges: Sequence[Engine], size: int, rng: np.random.Generator, subsets: bool
) -> Question:
    record, neurons = judges[0].manifest.mice[mouse], judges[0].neurons[mouse]
    image = rng.integers(0, 256, (size, *record.image_shape)).astype(np.float32)
    behavior, pupil_center = (
        np.stack([c.mean + c.std * rng.standard_normal(size) for c in channels], axis=1).astype(np.float32)  # type: ignore[operator]
        for channels in (record.behavior, record.pupil_center)
    )
    positions = None
    if subsets and kind != "attention" and rng.random() < 0.5:
        positions = rng.permutation(len(neurons))[: rng.integers(1, len(neurons))]
    raw = kind != "attention" and rng.random() < 0.5 and bool(np.isfinite(neurons.response_std).all())
    n_neurons = len(neurons) if positions is None else len(positions)
    weights = rng.standard_normal(n_neurons).astype(np.float32) if kind == "gradient" else None
    inputs = mouse, image, behavior, pupil_center
    answers = {judge.hash: _answer(judge, kind, inputs, positions, weights, raw=raw) for judge in judges}
    return Question(
        kind=kind,
        model=judges[0].manifest.name,
        mouse=mouse,
        image=image,
        behavior=behavior,
        pupil_center=pupil_center,
        neuron_ids=None if positions is None else neurons.ids[positions].tolist(),
        units="raw" if raw else "standardized",
        weights=weights,
        answers=answers,
        alike=len({other.image_shape for other in judges[0].manifest.mice.values()}) == 1,
    )


def _answer(
    engine: Engine,
    kind: Kind,
    inputs: tuple[str, np.ndarray, np.ndarray, np.ndarray],
    positions: np.ndarray | None,
    weights: np.ndarray | None,
    *,
    raw: bool,
) -> Answer:
    if kind == "attention":
        return Answer((engine.attention_rollout(*inputs).swapaxes(0, 1),))  # (M, B, h, w) -> (B, M, h, w)
    std = engine.neurons[inputs[0]].response_std.astype(np.float32)
    scale = (std if positions is None else std[positions]) if raw else np.float32(1)
    if kind == "gradient":
        assert weights is not None
        gradient = engine.gradient(*inputs, weights * scale, positions)
        return Answer((gradient.image, gradient.response * scale, gradient.behavior, gradient.pupil_center))
    (prediction,) = engine.predict_many([engine.check(*inputs, positions)])
    return Answer((np.stack([prediction.response * scale, prediction.spread * scale]),))  # (2, B, n)


def closest(questions: Sequence[Question]) -> float:
    """The smallest of the largest differences between any two answers of one shape: how far a swap would be off."""
    smallest = np.inf
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for question in questions:
        for answer in question.answers.values():
            for array in answer.arrays[:1]:
                others = by_shape.setdefault(array.shape, [])
                smallest = min([smallest, *(float(np.abs(array - other).max()) for other in others)])
                others.append(array)
    return smallest
