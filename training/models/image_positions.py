"""Where in the recording's image each neuron looks: its readout position, traced back through the core and the crop."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.metadata import InputStatistics
from training.models.twin import Twin

__all__ = ["image_positions"]


@torch.no_grad()
def image_positions(twin: Twin, mouse_id: str) -> Tensor | None:
    """(N, 2) x and y [px of the recording's image]; the middle of the top left pixel is (0, 0).

    It is the middle of the patch (or of the first kernel) at `mu`, with both shifters, the readout's and the crop's, at
    the medians of behaviour and pupil centre over the training trials; at zero where inputs are standardised already.
    Layers that mix neighbouring tokens widen the receptive field around it. It can lie outside of the image.

    None if the map's rows are not rows of the image (`token_grid: nearest_square`).
    """
    spacing = twin.core.spacing
    if spacing is None:
        return None
    mouse, standardizer = twin.mice[mouse_id], twin.standardizer(mouse_id)
    behavior = _median(mouse.behavior, 3) / standardizer.behavior_std
    pupil_center = standardizer.pupil(_median(mouse.pupil_center, 2))
    shifter = twin.shifter(mouse_id)
    position = twin.readout(mouse_id).mu + (0 if shifter is None else shifter(pupil_center))
    _, rows, columns = twin.core.output_shape
    token = (position + 1) / 2 * position.new_tensor([columns - 1, rows - 1])
    return twin.cropper.source(spacing.first + spacing.step * token, behavior, pupil_center, mouse_id)


def _median(statistics: InputStatistics | None, length: int) -> Tensor:
    """(1, length)"""
    return torch.zeros(1, length) if statistics is None else torch.from_numpy(statistics.median)[None].float()
