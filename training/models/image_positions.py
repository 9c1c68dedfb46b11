"""Where in the recording's image each neuron looks: its readout position, traced back through the core and the crop."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.metadata import InputStatistics
from training.models.twin import Twin

__all__ = ["image_positions", "map_positions", "resting_positions"]


@torch.no_grad()
def image_positions(twin: Twin, mouse_id: str) -> Tensor | None:
    """(N, 2) x and y [px of the recording's image]; the middle of the top left pixel is (0, 0).

    It is the middle of the patch (or of the first kernel) at `mu`, with both shifters, the readout's and the crop's, at
    the medians of behaviour and pupil centre over the training trials; at zero where inputs are standardised already.
    Layers that mix neighbouring tokens widen the receptive field around it. It can lie outside of the image.

    None if the map's rows are not rows of the image (`token_grid: nearest_square`).
    """
    return None if twin.core.spacing is None else _in_image(twin, mouse_id, resting_positions(twin, mouse_id))


@torch.no_grad()
def resting_positions(twin: Twin, mouse_id: str) -> Tensor:
    """(N, 2) `mu` with the readout's shift at the median gaze; x and y, in [-1, 1] of the feature map."""
    shifter = twin.shifter(mouse_id)
    mu = twin.readout(mouse_id).mu
    return mu if shifter is None else mu + shifter(_median_inputs(twin, mouse_id)[1])


@torch.no_grad()
def map_positions(twin: Twin, mouse_id: str, places: Tensor) -> Tensor:
    """Places (N, 2) in the recording's image, as positions in the feature map: the inverse of `image_positions`."""
    low, high = _in_image(twin, mouse_id, places.new_tensor([[-1, -1], [1, 1]]))
    return 2 * (places - low) / (high - low) - 1


def _in_image(twin: Twin, mouse_id: str, positions: Tensor) -> Tensor:
    """Positions (N, 2) in the feature map as x and y [px of the recording's image]."""
    assert twin.core.spacing is not None
    _, rows, columns = twin.core.output_shape
    token = (positions + 1) / 2 * positions.new_tensor([columns - 1, rows - 1])
    places = twin.core.spacing.first + twin.core.spacing.step * token
    return twin.cropper.source(places, *_median_inputs(twin, mouse_id), mouse_id)


def _median_inputs(twin: Twin, mouse_id: str) -> tuple[Tensor, Tensor]:
    """The medians of behaviour (1, 3) and pupil centre (1, 2) over the training trials, standardised."""
    mouse, standardizer = twin.mice[mouse_id], twin.standardizer(mouse_id)
    behavior = _median(mouse.behavior, 3).to(standardizer.behavior_std) / standardizer.behavior_std
    return behavior, standardizer.pupil(_median(mouse.pupil_center, 2).to(standardizer.pupil_std))


def _median(statistics: InputStatistics | None, length: int) -> Tensor:
    """(1, length)"""
    return torch.zeros(1, length) if statistics is None else torch.from_numpy(statistics.median)[None].float()
