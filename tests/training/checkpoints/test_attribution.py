"""Imported weights state their own paper and licence, in the checkpoint and in the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.reference_run import write_reference_run
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_mouse, tiny_twin

from training.checkpoints.attribution import SENSORIUM_CITATION, V1T_CITATION
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.checkpoints.ensemble import Ensemble
from training.checkpoints.importer import import_weights
from training.data.mouse import Mouse
from training.export.bundle import BundleOptions, _Writer


def stated(members: list[Checkpoint], **options: Any) -> tuple[str, str]:
    """The licence and the citation that a bundle of these members states."""
    writer = _Writer(Ensemble(members), Path("bundle"), "bundle", BundleOptions(**options))
    return writer._licence(), writer._citation()


@pytest.mark.parametrize("name", ["sota", "ln", "p_sota", "p_ln"])
def test_sensoriums_weights_state_its_paper_and_licence(reference: Path, name: str, tmp_path: Path) -> None:
    imported = import_weights(reference / "sensorium-pretrained" / f"sensorium_{name}_model.pth")
    loaded = load_checkpoint(save_checkpoint(tmp_path / "checkpoint", imported))
    licence, citation = stated([loaded])
    assert licence.startswith("MIT")
    assert "Willeke" in citation
    assert "V1T" not in citation
    assert stated([loaded], licence="CC0-1.0", citation="Nobody, 2026") == ("CC0-1.0", "Nobody, 2026")


def test_weights_that_were_trained_with_sensoriums_code_have_no_known_licence(reference: Path, tmp_path: Path) -> None:
    state = torch.load(
        reference / "sensorium-pretrained" / "sensorium_ln_model.pth", map_location="cpu", weights_only=True
    )
    state["core.features.layer0.conv.weight"] = state["core.features.layer0.conv.weight"] * 2
    torch.save(state, tmp_path / "own_ln.pth")
    assert stated([import_weights(tmp_path / "own_ln.pth")]) == ("not stated", SENSORIUM_CITATION)


def test_runs_of_v1ts_code_state_its_paper(tmp_path: Path) -> None:
    mice = [Mouse.without_recording("A", (1, 36, 64), 5)]
    twin = tiny_twin(tiny_config({"patch_stride": 4, "token_grid": "nearest_square"}, cropper={}, readout={}), mice)
    twin.readout("A").source_grid.copy_(torch.rand(5, 2))
    imported = import_weights(write_reference_run(tmp_path / "run", twin))
    assert stated([imported]) == ("not stated", V1T_CITATION)


def test_an_ensemble_states_what_each_member_does() -> None:
    members = [tiny_checkpoint(tiny_config(), [tiny_mouse("A")], seed=seed) for seed in (0, 1, 2)]
    assert stated(members) == ("not stated", V1T_CITATION)
    for member, citation in zip(members, ["One.", "Two.", "One."], strict=True):
        member.provenance["citation"] = citation
    assert stated(members)[1] == "One.; Two."
