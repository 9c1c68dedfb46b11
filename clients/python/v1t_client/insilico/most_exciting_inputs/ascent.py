"""Gradient ascent over many neurons and seeds at once: one gradient request per step and 32 images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument
from v1t_client._predictor import DifferentiablePredictor
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.subject import BATCH, Subject
from v1t_client.insilico.most_exciting_inputs.canvas import Array, Canvas, blurred
from v1t_client.insilico.most_exciting_inputs.recipes import Recipe

__all__ = ["KEPT_EVERY", "Climb", "climb", "move", "respond_each", "slopes"]

KEPT_EVERY = 10  # steps; what an interruption may cost


@dataclass(frozen=True, eq=False)
class Climb:
    """Where an ascent came to.

    Attributes:
        images: (n, S, C, h, w) standardised.
        trace: (n, S, steps + 1), the neuron's response before each step and at the end.
    """

    images: Array
    trace: npt.NDArray[np.float32]


def climb(
    subject: Subject,
    canvas: Canvas,
    recipe: Recipe,
    work: Work,
    *,
    name: str,
    start: Array,
    up: bool = True,
    bring_back: Callable[[Array], Array] | None = None,
) -> Climb:
    """Climbs the response of each neuron from its own starting images, or goes down it.

    Args:
        name: of the state that is kept each `KEPT_EVERY` steps: an interrupted climb goes on there.
        start: (n, S, C, h, w) standardised, one row per neuron of the subject.
        up: towards larger responses.
        bring_back: keeps the images on the constraint; the recipe's if left out.
    """
    n, S = start.shape[:2]
    if bring_back is None:
        bring_back = lambda images: canvas.constrain(images, recipe.constraint, recipe.size)  # noqa: E731
    images, trace, first = bring_back(start), np.empty((n, S, recipe.steps + 1), np.float32), 0
    if (kept := work.load(name)) is not None:
        images, trace, first = kept["images"], kept["trace"], int(kept["step"])
    sign = 1.0 if up else -1.0
    with work.progress(recipe.steps, name.replace("_", " "), done=first) as bar:
        for step in range(first, recipe.steps):
            trace[:, :, step], slope = slopes(subject, canvas, images)
            if up and step == 0 and (silent := ~slope.any((2, 3, 4))).any():
                # Half of all noise leaves a rectified neuron at rest, where nothing leads up; its negative may not.
                images[silent] *= -1
                trace[:, :, step], slope = slopes(subject, canvas, images)
            images = bring_back(images + sign * move(slope, recipe, step))
            if (step + 1) % KEPT_EVERY == 0:
                work.save(name, images=images, trace=trace, step=step + 1)
            bar.update(1)
    trace[:, :, -1] = respond_each(subject, canvas, images)
    work.save(name, images=images, trace=trace, step=recipe.steps)
    return Climb(images, trace)


def move(slope: Array, recipe: Recipe, step: int) -> Array:
    """What a step adds, (n, S, C, h, w)."""
    done = step / max(1, recipe.steps - 1)
    slope = blurred(slope, recipe.first_blur + done * (recipe.last_blur - recipe.first_blur))
    length = recipe.first_step + done * (recipe.last_step - recipe.first_step)
    if recipe.step_unit == "gradient":
        return length * slope
    size = np.abs(slope).mean((-3, -2, -1), keepdims=True)
    return length * slope / np.where(size > 0, size, 1.0)


def slopes(subject: Subject, canvas: Canvas, images: Array) -> tuple[npt.NDArray[np.float32], Array]:
    """Response of each neuron to its own images (n, S), and d response / d image (n, S, C, h, w)."""
    n, S = images.shape[:2]
    rows = np.repeat(np.arange(n), S)  # which neuron each image is for
    flat = images.reshape(n * S, *images.shape[2:])
    responses, slope = np.empty(n * S, np.float32), np.empty(flat.shape)
    for start in range(0, n * S, BATCH):
        piece = slice(start, start + BATCH)
        own, column = np.unique(rows[piece], return_inverse=True)
        each = np.arange(len(column))
        weights = np.zeros((len(column), len(own)), np.uint8)
        weights[each, column] = 1
        gradient = _differentiable(subject).gradient(
            subject.mouse.mouse_id,
            canvas.show(flat[piece]),
            weights=weights,
            neuron_ids=subject.neurons.neuron_ids[own],
            model=subject.mouse.model,
            **subject.state,
        )
        subject.note(gradient)
        responses[piece] = gradient.responses[each, column]
        slope[piece] = canvas.pull_back(gradient.image)
    return responses.reshape(n, S), slope.reshape(images.shape)


def respond_each(subject: Subject, canvas: Canvas, images: Array) -> npt.NDArray[np.float32]:
    """(n, S): the response of each neuron to its own images (n, S, C, h, w)."""
    n, S = images.shape[:2]
    responses = np.empty((n, S), np.float32)
    for row in range(n):
        responses[row] = subject.only(row).respond(canvas.show(images[row]))[:, 0]
    return responses


def _differentiable(subject: Subject) -> DifferentiablePredictor:
    if not hasattr(subject.predictor, "gradient"):
        raise InvalidArgument(
            "this predictor has no gradients", got=type(subject.predictor).__name__, expected="a method `gradient`"
        )
    return cast("DifferentiablePredictor", subject.predictor)
