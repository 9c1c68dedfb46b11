"""A bundle's table of neurons: readout positions, against the receptive fields that a simulation drew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.checkout import ROOT
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_mouse

from server.bundle.manifest import load_manifest
from server.bundle.neurons import load_neurons
from training.analyses.retinotopy import true_centers
from training.checkpoints.ensemble import Ensemble
from training.data.recordings import Recording
from training.export.neuron_table import neuron_table
from training.models.image_positions import image_positions
from training.simulation.simulate import simulate

DEMO = ROOT / "exported_models" / "demo"


@pytest.mark.parametrize(("mouse_id", "data_key"), [("SIM1", "90001-1-1"), ("SIM2", "90002-1-1")])
def test_readouts_of_the_demo_twin_look_at_the_true_receptive_fields(
    mouse_id: str, data_key: str, tmp_path: Path
) -> None:
    few = {"n_train": 30, "n_validation": 1, "n_test_images": 2, "n_test_repeats": 2}
    recording = Recording.open(simulate(tmp_path, mouse_id=mouse_id, data_key=data_key, n_neurons=150, **few))
    table = load_neurons(DEMO, load_manifest(DEMO).mice[mouse_id])
    np.testing.assert_array_equal(table.coordinates, recording.neuron_coordinates)  # the same cortex
    centers = true_centers(recording)
    assert centers is not None
    assert table.readout_position is not None
    learned = table.scores["single_trial_correlation"] > 0.3
    off = (table.readout_position - centers)[learned]
    assert learned.sum() > 130
    assert np.abs(off.mean(0)).max() < 1.5  # px, of a screen of 256 x 144; a patch has 48 x 48
    assert np.median(np.abs(off), axis=0).max() < 4


def test_a_position_is_the_mean_over_members_and_unknown_if_one_member_has_none() -> None:
    mouse = tiny_mouse("A")
    patches = tiny_config()
    rearranged = tiny_config({"token_grid": "nearest_square"}, cropper={"size": (8, 26)})
    members = [tiny_checkpoint(config, [mouse], seed=i) for i, config in enumerate([patches, patches, rearranged])]
    first, second = (image_positions(member.twin, "A") for member in members[:2])
    assert first is not None
    assert second is not None
    position = neuron_table(Ensemble(members[:2]), mouse, {}).readout_position
    np.testing.assert_allclose(position, (first + second) / 2, rtol=1e-5)
    assert neuron_table(Ensemble(members[1:]), mouse, {}).readout_position is None
