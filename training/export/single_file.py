"""One self-contained graph per mouse, from raw image, behaviour and pupil centre to standardised responses."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from server.bundle import tensor_names
from training.checkpoints.ensemble import Ensemble
from training.export.graphs import batched, core_module, raw_examples
from training.export.onnx_files import export_graph
from training.export.readout import GatherReadout
from training.models.twin import response_from

__all__ = ["export_single_file"]


class _SingleFile(nn.Module):
    """Stem, core and readout of every member, and their combination, for all neurons of a mouse."""

    def __init__(self, ensemble: Ensemble, mouse_id: str) -> None:
        super().__init__()
        self.mouse_id = mouse_id
        self.twins = [checkpoint.twin for checkpoint in ensemble.members]
        self.registered = nn.ModuleList(self.twins)
        self.cores = nn.ModuleList(core_module(twin, portable=True) for twin in self.twins)
        self.readouts = nn.ModuleList(GatherReadout(twin, mouse_id) for twin in self.twins)
        self.combination = ensemble.combinations[mouse_id]
        self.shares_stems = ensemble.shares_stems

    def forward(self, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        raw = (image, behavior, pupil_center)
        total: Tensor | float = self.combination.bias
        for i, (twin, core, readout) in enumerate(zip(self.twins, self.cores, self.readouts, strict=True)):
            if i == 0 or not self.shares_stems:
                core_image, core_behavior, core_pupil_center = twin.stem(self.mouse_id, *raw)
            feature_map = core(core_image, core_behavior, twin.mouse_index(self.mouse_id, core_image))
            neurons = torch.arange(twin.mice[self.mouse_id].n_neurons, device=image.device)
            total = total + readout(feature_map, core_pupil_center, neurons) * self.combination.weights[i]
        assert isinstance(total, Tensor)
        return response_from(total)


def export_single_file(ensemble: Ensemble, mouse_id: str, path: Path) -> None:
    """Writes the graph with only standard ONNX operators. Its inputs are those that the responses depend on."""
    examples = raw_examples(ensemble.mice[mouse_id])
    export_graph(_SingleFile(ensemble, mouse_id), examples, batched(examples), [tensor_names.RESPONSE], path)
