"""One self-contained graph per mouse, from raw image, behaviour and pupil centre to standardised responses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from server.bundle import tensor_names
from training.checkpoints.ensemble import Ensemble
from training.data.mouse import Mouse
from training.export.graphs.forward import Stem, batched, core_module, raw_examples
from training.export.modules.readout import GatherReadout
from training.export.mouse_inputs import behavior_channels, image_channels, pupil_center_channels
from training.export.tracing.templates import Graph
from training.models.twin import response_from

__all__ = ["metadata", "single_file"]


class _SingleFile(nn.Module):
    """Stem, core and readout of every member, and their combination, for all neurons of a mouse."""

    weights: Tensor
    bias: Tensor
    mouse_index: Tensor

    def __init__(self, ensemble: Ensemble, mouse_id: str) -> None:
        super().__init__()
        twins = [checkpoint.twin for checkpoint in ensemble.members]
        self.stems = nn.ModuleList(Stem(twin, mouse_id) for twin in (twins[:1] if ensemble.shares_stems else twins))
        self.cores = nn.ModuleList(core_module(twin, portable=True) for twin in twins)
        self.readouts = nn.ModuleList(GatherReadout(twin, mouse_id) for twin in twins)
        self.n_neurons = ensemble.mice[mouse_id].n_neurons
        combination = ensemble.combinations[mouse_id]
        self.register_buffer("weights", torch.tensor(combination.weights))
        self.register_buffer("bias", torch.tensor(combination.bias))
        self.register_buffer("mouse_index", torch.tensor([twins[0].mouse_indices[mouse_id]]))

    def forward(self, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        raw = (image, behavior, pupil_center)
        total = self.bias
        neurons = torch.arange(self.n_neurons, device=image.device)
        for i, (core, readout) in enumerate(zip(self.cores, self.readouts, strict=True)):
            if i < len(self.stems):
                core_image, core_behavior, core_pupil_center = self.stems[i](*raw)
            feature_map = core(core_image, core_behavior, self.mouse_index.expand(image.shape[0]))
            total = total + readout(feature_map, core_pupil_center, neurons) * self.weights[i]
        return response_from(total)


def single_file(ensemble: Ensemble, mouse_id: str) -> Graph:
    """The graph with only standard ONNX operators. Its inputs are those that the responses depend on."""
    examples = raw_examples(ensemble.mice[mouse_id])
    mouse = ensemble.members[0].twin.mouse_indices[mouse_id]
    module = _SingleFile(ensemble, mouse_id)
    return Graph(module, examples, batched(examples), [tensor_names.RESPONSE], mouse=mouse)


def metadata(mouse: Mouse, *, model: str, notice: str | None, licence: str, citation: str) -> dict[str, str]:
    """What the file says about itself, as ONNX metadata_props."""
    inputs = {
        "image": image_channels(mouse),
        "behavior": behavior_channels(mouse),
        "pupil_center": pupil_center_channels(mouse),
    }
    return {
        "model": model,
        "mouse": mouse.mouse_id,
        "simulated": str(mouse.simulated).lower(),
        "standardized_inputs": str(mouse.standardized_inputs).lower(),
        **{name: ", ".join(f"{one.name} [{one.unit}]" for one in channels) for name, channels in inputs.items()},
        "response": "standardized: in units of each neuron's response std",
        "neuron_ids": " ".join(map(str, mouse.neuron_ids.tolist())),
        "licence": licence,
        "citation": citation,
        **({} if notice is None else {"notice": notice}),
    }
