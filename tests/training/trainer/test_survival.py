"""Runs that are killed, full disks, broken files: nothing is lost, and the end is the unbroken run's."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reliability.training_kills import describe, kill_and_resume
from support.tiny_twins import QUICK, tiny_config, tiny_recordings, tiny_run

from training.checkpoints import checkpoint as checkpoint_module
from training.checkpoints.checkpoint import load_checkpoint
from training.config import TrainingConfig
from training.data.recordings import Recording
from training.errors import CheckpointError, DivergenceError, RecordingError
from training.trainer import loop
from training.trainer import state as run_state
from training.trainer.loop import train_member

DROPOUT = {"patch_dropout": 0.1, "block_dropout": 0.2}


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    result = kill_and_resume(tmp_path, kills=4, members=2, seed=0)
    assert result.kills == 4, describe(result)
    assert result.same_weights, describe(result)
    assert result.same_logs, describe(result)


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = (torch.load(folder / "state.pt", weights_only=True)["twin"] for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name


OFTEN = QUICK.model_copy(update={"save_minutes": 1e-9, "max_epochs": 3})


@pytest.fixture(scope="module")
def whole(recordings: dict[str, Recording], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run that saves its state after every update."""
    folder = tmp_path_factory.mktemp("whole")
    train_member(tiny_run(recordings, tiny_config(DROPOUT), OFTEN, seed=5), folder)
    return folder


@pytest.mark.parametrize("stop", [1, 2, 4, 7])
def test_within_an_epoch_a_run_resumes_from_its_saved_state(
    recordings: dict[str, Recording], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    spec = tiny_run(recordings, tiny_config(DROPOUT), OFTEN, seed=5)
    step, done = loop._step, []

    def broken(*args: Any, **options: Any) -> float:
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(1)
        return step(*args, **options)

    monkeypatch.setattr(loop, "_step", broken)
    with pytest.raises(KeyboardInterrupt):
        train_member(spec, tmp_path / "broken")
    kept = torch.load(tmp_path / "broken" / "state.pt", weights_only=True)
    assert 3 * kept["epoch"] + kept["step"] == stop
    stop = 1000
    train_member(spec, tmp_path / "broken")
    assert len(done) == 9  # no update was made twice
    assert_equal_weights(whole, tmp_path / "broken")
    folders = (whole, tmp_path / "broken")
    assert len({load_checkpoint(folder / "checkpoint").weights_hash for folder in folders}) == 1
    logs = [(folder / "log.csv").read_text().splitlines() for folder in folders]
    assert [line.split(",")[:4] for line in logs[0]] == [line.split(",")[:4] for line in logs[1]]


@pytest.fixture(scope="module")
def two_epochs(recordings: dict[str, Recording], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("two-epochs")
    train_member(tiny_run(recordings, seed=1), folder)
    return folder


@pytest.fixture(scope="module")
def one_epoch(recordings: dict[str, Recording], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run after its first epoch."""
    folder = tmp_path_factory.mktemp("one-epoch")
    train_member(tiny_run(recordings, training=QUICK.model_copy(update={"max_epochs": 1}), seed=1), folder)
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save({**state, "finished": False}, folder / "state.pt")
    return folder


@pytest.mark.parametrize("full_at", ["state.pt", "log.csv", "config.json", "weights"])
def test_a_full_disk_ends_a_run_that_resumes_once_there_is_space(
    recordings: dict[str, Recording],
    two_epochs: Path,
    one_epoch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    full_at: str,
) -> None:
    shutil.copytree(one_epoch, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    write = checkpoint_module.write_atomically

    def full(path: Path, content: bytes) -> None:
        if path.name.startswith(full_at):
            path.with_name(f".{path.name}.partial").write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    for module in (checkpoint_module, run_state):
        monkeypatch.setattr(module, "write_atomically", full)
    every = TrainingConfig(**{**QUICK.model_dump(), "save_minutes": 1e-9})
    with pytest.raises(CheckpointError, match="No space left on device"):
        train_member(tiny_run(recordings, training=every, seed=1), tmp_path / "run")
    if full_at == "state.pt":
        assert (tmp_path / "run" / "state.pt").read_bytes() == before["state.pt"]
    monkeypatch.undo()
    train_member(tiny_run(recordings, seed=1), tmp_path / "run")
    assert_equal_weights(two_epochs, tmp_path / "run")


def test_weights_that_became_nan_are_not_kept(
    recordings: dict[str, Recording], one_epoch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss before the step was finite, so the loss alone would not tell."""
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "state.pt").read_bytes()
    step, done = loop._step, []

    def spoiling(update: Any, *args: Any, **options: Any) -> float:
        loss = step(update, *args, **options)
        done.append(1)
        if len(done) == 3:  # the last update of the epoch
            with torch.no_grad():
                update.twin.readout("SIM1").bias[0] = torch.nan
        return loss

    monkeypatch.setattr(loop, "_step", spoiling)
    monkeypatch.setattr(loop, "validate", lambda _: 0.0)
    with pytest.raises(DivergenceError, match="weights became NaN or infinite"):
        train_member(tiny_run(recordings, seed=1), tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_state_that_is_no_state_is_refused_by_name(
    recordings: dict[str, Recording], one_epoch: Path, tmp_path: Path
) -> None:
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    content = (tmp_path / "state.pt").read_bytes()
    for broken in (b"", content[: len(content) // 2], b"no state"):
        (tmp_path / "state.pt").write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"state\.pt cannot be resumed from"):
            train_member(tiny_run(recordings), tmp_path)


@pytest.mark.parametrize("folder", ["images", "responses", "behavior", "pupil_center"])
def test_a_truncated_file_is_named_before_any_training(tmp_path: Path, folder: str) -> None:
    (recording,) = tiny_recordings(tmp_path, n_train=(6,))
    path = recording.path / "data" / folder / "3.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RecordingError, match=rf"data/{folder}/3\.npy"):
        Recording.open(recording.path, cache=tmp_path / "another")
    assert not any((tmp_path / "another").glob("*"))


def test_a_mouse_with_one_trial_is_refused_before_any_folder_is_made(tmp_path: Path) -> None:
    (recording,) = tiny_recordings(tmp_path, n_train=(6,))
    train = np.flatnonzero(recording.tiers == "train")
    recording.tiers[train[1:]] = "validation"
    with pytest.raises(RecordingError, match="'SIM1' has too few training trials; got 1; expected 2 or more"):
        train_member(tiny_run({"SIM1": recording}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
