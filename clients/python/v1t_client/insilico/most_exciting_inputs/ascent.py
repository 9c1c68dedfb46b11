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

__all__ = ["SAVED_EVERY", "Ascent", "ascend", "is_flat", "move", "respond_each", "slopes"]

SAVED_EVERY = 10  # steps
LEAST_GAIN = 0.002  # of the rise so far, within a window


@dataclass(frozen=True, eq=False)
class Ascent:
    """The result of an ascent.

    Attributes:
        images: (n, S, C, h, w) standardised.
        trace: (n, S, steps + 1), the response of the neuron before each step and at the end. A search that was done
            before keeps its last response.
        steps: (n, S), how many steps the search took.
    """

    images: Array
    trace: npt.NDArray[np.float32]
    steps: npt.NDArray[np.int64]


def ascend(
    subject: Subject,
    canvas: Canvas,
    recipe: Recipe,
    work: Work,
    *,
    name: str,
    start: Array,
    window: int,
    up: bool = True,
    constrain: Callable[[Array], Array] | None = None,
) -> Ascent:
    """Maximizes the response of each neuron from its own starting images, or minimizes it.

    A search whose response is flat (`is_flat`) is done where the recipe's steps are all alike. Where they become
    smaller it leaves out half of the steps that remain, if they are more than a window, and is done after the last.
    The recipe's number of steps is the bound.

    Args:
        name: of the saved state that an interrupted ascent resumes from.
        start: (n, S, C, h, w) standardised, one row per neuron of the subject.
        window: number of steps, see `is_flat`.
        up: True to maximize, False to minimize.
        constrain: projects images onto the constraint; that of the recipe by default.
    """
    n, S = start.shape[:2]
    if constrain is None:
        constrain = lambda images: canvas.constrain(images, recipe.constraint, recipe.size)  # noqa: E731
    state: dict[str, Any] = {
        "images": constrain(start),
        "trace": np.empty((n, S, recipe.steps + 1), np.float32),
        "steps": np.full((n, S), recipe.steps),  # the bound, until a search is done
        "position": np.zeros((n, S), np.int64),  # in the recipe's steps
        "since": np.full((n, S), window),  # the step that the last ones were left out at
    }
    sign = 1.0 if up else -1.0
    label = f"steps, {name.replace('_', ' ')}" + ("" if "surround" in name else " exciting inputs")
    with work.resume(
        name, state, recipe.steps, every=SAVED_EVERY, counter="step", label=label, at_most=window > 0
    ) as loop:
        for (step,) in loop:
            images, trace, steps = state["images"], state["trace"], state["steps"]
            if not (active := steps > step).any():
                break
            response, slope = slopes(subject, canvas, images, active)
            trace[:, :, step] = response if step == 0 else np.where(active, response, trace[:, :, step - 1])
            if up and step == 0 and (silent := ~slope.any((2, 3, 4))).any():
                # Half of all noise images leave a rectified neuron silent, without a gradient; their negatives may not.
                images[silent] *= -1
                trace[:, :, step], slope = slopes(subject, canvas, images)
            position, since = state["position"], state["since"]
            moved = constrain(images + sign * move(slope, recipe, position))
            flat = active & is_flat(sign * trace[:, :, : step + 1], since, window)
            rest = recipe.steps - position
            done = position >= recipe.steps if recipe.is_falling else flat
            steps[active & done] = step
            position += np.where(flat & (rest > window), rest // 2, 1)
            since[flat] = step
            state["images"] = np.where((steps > step)[..., None, None, None], moved, images)
    is_after = np.arange(recipe.steps + 1) > state["steps"][..., None]
    last = np.take_along_axis(state["trace"], state["steps"][..., None], axis=2)
    state["trace"] = np.where(is_after, last, state["trace"])
    state["trace"][:, :, -1] = respond_each(subject, canvas, state["images"])
    return Ascent(state["images"], state["trace"], state["steps"])


def is_flat(trace: npt.NDArray[np.float32], since: npt.NDArray[np.int64], window: int) -> npt.NDArray[np.bool_]:
    """Which searches rose by at most 0.2 % of their rise so far within the last steps: (n, S).

    Args:
        trace: (n, S, steps so far + 1), responses that are maximized.
        since: (n, S), a search is not flat within `window` steps of this one.
        window: how many steps; 0: never flat.
    """
    if window == 0 or trace.shape[2] <= window:
        return np.zeros(trace.shape[:2], dtype=bool)
    best = trace.max(2)
    gain = best - trace[:, :, :-window].max(2)
    is_old = trace.shape[2] - 1 >= since + window
    return np.asarray(is_old & (gain <= LEAST_GAIN * (best - trace[:, :, 0])))


def move(slope: Array, recipe: Recipe, position: npt.NDArray[np.int64]) -> Array:
    """The change of the images (n, S, C, h, w) in the step at this position (n, S) of the recipe."""
    change = np.empty(slope.shape)
    for at in np.unique(position):
        done = min(at / max(1, recipe.steps - 1), 1.0)
        one = blurred(slope[position == at], recipe.first_blur + done * (recipe.last_blur - recipe.first_blur))
        length = recipe.first_step + done * (recipe.last_step - recipe.first_step)
        size = np.abs(one).mean((-3, -2, -1), keepdims=True)
        change[position == at] = length * (
            one if recipe.step_unit == "gradient" else one / np.where(size > 0, size, 1.0)
        )
    return change


def slopes(
    subject: Subject, canvas: Canvas, images: Array, active: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.float32], Array]:
    """Response of each neuron to its own images (n, S), and d response / d image (n, S, C, h, w).

    Args:
        active: (n, S), which images; the others get zeros. All by default.
    """
    n, S = images.shape[:2]
    rows = np.repeat(np.arange(n), S)  # the neuron of each image
    flat = images.reshape(n * S, *images.shape[2:])
    responses, slope = np.zeros(n * S, np.float32), np.zeros(flat.shape)
    chosen = np.arange(n * S) if active is None else np.flatnonzero(active)
    for start in range(0, len(chosen), BATCH):
        piece = chosen[start : start + BATCH]
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
