"""Questions with answers computed in advance, so that a reply to another question, or a part of one, is noticed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from server.inference.engine import Engine

__all__ = ["Answer", "Kind", "Question", "closest", "draw_questions", "load"]

Kind = Literal["predict", "gradient", "attention"]
TOLERANCE = 1e-5  # absolute below 1, relative above; the other images of a batch change the last bits
SIZES = (1, 1, 1, 2, 3, 4, 8, 13, 32, 64)  # images


@dataclass(frozen=True)
class Answer:
    """The expected reply of a bundle: its arrays in the order of the .npy reply."""

    arrays: tuple[np.ndarray, ...]

    def differs(self, got: Sequence[np.ndarray]) -> str | None:
        """How a reply differs from this answer; None if it is equal within the tolerance."""
        if len(got) != len(self.arrays):
            return f"{len(got)} arrays instead of {len(self.arrays)}"
        for i, (a, b) in enumerate(zip(got, self.arrays, strict=True)):
            if a.shape != b.shape:
                return f"array {i} has shape {a.shape} instead of {b.shape}"
            error = np.abs(np.asarray(a, np.float64) - b) / np.maximum(1, np.abs(b))
            if not error.max() <= TOLERANCE:
                return f"array {i} is off by {error.max():.2g}"
        return None


@dataclass(frozen=True, eq=False)
class Question:
    """One request.

    Attributes:
        model: the bundle's name.
        image: (B, C, H, W), integer grey levels, so that a PNG can hold them.
        behavior: (B, 3).
        pupil_center: (B, 2).
        neuron_ids: None for all.
        weights: (n,), for a gradient.
        answers: bundle hash -> its answer.
        alike: whether all mice of the bundle take images of the same shape.
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
    """The engines that compute the expected answers in this process, one thread each."""
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
    """`each` predictions of every size for every mouse, and some gradients and attention maps.

    Engines of bundles with the same name share questions.

    Args:
        subsets: ask half of the questions about some neurons only.
    """
    questions: list[Question] = []
    by_mouse: dict[tuple[str, str], list[Engine]] = {}
    for engine in engines:
        for mouse in engine.manifest.mice:
            by_mouse.setdefault((engine.manifest.name, mouse), []).append(engine)
    for (_, mouse), versions in by_mouse.items():
        if "predict" in kinds:
            questions += [_draw("predict", mouse, versions, size, rng, subsets) for size in sizes for _ in range(each)]
        if "gradient" in kinds and versions[0].manifest.has_gradients:
            questions += [_draw("gradient", mouse, versions, size, rng, subsets) for size in (1, 2)]
        if "attention" in kinds and versions[0].manifest.attention:
            questions += [_draw("attention", mouse, versions, size, rng, subsets) for size in (1, 3)]
    return questions


def _draw(
    kind: Kind, mouse: str, engines: Sequence[Engine], size: int, rng: np.random.Generator, subsets: bool
) -> Question:
    record, neurons = engines[0].manifest.mice[mouse], engines[0].neurons[mouse]
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
    answers = {engine.hash: _answer(engine, kind, inputs, positions, weights, raw=raw) for engine in engines}
    return Question(
        kind=kind,
        model=engines[0].manifest.name,
        mouse=mouse,
        image=image,
        behavior=behavior,
        pupil_center=pupil_center,
        neuron_ids=None if positions is None else neurons.ids[positions].tolist(),
        units="raw" if raw else "standardized",
        weights=weights,
        answers=answers,
        alike=len({other.image_shape for other in engines[0].manifest.mice.values()}) == 1,
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
    """The largest absolute difference of two answers of the same shape, for the two that are most alike."""
    smallest = np.inf
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for question in questions:
        for answer in question.answers.values():
            for array in answer.arrays[:1]:
                others = by_shape.setdefault(array.shape, [])
                smallest = min([smallest, *(float(np.abs(array - other).max()) for other in others)])
                others.append(array)
    return smallest
