"""Runs whose readouts start from the training trials: what they keep, that they repeat, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_twins import QUICK, tiny_config, tiny_run

from training.data.recordings import Recording
from training.errors import CheckpointError, ConfigError
from training.trainer import loop
from training.trainer.hardware import Hardware
from training.trainer.loop import start_member, train_member
from training.trainer.readout_start import positions
from training.trainer.readout_start.start import START, load_start, start_from_trials, start_readouts
from training.trainer.run import train_ensemble

TRIALS = QUICK.model_copy(update={"readout_start": "trials"})


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions need not be right here."""
    monkeypatch.setattr(positions, "TO_PEAKS", 10)
    monkeypatch.setattr(positions, "TO_MAPS", 10)


@pytest.mark.parametrize("kind", ["vit", "cct", "cnn", "ln"])
def test_a_run_keeps_where_its_readouts_started(
    recordings: dict[str, Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    spec = tiny_run(recordings, tiny_config({"kind": kind}), TRIALS, seed=3)
    train_member(spec, tmp_path, label="member 1/1")
    twin = start_member(spec, Hardware().fabric()).twin
    kept = load_start(tmp_path)
    assert list(kept) == list(recordings)
    said = []
    for mouse_id, recording in recordings.items():
        found = start_from_trials(twin, recording)
        np.testing.assert_array_equal(kept[mouse_id].positions, twin.readout(mouse_id).mu.detach().numpy())
        np.testing.assert_array_equal(kept[mouse_id].clearness, found.clearness.numpy())
        np.testing.assert_array_equal(kept[mouse_id].clear, found.clear.numpy())
        said.append(f"{mouse_id} {int(found.clear.sum())} of {recording.n_neurons}")
    assert f"neurons with a clear receptive field: {', '.join(said)}\n" in capsys.readouterr().out


def test_training_begins_at_the_start_and_at_random_draws_of_its_own(
    recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def train_epoch(update: Any, state: Any, *args: Any, **kwargs: Any) -> tuple[float, float]:
        state.seed_epoch(0)
        seen.append((state.twin.readout("SIM1").mu.detach().clone(), torch.get_rng_state()))
        return 0.0, 0.0

    monkeypatch.setattr(loop, "_train_epoch", train_epoch)
    for start in ("trials", "random"):
        training = QUICK.model_copy(update={"readout_start": start, "max_epochs": 1})
        train_member(tiny_run(recordings, tiny_config(), training), tmp_path / start)
    np.testing.assert_array_equal(load_start(tmp_path / "trials")["SIM1"].positions, seen[0][0].numpy())
    assert load_start(tmp_path / "random") == {}
    assert not torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize("stop", ["before its first state", "after an epoch"])
def test_a_run_that_was_interrupted_ends_with_the_same_weights(
    recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    spec = tiny_run(recordings, tiny_config({"patch_dropout": 0.1}), TRIALS)
    train_member(spec, tmp_path / "unbroken")

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if stop == "before its first state":
            patched.setattr(loop, "_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_member(spec, tmp_path / "broken", on_epoch=interrupt)
    assert (tmp_path / "broken" / "state.pt").exists() == (stop == "after an epoch")
    train_member(spec, tmp_path / "broken")
    ends = [torch.load(tmp_path / name / "state.pt", weights_only=True)["twin"] for name in ("unbroken", "broken")]
    for name, weights in ends[0].items():
        assert torch.equal(weights, ends[1][name]), name
    assert (tmp_path / "broken" / START).read_bytes() == (tmp_path / "unbroken" / START).read_bytes()


@pytest.mark.parametrize(("grid", "start"), [("patches", "trials"), ("nearest_square", "random")])
def test_auto_starts_from_the_trials_where_places_are_those_of_the_image(
    recordings: dict[str, Recording], tmp_path: Path, grid: str, start: str
) -> None:
    model = tiny_config({"token_grid": grid, "patch_stride": 2}, cropper={"size": None})  # 8 x 15 patches
    training = QUICK.model_copy(update={"readout_start": "auto"})
    twin = start_member(tiny_run(recordings, model), Hardware().fabric()).twin
    assert start_readouts(twin, None, recordings, training, tmp_path) == start
    assert (tmp_path / START).exists() == (start == "trials")


def test_what_cannot_start_from_the_trials_is_refused_before_any_work(
    recordings: dict[str, Recording], tmp_path: Path
) -> None:
    square = tiny_config({"token_grid": "nearest_square", "patch_stride": 2}, cropper={"size": None})  # 8 x 15 patches
    with pytest.raises(ConfigError, match="readout_start to 'random'"):
        train_ensemble(tiny_run(recordings, square, TRIALS), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / START).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(CheckpointError, match=START):
        load_start(tmp_path)
