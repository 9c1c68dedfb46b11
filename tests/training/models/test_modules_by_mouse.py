"""Modules of mice: any name of a mouse works, and the paper's mice keep the names of their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_inputs, tiny_mouse
from torch import nn

from training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from training.models.modules_by_mouse import ModulesByMouse, module_name

NAMES = [
    "2023.04.01_mouse1",
    "2023%2E04%2E01_mouse1",
    "keys",
    "training",
    "_modules",
    "_names",
    "Ünïcode 7",
    "a",
    "a.b",
]


def test_weights_of_usual_names_are_named_as_in_a_module_dictionary() -> None:
    names = ["A", "S0", "21067-10-18", "SIM1", "mouse 7", "x_y"]
    ours, torchs = (kind({name: nn.Linear(1, 1) for name in names}) for kind in (ModulesByMouse, nn.ModuleDict))
    assert list(ours.state_dict()) == list(torchs.state_dict())


def test_no_two_mice_share_a_module() -> None:
    modules = {name: nn.Linear(1, 1) for name in [*NAMES, *map(module_name, NAMES)]}
    ours = ModulesByMouse(modules)
    assert dict(ours.items()) == modules
    assert len(ours.state_dict()) == 2 * len(modules)


@pytest.mark.parametrize("core", ["vit", "cnn"])
def test_twins_of_mice_of_any_name_answer_and_are_saved(tmp_path: Path, core: str) -> None:
    mice = [tiny_mouse(name, n_neurons=3 + i) for i, name in enumerate(NAMES)]
    config = tiny_config({"kind": core}, cropper={"size": (12, 20), "crop": 0.8, "shifter": "pupil_center"})
    checkpoint = tiny_checkpoint(config, mice)
    loaded = load_checkpoint(save_checkpoint(tmp_path / "checkpoint", checkpoint))
    assert list(loaded.mice) == NAMES
    for mouse in mice:
        inputs = tiny_inputs(mouse, 2)
        with torch.inference_mode():
            answer = loaded.twin(mouse.mouse_id, *inputs)
            assert answer.shape == (2, mouse.n_neurons)
            assert torch.equal(answer, checkpoint.twin(mouse.mouse_id, *inputs))
