"""Gradient ascent over many neurons and starting images at once: one gradient request per step and 32 images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument
from v1t_client._predictor import DifferentiablePredictor
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.subject import BATCH, Subject
from v1t_client.insilico.most_exciting_inputs.canvas import Array, Canvas, blurred
from v1t_client.insilico.most_exciting_inputs.recipes import Recipe

__all__ = ["SAVED_EVERY", "Ascent", "ascend", "move", "respond_each", "slopes"]

SAVED_EVERY = 10  # steps


@dataclass(frozen=True, eq=False)
class Ascent:
    """The result of an ascent.

    Attributes:
        images: (n, S, C, h, w) standardised.
        trace: (n, S, steps + 1), the response of the neuron before each step and at the end.
    """

    images: Array
    trace: npt.NDArray[np.float32]


def ascend(
    subject: Subject,
    canvas: Canvas,
    recipe: Recipe,
    work: Work,
    *,
    name: str,
    start: Array,
    up: bool = True,
    constrain: Callable[[Array], Array] | None = None,
) -> Ascent:
    """Maximizes the response of each neuron from its own starting images, or minimizes it.

    Args:
        name: of the saved state that an interrupted ascent resumes from.
        start: (n, S, C, h, w) standardised, one row per neuron of the subject.
        up: True to maximize, False to minimize.
        constrain: projects images onto the constraint; that of the recipe by default.
    """
    n, S = start.shape[:2]
    if constrain is None:
        constrain = lambda images: canvas.constrain(images, recipe.constraint, recipe.size)  # noqa: E731
    state: dict[str, Any] = {"images": constrain(start), "trace": np.empty((n, S, recipe.steps + 1), np.float32)}
    sign = 1.0 if up else -1.0
    label = name.replace("_", " ")
    with work.resume(name, state, recipe.steps, every=SAVED_EVERY, counter="step", label=label) as loop:
        for (step,) in loop:
            images, trace = state["images"], state["trace"]
            trace[:, :, step], slope = slopes(subject, canvas, images)
            if up and step == 0 and (silent := ~slope.any((2, 3, 4))).any():
                # Half of all noise images leave a rectified neuron silent, without a gradient; their negatives may not.
                images[silent] *= -1
                trace[:, :, step], slope = slopes(subject, canvas, images)
            state["images"] = constrain(images + sign * move(slope, recipe, step))
    state["trace"][:, :, -1] = respond_each(subject, canvas, state["images"])
    return Ascent(state["images"], state["trace"])


def move(slope: Array, recipe: Recipe, step: int) -> Array:
    """The change of the images in one step, (n, S, C, h, w)."""
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
    rows = np.repeat(np.arange(n), S)  # the neuron of each image
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
