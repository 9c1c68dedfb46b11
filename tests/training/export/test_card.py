"""Model cards of bundles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from support.checkout import ROOT
from support.tiny_bundle import TinyTwin

from server.bundle.manifest import load_manifest
from training.__main__ import main
from training.export.card import CARD, card

DEMO = ROOT / "exported_models" / "demo"


def test_the_demo_has_the_card_of_its_manifest() -> None:
    hint = "run python -m training card exported_models/demo --force"
    assert (DEMO / CARD).read_text() == card(load_manifest(DEMO)), hint


def test_a_card_leaves_the_hash_and_is_only_replaced_with_force(
    tmp_path: Path, twin: TinyTwin, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "tiny"
    shutil.copytree(twin.folder, bundle)
    before = load_manifest(bundle).hash
    assert main(["card", str(bundle)]) == 0
    assert load_manifest(bundle).hash == before
    assert before in (bundle / CARD).read_text()
    assert main(["card", str(bundle)]) == 1
    assert "Give --force to replace it." in capsys.readouterr().err
    assert main(["card", str(bundle), "--force"]) == 0


def test_a_card_says_what_the_manifest_holds_and_what_it_lacks(twin: TinyTwin) -> None:
    manifest = twin.manifest
    record = next(iter(manifest.mice.values()))
    unknown = record.model_copy(update={"scores": {}, "standardized_inputs": True})
    text = card(manifest.model_copy(update={"mice": {record.mouse_id: unknown}, "simulated": False, "notice": None}))
    assert "Not evaluated" in text
    assert "inputs have to be standardised already" in text
    assert "imulated" not in text
    assert f"1 mouse with {record.n_neurons} neurons" in text
    assert manifest.citation in text
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["tags"] == ["neuroscience", "visual-cortex", "digital-twin"]


def test_what_is_not_a_bundle_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(tmp_path / "nothing")]) == 1
    assert "nothing is not a folder" in capsys.readouterr().err
    assert main(["card", str(tmp_path)]) == 1
    assert "has no manifest.json" in capsys.readouterr().err
