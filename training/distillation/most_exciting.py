"""Most exciting inputs: the images of one contrast to which a neuron of a twin responds most, by gradient ascent."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.mouse import Mouse
from training.distillation.states import median_state

__all__ = ["most_exciting", "responses_to"]

STEPS, FIRST_STEP, LAST_STEP = 60, 0.5, 0.05  # stds of the image
CONTRAST = 0.3  # std of the image, in stds of natural images: a receptive field is a small part of it
BLUR = (1 / 18, 1 / 72)  # of the gradient in the first and the last step, sigma per height of the image
TOGETHER = 5  # neurons; a pass backwards holds the activations of all of their images


def most_exciting(system: nn.Module, mouse: Mouse, neurons: np.ndarray) -> np.ndarray:
    """The most exciting input of each of these neurons, (n, C, H, W) float32, in the median state.

    Searches start at the same noise in every system, so that differences between results are those of the systems.

    Args:
        system: a twin or an ensemble.
        neurons: (n,) positions 0..N-1.
    """
    parts = np.split(neurons, range(TOGETHER, len(neurons), TOGETHER))
    return np.concatenate([_search(system, mouse, part) for part in parts])


def responses_to(system: nn.Module, mouse: Mouse, neurons: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(n,) the response of each neuron to its own image, in the median state."""
    with torch.no_grad():
        parts = [
            _respond(system, mouse, neurons[i : i + 1], _on_device(system, images[i : i + 1]))
            for i in range(len(neurons))
        ]
    return torch.cat(parts).cpu().numpy()


def _search(system: nn.Module, mouse: Mouse, neurons: np.ndarray) -> np.ndarray:
    system.eval()
    height = mouse.image_shape[1]
    start = torch.randn(mouse.image_shape, generator=torch.Generator().manual_seed(0))
    z = _constrained(_blurred(_on_device(system, start).repeat(len(neurons), 1, 1, 1), BLUR[0] * height))
    for done in torch.linspace(0, 1, STEPS).tolist():
        z.requires_grad_()
        total = _respond(system, mouse, neurons, _in_units(mouse, z)).sum()
        (slope,) = torch.autograd.grad(total, z)
        slope = _blurred(slope, (BLUR[0] + done * (BLUR[1] - BLUR[0])) * height)
        size = CONTRAST * (FIRST_STEP + done * (LAST_STEP - FIRST_STEP))
        z = _constrained(z.detach() + size * slope / slope.std((1, 2, 3), keepdim=True).clamp(min=1e-20))
    return _in_units(mouse, z).cpu().numpy()


def _respond(system: nn.Module, mouse: Mouse, neurons: np.ndarray, images: Tensor) -> Tensor:
    """(n,) the response of each neuron to its own image."""
    state = [_on_device(system, part).expand(len(images), -1) for part in median_state(mouse)]
    every = system(mouse.mouse_id, images, *state)  # (n, N)
    chosen: Tensor = every[torch.arange(len(images)), torch.from_numpy(neurons)]
    return chosen


def _on_device(system: nn.Module, values: np.ndarray | Tensor) -> Tensor:
    return torch.as_tensor(values).to(next(system.parameters()).device)


def _constrained(z: Tensor) -> Tensor:
    """Standardised images with mean 0 and the contrast of the search."""
    z = z - z.mean((1, 2, 3), keepdim=True)
    return CONTRAST * z / z.std((1, 2, 3), keepdim=True).clamp(min=1e-20)


def _in_units(mouse: Mouse, z: Tensor) -> Tensor:
    """In the recording's own units, within the range of its images."""
    if mouse.images is None:
        return z
    mean, std, low, high = (
        torch.as_tensor(value, dtype=z.dtype, device=z.device)[:, None, None]
        for value in (mouse.images.mean, mouse.images.std, mouse.images.min, mouse.images.max)
    )
    return torch.minimum(torch.maximum(mean + std * z, low), high)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (n, C, H, W) blurred by a Gaussian of `sigma` px; beyond the border there is nothing."""
    reach = max(1, round(3 * sigma))
    x = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    flat = images.flatten(0, 1)[:, None]  # (n C, 1, H, W)
    flat = F.conv2d(flat, kernel[None, None, :, None], padding=(reach, 0))
    return F.conv2d(flat, kernel[None, None, None, :], padding=(0, reach)).reshape(images.shape)
