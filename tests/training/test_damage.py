"""Damage of every kind to recordings, runs and checkpoints: a refusal by name or an unharmed answer, nothing else."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support.recordings import NAME, SHAPE, T, write_recording
from support.reference_run import write_reference_run
from support.tiny_twins import QUICK, tiny_checkpoint, tiny_config, tiny_run, tiny_twin

from training import files
from training.checkpoints.checkpoint import CONFIG, load_checkpoint, save_checkpoint
from training.checkpoints.ensemble import member_checkpoints
from training.checkpoints.importer import import_weights
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import TrainingError
from training.trainer.run import train_ensemble

JUNK: list[Any] = [None, -1, 0, 10**12, 1e308, float("nan"), "x", "\x00", "", [], {}, [[]], [None], {"a": {}}, True]
OTHERS = [b"", b"\x00" * 64, b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"\x80\x04]r\xff\xff\xff\xff."]


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The bytes cut off, overwritten in one place, doubled in part, or replaced."""
    kind, place = rng.integers(4), int(rng.integers(max(1, len(content))))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + rng.bytes(int(rng.integers(1, 9))) + content[place + 4 :]
    if kind == 2:
        return content[:place] + content[place // 2 :]
    return OTHERS[rng.integers(len(OTHERS))]


def with_junk(content: Any, rng: np.random.Generator) -> Any:
    """A copy of a nested value in which one part is replaced by junk, or left out."""
    content = copy.deepcopy(content)
    places = list(_places(content))
    parent, key = places[rng.integers(len(places))]
    if isinstance(parent, dict) and rng.integers(4) == 0:
        del parent[key]
    else:
        parent[key] = copy.deepcopy(JUNK[rng.integers(len(JUNK))])
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


def refused(error: TrainingError, *names: str) -> bool:
    return any(name in str(error) for name in names)


@pytest.mark.filterwarnings("ignore:.*Python 2.*:UserWarning")
def test_damaged_recordings_are_refused_by_name(tmp_path: Path) -> None:
    folder, rng = tmp_path / NAME, np.random.default_rng(0)
    write_recording(folder)
    arrays = [path.relative_to(folder) for path in sorted(folder.rglob("*.npy"))]
    meta = [path for path in arrays if path.parts[0] == "meta"]
    opened = 0
    for i in range(150):
        path = folder / (meta if i % 2 else arrays)[rng.integers(len(meta if i % 2 else arrays))]
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        try:
            recording = Recording.open(folder)
            opened += 1
            assert recording.image_shape == SHAPE
            assert recording.n_trials == T
            assert np.isfinite(recording.batch(np.arange(T)).response).all()
        except TrainingError as error:
            assert refused(error, NAME), error  # noqa: PT017
        path.write_bytes(whole)
    assert opened < 75  # the damage was damage


def test_damaged_runs_are_refused_by_name(tmp_path: Path) -> None:
    mice = [Mouse.without_recording(name, (1, 36, 64), n) for name, n in (("A", 5), ("B", 3))]
    twin = tiny_twin(tiny_config({"patch_stride": 4, "token_grid": "nearest_square"}, cropper={}, readout={}), mice)
    run, rng = write_reference_run(tmp_path / "run", twin), np.random.default_rng(1)
    args, state = run / "args.yaml", run / "ckpt" / "model_state.pt"
    options, weights = yaml.safe_load(args.read_text()), state.read_bytes()
    for i in range(200):
        args.write_text(yaml.safe_dump(options if i % 2 else with_junk(options, rng)))
        state.write_bytes(damaged(weights, rng) if i % 2 else weights)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert next(iter(import_weights(run).mice)) == "A"
        except TrainingError as error:
            assert refused(error, "args.yaml", "model_state.pt"), error  # noqa: PT017


def test_damaged_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    whole, rng = save_checkpoint(tmp_path / "whole", tiny_checkpoint(tiny_config())), np.random.default_rng(2)
    description = json.loads((whole / CONFIG).read_text())
    description["config"]["core"] |= {"dim": 6}
    for i in range(160):
        folder = tmp_path / "damaged"
        shutil.copytree(whole, folder)
        if i % 4 == 0:
            path = next(folder.glob("*.safetensors")) if i % 8 else folder / CONFIG
            path.write_bytes(damaged(path.read_bytes(), rng))
        else:
            (folder / CONFIG).write_text(json.dumps(with_junk(description, rng)))
        try:
            load_checkpoint(folder)
        except TrainingError as error:
            assert refused(error, "damaged"), error  # noqa: PT017
        shutil.rmtree(folder)


def test_damaged_states_of_runs_are_refused_by_name(recordings: dict[str, Recording], tmp_path: Path) -> None:
    spec, rng = tiny_run(recordings, training=QUICK.model_copy(update={"max_epochs": 1})), np.random.default_rng(3)
    run = tmp_path / "run"
    train_ensemble(spec, run)
    state = run / "member-0" / "state.pt"
    content = torch.load(state, weights_only=True)
    whole = {path: path.read_bytes() for path in (state, run / "run.json", run / "members.json")}
    for i in range(60):
        path = list(whole)[i % 3]
        path.write_bytes(damaged(whole[path], rng))
        if i % 6 == 3:
            torch.save(with_junk(content, rng), state)
        try:
            member_checkpoints([run])
            train_ensemble(spec, run)
        except TrainingError as error:
            assert refused(error, path.name, "holds another run"), error  # noqa: PT017
        for file, written in whole.items():
            file.write_bytes(written)


def test_a_full_disk_at_the_first_write_of_a_run_is_named(
    recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(TrainingError, match=r"cannot write run .*No space left"):
        train_ensemble(tiny_run(recordings), tmp_path / "run")
