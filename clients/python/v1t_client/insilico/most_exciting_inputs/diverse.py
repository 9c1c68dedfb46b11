"""Diverse exciting inputs: images that excite a neuron almost as much as its best image, but differ from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.subject import Subject
from v1t_client.insilico.most_exciting_inputs.ascent import SAVED_EVERY, slopes
from v1t_client.insilico.most_exciting_inputs.canvas import Array, Canvas, blurred
from v1t_client.insilico.most_exciting_inputs.recipes import Recipe

__all__ = ["Diverse", "diversify", "pairwise_distance"]

FIRST_STEP, LAST_STEP = 0.15, 0.02  # of an image's norm
BLUR = 1.0  # px
SOFT = 0.05  # of the best response; an image this far above its share moves by distance alone


@dataclass(frozen=True, eq=False)
class Diverse:
    """K images per neuron.

    Attributes:
        images: (n, K, C, h, w) standardised.
        responses: (n, K).
        distance: (n,), mean distance between two images inside the mask, in standard deviations.
    """

    images: Array
    responses: npt.NDArray[np.float32]
    distance: Array


def diversify(
    subject: Subject,
    canvas: Canvas,
    recipe: Recipe,
    work: Work,
    *,
    best: Array,
    masks: Array,
    responses: npt.NDArray[np.float32],
    share: float,
    n_images: int,
    n_steps: int,
    rngs: list[np.random.Generator],
) -> Diverse:
    """Pushes images apart inside the mask while each keeps at least `share` of the best response.

    All images start from the best image plus a little noise. Each moves away from the others, mostly from the nearest,
    in directions that do not lower its response to first order. As its response approaches the share, it ascends the
    gradient instead. Each neuron keeps its most diverse set in which every image had its share.

    Args:
        best: (n, C, h, w), the most exciting input, standardised. `responses`: (n,), to it. `masks`: (n, h, w).
        rngs: one per neuron.
    """
    n = len(best)
    length = np.sqrt((best**2).sum((1, 2, 3)))[:, None, None, None, None]
    noise = np.stack([rng.standard_normal((n_images, *best.shape[1:])) for rng in rngs])
    noise = blurred(noise, BLUR) * masks[:, None, None]
    noise *= 0.1 * length / np.sqrt((noise**2).sum((2, 3, 4), keepdims=True) + 1e-12)
    images = canvas.constrain(best[:, None] + noise, recipe.constraint, recipe.size)
    state: dict[str, Any] = {
        "images": images,
        "kept": np.repeat(best[:, None], n_images, axis=1),
        "kept_responses": np.repeat(responses[:, None], n_images, axis=1),
        "distance": np.zeros(n),
    }
    with work.resume("diverse", state, n_steps + 1, every=SAVED_EVERY, counter="step") as loop:
        for (step,) in loop:
            images = state["images"]
            now, slope = slopes(subject, canvas, images)  # (n, K), (n, K, C, h, w)
            apart = pairwise_distance(images, masks)
            better = (now >= share * responses[:, None]).all(1) & (apart > state["distance"])
            for name, values in (("kept", images), ("kept_responses", now), ("distance", apart)):
                state[name][better] = values[better]
            if step == n_steps:
                break
            away = _repulsion(images, masks)
            slope = _unit(blurred(slope, BLUR))
            downhill = np.minimum((away * slope).sum((2, 3, 4), keepdims=True), 0)
            away = _unit(away - downhill * slope)
            spare = (now / np.maximum(responses[:, None], 1e-9) - share) / SOFT
            free = np.clip(spare, 0, 1)[..., None, None, None]
            size = FIRST_STEP + step / max(1, n_steps - 1) * (LAST_STEP - FIRST_STEP)
            move = size * length * (free * away + (1 - free) * slope)
            state["images"] = canvas.constrain(images + move, recipe.constraint, recipe.size)
    return Diverse(state["kept"], state["kept_responses"], state["distance"])


def pairwise_distance(images: Array, masks: Array) -> Array:
    """(n,), the mean Euclidean distance between two of the K images (n, K, C, h, w) inside the mask (n, h, w)."""
    seen = (images * masks[:, None, None]).reshape(*images.shape[:2], -1)
    n_images = images.shape[1]
    distances = np.sqrt(((seen[:, :, None] - seen[:, None]) ** 2).sum(-1))  # (n, K, K)
    return distances.sum((1, 2)) / max(1, n_images * (n_images - 1))


def _repulsion(images: Array, masks: Array) -> Array:
    """Unit steps away from the other images inside the mask, weighted by 1 / distance^2."""
    seen = images * masks[:, None, None]  # (n, K, C, h, w)
    push = np.zeros_like(images)
    for k in range(images.shape[1]):
        difference = seen[:, k, None] - seen  # (n, K, C, h, w), 0 from itself
        squared = (difference**2).sum((2, 3, 4), keepdims=True)
        push[:, k] = (difference / np.maximum(squared, 1e-12) ** 1.5).sum(1)
    return _unit(blurred(push, BLUR))


def _unit(images: Array) -> Array:
    length = np.sqrt((images**2).sum((2, 3, 4), keepdims=True))
    return images / np.where(length > 0, length, 1)
