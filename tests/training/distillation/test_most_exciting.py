"""Most exciting inputs, of neurons whose best image is known."""

from __future__ import annotations

import numpy as np
import torch
from support.tiny_twins import tiny_mouse
from torch import Tensor, nn

from training.data.mouse import Mouse
from training.distillation.most_exciting import CONTRAST, most_exciting, responses_to

SHAPE = (1, 36, 64)


class Filters(nn.Module):
    """Neurons that respond to one image each: ELU of their correlation with a filter, and not to behaviour."""

    def __init__(self, filters: np.ndarray) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.from_numpy(filters).float())

    def forward(self, mouse_id: str, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        assert mouse_id == "A"
        assert behavior.shape[0] == pupil_center.shape[0] == image.shape[0]
        return nn.functional.elu(torch.einsum("bhw,nhw->bn", image[:, 0], self.filters) - 1) + 1


def gabors(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    columns, rows = np.meshgrid(np.arange(SHAPE[2]), np.arange(SHAPE[1]))
    filters = []
    for x, y, angle in zip(rng.uniform(15, 50, n), rng.uniform(10, 26, n), rng.uniform(0, np.pi, n), strict=True):
        envelope = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 3.5**2))
        wave = np.sin(2 * np.pi * 0.08 * ((columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)))
        filters.append(0.1 * envelope * wave)
    return np.stack(filters)


def test_a_linear_neurons_most_exciting_input_is_its_filter() -> None:
    """Of all images of one contrast, the filter itself has the largest product with the filter."""
    filters = gabors(8)
    system, mouse = Filters(filters), Mouse.without_recording("A", SHAPE, 8)
    neurons = np.array([6, 1, 3, 0, 7, 4])
    images = most_exciting(system, mouse, neurons)
    assert images.shape == (6, *SHAPE)
    np.testing.assert_allclose(images.std((1, 2, 3)), CONTRAST, rtol=1e-3)
    best = filters[neurons] - filters[neurons].mean((1, 2), keepdims=True)
    best *= CONTRAST / best.std((1, 2), keepdims=True)
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images[:, 0], best, strict=True)]
    assert min(alike) > 0.95
    ours, most = (responses_to(system, mouse, neurons, some) for some in (images, best[:, None].astype(np.float32)))
    assert (ours / most > 0.9).all()
    assert (ours / most < 1.001).all()


def test_most_exciting_inputs_stay_within_the_recordings_images() -> None:
    mouse = tiny_mouse("A")
    assert mouse.images is not None
    filters = np.random.default_rng(1).normal(size=(3, *mouse.image_shape[1:]))
    images = most_exciting(Filters(filters), mouse, np.arange(3))
    assert images.min() >= mouse.images.min.min()
    assert images.max() <= mouse.images.max.max()
    assert np.ptp(images, axis=(1, 2, 3)).min() > 0
