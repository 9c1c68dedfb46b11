"""Energy maps: where in the image each neuron looks, estimated from the training trials without a model.

Four features of the core's image are correlated with the neuron's responses at every pixel: the difference between two
pixels that are a sixteenth of the width apart, horizontally and vertically, and its absolute value. The first finds
neurons with one preferred polarity (simple cells), the second those without (complex cells). Each of the four maps is
divided by its own standard deviation, squared, added to the others and blurred:

    r = log(1 + response / std), standardised                            a few large responses must not decide
    map = blur(sum over channels and features f of (c_f / std(c_f))^2),  c_f = corr(r, f) at every pixel

The peak of a map of noise depends on the images and on nothing else. So the same responses in random order, a different
one for each neuron, show how high a peak has to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.batches import batches_of
from training.data.recordings import Recording
from training.errors import ConfigError
from training.models import Twin

__all__ = ["EnergyMaps", "check_maps", "energy_maps", "peaks"]

WIDTH = 64  # larger images are averaged down to this width
LAG, BLUR = 1 / 16, 3 / 64  # of the width: the distance of the differences, and sigma of the blur
SHUFFLED = 512  # neurons whose responses are shuffled; of fewer neurons, some several times
CHANCE = 0.99  # quantile of the shuffled peaks above which a map is clear
IMAGES, NEURONS = 128, 1024  # at a time


@dataclass(frozen=True, eq=False)
class EnergyMaps:
    """The energy maps of one mouse's neurons.

    Attributes:
        maps: (N, rows, columns) float32, mean 0 and standard deviation 1; they span the core's feature map, so that the
            first and the last column are -1 and 1 of a readout position. Zeros for neurons that do not respond.
        clearness: (N,) 1 - p0 / p, where p is the map's peak relative to its mean and p0 is the median p of shuffled
            responses; 0 where p is below it.
        chance: the clearness that 1 % of the shuffled neurons exceed.
    """

    maps: Tensor
    clearness: Tensor
    chance: float

    @property
    def clear(self) -> Tensor:
        """(N,) bool, neurons whose map has a higher peak than chance gives."""
        return self.clearness > self.chance


def check_maps(twin: Twin) -> None:
    """Checks that places of the feature map are places in the image.

    Raises:
        ConfigError: they are not.
    """
    if twin.core.spacing is None:
        raise ConfigError(
            "training.readout_start 'trials' needs a feature map whose places are arranged like the image",
            got="core.token_grid 'nearest_square'",
            hint="Set core.token_grid to 'patches', or training.readout_start to 'random'.",
        )


@torch.no_grad()
def energy_maps(twin: Twin, recording: Recording) -> EnergyMaps:
    """The energy maps of a recording's training trials, in the images that the twin's core gets.

    Images are cropped as the cropper does it at present. Shifts of the readout with the gaze are not undone: the maps
    are averages over the gaze.
    """
    check_maps(twin)
    trials = recording.tier("train").indices
    device = next(twin.parameters()).device
    images = _core_images(twin, recording, trials, device)  # (T, C, h, w)
    responses = _standardized(recording, trials).to(device)  # (T, N)
    n_neurons = responses.shape[1]
    some = torch.arange(SHUFFLED, device=device) % n_neurons
    responses = torch.cat([responses, _shuffled(responses[:, some])], dim=1)
    energy = torch.zeros(responses.shape[1], *images.shape[2:], device=device)
    for feature in _features(images):
        feature = _zscore(feature.flatten(1))  # (T, h w)
        for some in torch.arange(len(energy), device=device).split(NEURONS):
            correlation = responses[:, some].T @ feature / len(feature)  # (n, h w)
            std = correlation.std(dim=1, keepdim=True).clamp(min=1e-12)
            energy[some] += (correlation / std).square().unflatten(1, images.shape[2:])
    maps, peak = _finished(energy, twin)
    peak, shuffled = peak[:n_neurons], peak[n_neurons:]
    shuffled = shuffled[shuffled > 0] if bool(shuffled.any()) else torch.ones(1, device=device)  # without dead neurons
    middle, high = (float(shuffled.quantile(q)) for q in (0.5, CHANCE))
    return EnergyMaps(
        maps=maps[:n_neurons],
        clearness=torch.where(peak > middle, 1 - middle / peak.clamp(min=1e-12), 0),
        chance=1 - middle / high,
    )


def peaks(maps: Tensor) -> Tensor:
    """(N, 2) float, x and y in [-1, 1]: the place of each map's maximum."""
    _, rows, columns = maps.shape
    best = maps.flatten(1).argmax(1)
    return torch.stack([_axis(best % columns, columns), _axis(best // columns, rows)], dim=1)


def _axis(index: Tensor, n: int) -> Tensor:
    """Index 0 ... n - 1 to coordinate -1 ... 1."""
    return 2 * index / max(n - 1, 1) - 1


def _core_images(twin: Twin, recording: Recording, trials: np.ndarray, device: torch.device) -> Tensor:
    """(T, C, h, w), without channels of behaviour, at most `WIDTH` pixels wide."""
    was_training = twin.training
    twin.eval()  # the cropper samples like at evaluation
    parts = []
    progress = f"receptive fields of mouse {recording.mouse_id}"
    for _, (*inputs, _) in batches_of(recording, trials, device, size=IMAGES, progress=progress):
        image = twin.stem(recording.mouse_id, *inputs)[0]
        image = image[:, : image.shape[1] - twin.cropper.n_appended]
        height, width = image.shape[2:]
        if width > WIDTH:
            image = F.interpolate(image, size=(max(1, round(height * WIDTH / width)), WIDTH), mode="area")
        parts.append(image)
    twin.train(was_training)
    return torch.cat(parts)


def _standardized(recording: Recording, trials: np.ndarray) -> Tensor:
    """(T, N) responses after the logarithm; zeros for a neuron that always responds the same."""
    responses = torch.from_numpy(recording.responses(trials) / recording.response_std)
    return _zscore(responses.clamp(min=0).log1p())


def _zscore(values: Tensor) -> Tensor:
    """Standardised over the first axis; zeros where nothing varies."""
    centered = values - values.mean(0)
    std = centered.square().mean(0).sqrt()
    return torch.where(std > 1e-6, centered / std.clamp(min=1e-6), 0)


def _shuffled(responses: Tensor) -> Tensor:
    """(T, N), each neuron's responses in a random order of its own, always the same ones."""
    order = torch.rand(responses.shape, generator=torch.Generator().manual_seed(0)).argsort(0)
    return responses.gather(0, order.to(responses.device))


def _features(images: Tensor) -> Iterator[Tensor]:
    """The features of images (T, C, h, w), one channel's at a time, each (T, h, w)."""
    height, width = images.shape[2:]
    half = max(1, round(LAG * width / 2))
    for image in images.unbind(1):
        for axis, size, beyond in ((2, width, (half, half, 0, 0)), (1, height, (0, 0, half, half))):
            padded = F.pad(image[:, None], beyond, mode="replicate")[:, 0]
            difference = padded.narrow(axis, 2 * half, size) - padded.narrow(axis, 0, size)
            yield difference
            yield difference.abs()


def _finished(energy: Tensor, twin: Twin) -> tuple[Tensor, Tensor]:
    """The blurred maps (N, rows, columns) on the places of the feature map, standardised; and their peaks (N,)."""
    height, width = energy.shape[1:]
    kernel = _gaussian(BLUR * width).to(energy.device)
    weight = _blurred(torch.ones_like(energy[:1]), kernel)  # less at the borders
    grid = _places(twin, (height, width)).to(energy.device)
    maps, found = [], []
    for part in energy.split(NEURONS):
        part = _blurred(part, kernel) / weight
        grids = grid.expand(len(part), -1, -1, -1)
        part = F.grid_sample(part[:, None], grids, align_corners=True, padding_mode="border")[:, 0]
        mean = part.mean((1, 2), keepdim=True)
        found.append(torch.where(mean > 0, part / mean.clamp(min=1e-12), 0).amax((1, 2)))
        part = part - mean
        maps.append(part / part.std((1, 2), keepdim=True).clamp(min=1e-12))
    return torch.cat(maps), torch.cat(found)


def _gaussian(sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    return kernel / kernel.sum()


def _blurred(maps: Tensor, kernel: Tensor) -> Tensor:
    """Maps (N, h, w) convolved along both axes, with zeros outside."""
    reach = len(kernel) // 2
    across = F.conv2d(maps[:, None], kernel[None, None, None], padding=(0, reach))
    return F.conv2d(across, kernel[None, None, :, None], padding=(reach, 0))[:, 0]


def _places(twin: Twin, size: tuple[int, int]) -> Tensor:
    """(1, rows, columns, 2): where the feature map, from its first to its last place, lies in maps of this size.

    As x and y in [-1, 1] of the maps, in steps of about one of their pixels.
    """
    spacing = twin.core.spacing
    assert spacing is not None
    axes = []
    for places, full, n in zip(twin.core.output_shape[1:], twin.cropper.output_shape[1:], size, strict=True):
        edges = (spacing.first, spacing.first + (places - 1) * spacing.step)  # pixels of the core's image
        ends = [(edge + 0.5) * n / full - 0.5 for edge in edges]  # pixels of the maps
        steps = max(2, round(ends[1] - ends[0]) + 1)
        axes.append(torch.linspace(ends[0], ends[1], steps) * 2 / max(n - 1, 1) - 1)
    return torch.stack(torch.meshgrid(axes[1], axes[0], indexing="xy"), dim=-1)[None]
