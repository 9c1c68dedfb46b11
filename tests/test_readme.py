"""The README: its commands and the demo twin that it describes; the table of settings and the page of folders."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from support.checkout import ROOT
from support.live_server import Server

from server.bundle.manifest import load_manifest
from server.inference.engine import Engine
from server.settings import Settings

README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVER = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
DEMO = ROOT / "exported_models" / "demo"


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_every_folder_has_a_sentence_in_the_tree() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from tree import tree
    finally:
        sys.path.remove(str(ROOT / "docs"))
    assert (ROOT / "docs" / "tree.md").read_text(encoding="utf-8") == tree(), "run `python docs/tree.py`"
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for top in ("server", "training", "clients/python/v1t_client")
        for path in (ROOT / top).rglob("*.py")
    }
    rows = re.findall(r"^\| \[`(.+?)/`\]\(.+?\) \| (.+) \|$", tree(), flags=re.MULTILINE)
    assert {folder for folder, sentence in rows if sentence} == folders


def test_settings_are_those_of_the_server_with_their_descriptions() -> None:
    rows = re.findall(r"^\| `V1T_(\w+)` \|[^|]*\| (.+) \|$", SERVER, flags=re.MULTILINE)
    described = [(name.lower(), description) for name, description in rows]
    assert described == [(name, field.description) for name, field in Settings.model_fields.items()]


def test_every_file_that_the_architecture_page_says_to_start_with_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = re.findall(r"`([\w/]+/\w+\.py)`", text[: text.index("## One call from top to bottom")])
    assert len(names) >= 7
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_demo_twin_is_small_and_says_that_it_is_simulated() -> None:
    engine = Engine.load(DEMO)
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 10e6
    assert engine.manifest.members == 3
    assert engine.manifest.simulated
    assert engine.manifest.notice is not None
    assert "imulated" in engine.manifest.notice
    for mouse_id, mouse in engine.manifest.mice.items():
        scores = engine.neurons[mouse_id].scores["single_trial_correlation"]
        assert mouse.scores["single_trial_correlation"] == pytest.approx(float(np.nanmean(scores)))
        assert [state.name for state in mouse.states] == ["rest", "running"]
        assert all(channel.image_mean and channel.image_contrast for channel in mouse.image_channels)


def test_scores_of_the_demo_twin_are_the_same_in_the_manifest_and_beside_it() -> None:
    beside = json.loads((ROOT / "exported_models" / "demo-scores.json").read_text(encoding="utf-8"))
    for mouse_id, mouse in load_manifest(DEMO).mice.items():
        fev, feve = (np.array(beside[mouse_id]["neurons"][name]) for name in ("fev", "feve"))
        assert mouse.scores["feve"] == pytest.approx(feve[fev >= 0.15].mean())
        shared = mouse.scores.keys() & beside[mouse_id]["summary"].keys()
        assert len(shared) == 3
        assert all(mouse.scores[name] == pytest.approx(beside[mouse_id]["summary"][name]) for name in shared)


def test_the_reply_shows_the_hash_of_the_demo_twin() -> None:
    assert json.loads(blocks("json")[0])["model"]["hash"] == load_manifest(DEMO).hash


@pytest.mark.slow
def test_curl_line_gives_the_output_that_is_shown(demo_server: Server) -> None:
    line = next(line for line in "".join(blocks("sh")).splitlines() if line.startswith("curl"))
    command = shlex.split(line.replace("http://127.0.0.1:3000", demo_server.url))
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    reply, shown = json.loads(output), json.loads(blocks("json")[0])
    del reply["request_id"], shown["request_id"]
    np.testing.assert_allclose(reply.pop("responses"), shown.pop("responses"), rtol=0, atol=1e-3)
    assert reply == shown


@pytest.mark.slow
def test_python_lines_work(demo_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code = blocks("python")[0].replace("http://127.0.0.1:3000", demo_server.url)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    prediction = names["prediction"]
    assert prediction.responses.shape == (3, 150)  # type: ignore[attr-defined]
    assert prediction.model.simulated  # type: ignore[attr-defined]
