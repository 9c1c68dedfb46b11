"""A mouse's `neurons.npz`: what the twin knows about each neuron."""

from __future__ import annotations

import numpy as np

from server.bundle.neurons import NeuronTable
from training.checkpoints.ensemble import Ensemble
from training.data.mouse import Mouse
from training.models.image_positions import image_positions

__all__ = ["neuron_table"]


def neuron_table(ensemble: Ensemble, mouse: Mouse, scores: dict[str, np.ndarray]) -> NeuronTable:
    """The table of one mouse; readout positions are means over members, and left out if one member has none."""
    unknown = np.full(mouse.n_neurons, np.nan, np.float32)
    found = [image_positions(member.twin, mouse.mouse_id) for member in ensemble.members]
    positions = [position.double().numpy() for position in found if position is not None]
    return NeuronTable(
        ids=mouse.neuron_ids,
        coordinates=mouse.neuron_coordinates,
        response_std=unknown if mouse.response_std is None else mouse.response_std,
        scores=scores,
        readout_position=np.mean(positions, axis=0) if len(positions) == len(found) else None,
    )
