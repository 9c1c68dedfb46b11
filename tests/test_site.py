"""The documentation site: every command of its pages is run, every page is reachable, and notebooks have no outputs."""

from __future__ import annotations

import glob
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from support.checkout import ROOT
from support.live_server import Server

DOCS = ROOT / "docs"
START = DOCS / "start"
# What CI runs by itself, before the tests (.ci/run), and every test needs.
RUN_BY_CI = ("make serve", "make install && . .venv/bin/activate")


def commands(page: Path) -> list[str]:
    """The lines of a page's `sh` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line]


def new_pages() -> Iterator[Path]:
    yield from START.glob("*.md")
    for name in ("index", "howto", "concepts", "operate", "develop"):
        yield DOCS / f"{name}.md"


def test_every_command_is_one_that_ci_or_a_test_below_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"make install", "make serve", "make docs"} <= {line.removesuffix(" &") for line in ci.splitlines()}
    for page in new_pages():
        for command in commands(page):
            if command.startswith("pip install "):
                (what,) = shlex.split(command)[2:]
                folder, _, extra = what.removesuffix("]").partition("[")
                text = (ROOT / folder / "pyproject.toml").read_text(encoding="utf-8")
                assert not extra or re.search(rf"^{extra} = \[", text, flags=re.MULTILINE), command
            elif command not in RUN_BY_CI:
                assert page.parent == START, command
                assert command.startswith(("v1t ", "curl ", "python -m training ")), command


def test_every_page_is_in_a_list_of_pages() -> None:
    listed = set()
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"```{toctree}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / re.sub(r".*<(.*)>", r"\1", name)).relative_to(DOCS).as_posix() for name in names}
    pages = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    assert listed == {path.relative_to(DOCS).with_suffix("").as_posix() for path in pages} - {"index"}


def test_notebooks_are_committed_without_outputs() -> None:
    notebooks = list(DOCS.rglob("*.ipynb"))
    assert len(notebooks) == 2
    for path in notebooks:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                assert cell.outputs == []
                assert cell.execution_count is None


@pytest.mark.slow
def test_the_commands_of_asking_a_twin_work(
    demo_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from v1t_client._cli import main

    page = START / "ask-a-twin.md"
    (tmp_path / "docs").symlink_to(DOCS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("V1T_URL", demo_server.url)
    run = 0
    for command in commands(page):
        arguments = shlex.split(command.replace("http://127.0.0.1:3000", demo_server.url))
        if arguments[0] == "v1t":
            assert main(arguments[1:]) == 0, command
            run += 1
        elif arguments[0] == "curl":
            reply = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
            assert '"responses"' in reply
            run += 1
    assert run == 7
    assert "SIMULATED" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"docs", "rf-SIM1", "tuning-SIM1", "mei-SIM1"}
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    exec(compile(code.replace("http://127.0.0.1:3000", demo_server.url), str(page), "exec"), {})


SIZES = {  # the pages' commands, made small
    "simulate": "--neurons 6 --train-trials 24 --validation-trials 8 --test-images 4 --test-repeats 3 "
    "--image-shape 1 18 32",
    "train": "--set training.max_epochs=1 training.batch_size=8",
}
SMALL_MODEL = "core.patch_size=4 core.patch_stride=3 core.n_blocks=1 core.n_heads=2 core.dim=6 core.mlp_dim=8"


def run_training(command: str, more: str = "") -> None:
    """Runs `python -m training ...` in this process, with more options."""
    from training.__main__ import main

    arguments = shlex.split(command)[3:]
    arguments = [path for one in arguments for path in (sorted(glob.glob(one)) if "*" in one else [one])]
    assert main([*arguments, *shlex.split(more)]) == 0, command


@pytest.mark.slow
def test_the_commands_of_training_on_a_recording_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = []
    for command in commands(START / "train-on-a-recording.md"):
        if command.startswith("python -m training "):
            verb = command.split()[3]
            small = SMALL_MODEL if verb == "train" and "--core" not in command else ""
            run_training(command, f"{SIZES.get(verb, '')} {small}")
            run.append(verb)
    assert run == ["simulate", "inspect", "train", "evaluate", "export", "train"]
    assert (tmp_path / "exported_models" / "mine" / "manifest.json").is_file()
    assert (tmp_path / "runs" / "v1t-scores" / "scores.md").is_file()


@pytest.mark.slow
def test_the_commands_of_serving_a_checkpoint_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.reference_run import write_reference_run
    from support.tiny_twins import tiny_config, tiny_recordings, tiny_twin

    from server.inference.engine import Engine
    from training.data.mouse import Mouse

    monkeypatch.chdir(tmp_path)
    recordings = tiny_recordings(tmp_path / "path" / "to" / "recordings")
    config = tiny_config({"token_grid": "nearest_square"}, cropper={}, readout={})  # as in the reference code
    mice = [Mouse.from_recording(recording) for recording in recordings]
    write_reference_run(tmp_path / "path" / "to" / "run", tiny_twin(config, mice))
    run = [
        command for command in commands(START / "serve-a-checkpoint.md") if command.startswith("python -m training ")
    ]
    assert [command.split()[3] for command in run] == ["import", "export", "describe", "evaluate"]
    for command in run:
        run_training(command)
    assert set(Engine.load(tmp_path / "exported_models" / "mine").manifest.mice) == {"SIM1", "SIM2"}
