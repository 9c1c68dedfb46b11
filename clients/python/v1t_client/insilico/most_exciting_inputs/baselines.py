"""Baselines of a most exciting input: the noise and natural images with the strongest responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.subject import Subject
from v1t_client.insilico.framework.top_images import TopImages
from v1t_client.insilico.most_exciting_inputs.ascent import respond_each
from v1t_client.insilico.most_exciting_inputs.canvas import Array, Canvas, blurred
from v1t_client.insilico.most_exciting_inputs.recipes import Recipe

__all__ = ["best_baselines", "best_in_mask", "noise"]

Read = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]  # numbers of images -> (B, C, H, W)
TOP = 10  # of the strongest images are also tried inside the mask
SAVED_EVERY = 8  # batches


def noise(canvas: Canvas, seed: int) -> Read:
    """Reads noise images by number: Gaussian, blurred by a grid pixel, with the training images' mean and contrast."""

    def draw(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        images = np.stack([np.random.default_rng([seed, int(i)]).standard_normal(canvas.grid) for i in indices])
        return canvas.show(canvas.constrain(blurred(images, 1.0), "contrast", 1.0))

    return draw


def best_baselines(subject: Subject, work: Work, read: Read, n_images: int, *, name: str) -> TopImages:
    """The strongest few of images 0 .. n_images - 1 for each neuron; memory holds one batch."""
    top = TopImages.empty(len(subject), min(TOP, n_images))
    state: dict[str, Any] = {"responses": top.responses, "index": top.index}
    with work.resume(name, state, n_images, batch=subject.batch, every=SAVED_EVERY) as loop:
        top = TopImages(state["responses"], state["index"])
        for piece in loop:
            top.add(subject.respond(read(np.arange(piece.start, piece.stop))), piece.start)
    return top


def best_in_mask(
    subject: Subject, canvas: Canvas, recipe: Recipe, read: Read, top: TopImages, masks: Array
) -> npt.NDArray[np.float32]:
    """(n,): the best response to a neuron's strongest images, cut to its mask and scaled to the norm of the search.

    The comparison with the most exciting input is then fair: both have the same contrast in the same place.
    """
    images = np.stack([canvas.read(read(row)) for row in top.index])  # (n, T, C, h, w)
    images = canvas.constrain(images * masks[:, None, None], recipe.constraint, recipe.size)
    return respond_each(subject, canvas, images).max(1)
