"""Sums of responses to noise: accumulated by the server or here, in two halves whose difference is the maps' noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._answers.prediction import Prediction
from v1t_client._client import Client
from v1t_client._errors import InvalidRequest
from v1t_client._replicas import Replicas
from v1t_client.insilico.experiments.receptive_field_stream import server_sums
from v1t_client.insilico.framework.subject import Subject
from v1t_client.insilico.stimuli.noise import NoiseKind, NoiseSums, block_size, enlarge, noise_images

__all__ = ["Halves", "Noise", "noise_sums"]

BLOCK = 256  # images in one matrix product
MEDIAN_TO_STD = 1.4826  # of absolute values of a normal distribution


@dataclass(frozen=True)
class Noise:
    """Which noise is shown.

    Attributes:
        kind: see `stimuli.noise`. contrast: std, in stds of the training images.
    """

    kind: NoiseKind
    seed: int
    grid: tuple[int, int]
    contrast: float

    @classmethod
    def of(cls, kind: NoiseKind | None, n_images: int, *, seed: int, grid: tuple[int, int], contrast: float) -> Noise:
        """This kind, or by default the one that gives the most precise maps over so many images.

        A whole block of balanced noise is best, but a part of one is worse than white noise; orthogonal noise is better
        than white noise over any number of images (`tests/perf/bench_noise.py`).
        """
        if kind is None:
            kind = "balanced" if n_images >= block_size("balanced", grid) else "orthogonal"
        return cls(kind, seed, grid, contrast)

    @property
    def block(self) -> int:
        return block_size(self.kind, self.grid)

    def whole(self, n_images: int) -> int:
        """The largest number of images up to `n_images` in whole blocks; less than a block stays as it is."""
        return n_images // self.block * self.block or n_images

    def chunk(self, n_images: int, chunk: int) -> int:
        """Images between two saves, about `chunk`: whole blocks where there are two, and two chunks in any case."""
        unit = self.block if n_images >= 2 * self.block else min(2, self.block)
        return max(1, min(round(chunk / unit), n_images // (2 * unit))) * unit


@dataclass(eq=False)
class Halves:
    """Sums over noise images, those of every second chunk apart.

    Attributes:
        parts: the sums over even and over odd chunks.
    """

    parts: tuple[NoiseSums, NoiseSums]

    @property
    def n_images(self) -> int:
        return self.parts[0].n_images + self.parts[1].n_images

    @property
    def total(self) -> NoiseSums:
        first, second = self.parts
        return NoiseSums(
            self.n_images,
            *(getattr(first, name) + getattr(second, name) for name in ("maps", "noise", "total", "squares")),
        )

    def chance(self, noise: Noise) -> npt.NDArray[np.float64]:
        """(n,) standard deviation of an element of the map outside the receptive field.

        White noise: from the variance of the responses. Others: from the difference of the halves. Halves of one block
        err in opposite directions, which makes it too large; the median element, some of which lie in the field, then
        bounds it as well.
        """
        if noise.kind == "white":
            return self.total.chance()
        first, second = self.parts
        apart = np.square(first.weighted_average() - second.weighted_average()).mean((1, 2))
        chance = np.sqrt(apart * (first.n_images * second.n_images)) / self.n_images
        if self.n_images < 2 * noise.block:
            chance = np.minimum(chance, MEDIAN_TO_STD * np.median(np.abs(self.total.weighted_average()), axis=(1, 2)))
        return np.asarray(chance)

    def arrays(self) -> dict[str, Any]:
        return {f"{name}_{i}": array for i, part in enumerate(self.parts) for name, array in part.arrays().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Halves:
        first, second = (
            NoiseSums.from_arrays({name: arrays[f"{name}_{i}"] for name in NoiseSums.__dataclass_fields__})
            for i in (0, 1)
        )
        return cls((first, second))


def noise_sums(
    subject: Subject,
    noise: Noise,
    *,
    first: int,
    n: int,
    progress: Callable[[int], object] = lambda n: None,
) -> NoiseSums:
    """The sums over noise images first to first + n - 1.

    Accumulated by the server, by several (each a part of the images), or here: without a server, and with an older one
    that does not know this kind of noise.
    """
    screen = subject.screen
    std = noise.contrast * screen.noise_std
    predictor = subject.predictor
    if isinstance(predictor, (Client, Replicas)):
        size = n if isinstance(predictor, Client) else BLOCK * math.ceil(n / BLOCK / predictor.n_replicas)
        parts = [
            {
                "mouse": subject.mouse.mouse_id,
                "model": subject.mouse.model,
                "seed": noise.seed,
                "first_image": start,
                "n_images": min(size, first + n - start),
                "grid": list(noise.grid),
                # Servers before 0.1.0 refuse this field, and know white noise.
                **({} if noise.kind == "white" else {"noise": noise.kind}),
                "luminance": screen.luminance,
                "contrast": std,
                **({} if subject.all_neurons else {"neuron_ids": subject.neurons.neuron_ids.tolist()}),
                **subject.state,
            }
            for start in range(first, first + n, size)
        ]
        with suppress(_UnknownNoise):
            if isinstance(predictor, Client):
                found = [_server_sums(predictor, parts[0], progress=progress)]
            else:
                found = predictor.in_order([partial(_server_sums, arguments=part) for part in parts])
                progress(n)
            for _, about in found:
                subject.note(about)
            total = found[0][0]
            for sums, _ in found[1:]:
                total.add(sums)
            return total
    sums = NoiseSums.empty(len(subject), noise.grid)
    for start in range(first, first + n, BLOCK):
        shown = noise_images(noise.kind, noise.seed, start, min(BLOCK, first + n - start), noise.grid)
        responses = []
        for piece in range(0, len(shown), subject.batch):
            images = screen.luminance + std * enlarge(shown[piece : piece + subject.batch], subject.mouse.image_shape)
            responses.append(subject.respond(images))
            progress(len(images))
        sums.show(shown, np.concatenate(responses))
    return sums


class _UnknownNoise(InvalidRequest):
    """The server does not have this kind of noise."""


def _server_sums(
    client: Client, arguments: Mapping[str, Any], *, progress: Callable[[int], object] = lambda n: None
) -> tuple[NoiseSums, Prediction]:
    try:
        return server_sums(client, arguments, progress=progress)
    except InvalidRequest as refusal:
        # Older servers name the field, and have no code of its own for it.
        if "noise" in arguments and refusal.message == "unknown field noise":
            raise _UnknownNoise(refusal.message, status=refusal.status, code=refusal.code) from refusal
        raise
