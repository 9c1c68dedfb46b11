"""Rivals of a most exciting input: noise and natural images, which it has to beat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.subject import BATCH, Subject
from v1t_client.insilico.most_exciting_inputs.ascent import respond_each
from v1t_client.insilico.most_exciting_inputs.canvas import Array, Canvas, blurred
from v1t_client.insilico.most_exciting_inputs.recipes import Recipe

__all__ = ["Rivals", "best_in_mask", "best_rivals", "noise"]

Read = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]  # numbers of images -> (B, C, H, W)
TOP = 10  # of the strongest images that are also tried inside the mask
KEPT_EVERY = 8  # batches


@dataclass(frozen=True, eq=False)
class Rivals:
    """The strongest images of a set, for each neuron, descending.

    Attributes:
        responses: (n, T).
        index: (n, T), which image of the set.
    """

    responses: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]


def noise(canvas: Canvas, seed: int) -> Read:
    """Gaussian noise blurred by a pixel of the grid, with the training images' mean and contrast, by its number."""

    def draw(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        images = np.stack([np.random.default_rng([seed, int(i)]).standard_normal(canvas.grid) for i in indices])
        return canvas.show(canvas.constrain(blurred(images, 1.0), "contrast", 1.0))

    return draw


def best_rivals(
    subject: Subject,
    work: Work,
    read: Read,
    n_images: int,
    *,
    name: str,
) -> Rivals:
    """Shows images 0 .. n_images - 1 to all neurons and keeps the strongest few of each; memory holds one batch."""
    n, top, first = len(subject), min(TOP, n_images), 0
    responses, index = np.full((n, top), -np.inf, np.float32), np.zeros((n, top), np.int64)
    if (kept := work.load(name)) is not None:
        responses, index, first = kept["responses"], kept["index"], int(kept["done"])
    with work.progress(n_images, name, done=first) as bar:
        for start in range(first, n_images, BATCH):
            numbers = np.arange(start, min(start + BATCH, n_images))
            all_responses = np.concatenate([responses, subject.respond(read(numbers)).T], axis=1)  # (n, T + B)
            all_index = np.concatenate([index, np.broadcast_to(numbers, (n, len(numbers)))], axis=1)
            order = np.argsort(-all_responses, axis=1, kind="stable")[:, :top]
            responses = np.take_along_axis(all_responses, order, axis=1)
            index = np.take_along_axis(all_index, order, axis=1)
            if (start // BATCH) % KEPT_EVERY == 0 or numbers[-1] + 1 == n_images:
                work.save(name, responses=responses, index=index, done=numbers[-1] + 1)
            bar.update(len(numbers))
    return Rivals(responses, index)


def best_in_mask(
    subject: Subject, canvas: Canvas, recipe: Recipe, read: Read, rivals: Rivals, masks: Array
) -> npt.NDArray[np.float32]:
    """(n,): the best response to a neuron's strongest images, cut to its mask and brought to the search's norm.

    That is the fair comparison: the rival has the same contrast to spend, in the same place.
    """
    images = np.stack([canvas.read(read(row)) for row in rivals.index])  # (n, T, C, h, w)
    images = canvas.constrain(images * masks[:, None, None], recipe.constraint, recipe.size)
    best: npt.NDArray[np.float32] = respond_each(subject, canvas, images).max(1)
    return best
