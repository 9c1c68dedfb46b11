"""Runs: resuming, logs, dry runs, run folders as older versions wrote them, and the command's options."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_twins import QUICK, tiny_checkpoint, tiny_config, tiny_run

from training.__main__ import main
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.config import TrainingConfig, parse_options, parse_training
from training.data.recordings import Recording
from training.errors import ConfigError
from training.trainer import dry_run, loop
from training.trainer.advice import for_small_recordings
from training.trainer.dry_run import describe_run
from training.trainer.hardware import Hardware
from training.trainer.loop import train_member
from training.trainer.run import train_ensemble
from training.trainer.run_spec import RunSpec
from training.trainer.state import Logs


@pytest.mark.slow
def test_an_ensemble_resumes_at_the_member_that_was_interrupted(
    recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_run(recordings, members=3, keep=2)
    whole = train_ensemble(spec, tmp_path / "whole")
    epochs = 0
    validate = loop.validate

    def broken(update: Any) -> float:
        nonlocal epochs
        epochs += 1
        if epochs == 4:  # of two epochs a member, the second one's second
            raise KeyboardInterrupt
        return validate(update)

    monkeypatch.setattr(loop, "validate", broken)
    with pytest.raises(KeyboardInterrupt):
        train_ensemble(spec, tmp_path / "broken")
    assert not (tmp_path / "broken" / "members.json").exists()
    monkeypatch.undo()
    updates = 0
    step = loop._step

    def counted(*args: Any, **options: Any) -> float:
        nonlocal updates
        updates += 1
        return step(*args, **options)

    monkeypatch.setattr(loop, "_step", counted)
    resumed = train_ensemble(spec, tmp_path / "broken")
    assert updates == 3 * (1 + 2)  # the second member's second epoch, and the third member
    hashes = [[load_checkpoint(path).weights_hash for path in paths] for paths in (whole, resumed)]
    assert hashes[0] == hashes[1]
    assert [path.parent.name for path in whole] == [path.parent.name for path in resumed]


# `run.json` as the code before `RunSpec` wrote it; the hashes of the recordings are filled in.
OLD_RUN = """{
  "config": {
    "core": {
      "kind": "vit", "tokenizer": "sliding_window", "patch_size": 4, "patch_stride": 3, "n_blocks": 2, "n_heads": 2,
      "dim": 6, "mlp_dim": 8, "attention": "softmax", "bias": true, "patch_dropout": 0.0, "block_dropout": 0.0,
      "stochastic_depth": 0.0, "l1": 0.5379, "token_grid": "patches"
    },
    "behavior": "b_mlp",
    "b_mlp": {"inputs": "behavior_and_pupil_center", "mice": "shared", "blocks": "each", "hidden": "half"},
    "cropper": {"crop": 1.0, "shifter": "none", "size": [12, 20], "grayscale": false},
    "shifter": true,
    "readout": {"position": "network", "coordinates": "xy", "hidden": 4, "bias": "zero", "l1": 0.0076}
  },
  "training": {
    "batch_size": 8, "micro_batch": null, "learning_rate": 0.01, "warmup": 0, "beta1": 0.9, "beta2": 0.9999,
    "max_epochs": 2, "monitor": "correlation", "patience": 10, "factor": 0.3, "max_reductions": 2,
    "readout_start": "auto", "scale_loss": true, "save_minutes": 10.0
  },
  "data_hashes": {"SIM1": "HASH-SIM1", "SIM2": "HASH-SIM2"},
  "seed": 0,
  "core": CORE,
  "commit": "ea7b9cf3919d31a360124dbcf01cc5488a025347+"
}"""


@pytest.mark.parametrize("transferred", [False, True])
def test_a_run_folder_of_the_code_before_is_resumed(
    recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transferred: bool
) -> None:
    text = OLD_RUN.replace("CORE", '{"weights": ["c0de"], "frozen": true}' if transferred else "null")
    for mouse_id, recording in recordings.items():
        text = text.replace(f"HASH-{mouse_id}", recording.data_hash)
    core = Checkpoint(tiny_checkpoint(tiny_config()).twin, weights_hash="c0de")
    training = QUICK.model_copy(update={"readout_start": "auto"})
    cores: dict[str, Any] = {"cores": [core], "freeze_core": True} if transferred else {}
    spec = tiny_run(recordings, training=training, **cores)
    assert spec.identity() == {key: value for key, value in json.loads(text).items() if key != "commit"}
    folder = tmp_path / "run"
    (folder / "member-0").mkdir(parents=True)
    (folder / "run.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr("training.trainer.run.train_members", lambda spec, run, ray: [0.5])
    assert train_ensemble(spec, folder) == [folder / "member-0" / "checkpoint"]
    assert (folder / "run.json").read_text(encoding="utf-8") == text
    members = json.loads((folder / "members.json").read_text(encoding="utf-8"))
    assert members == {"validation_single_trial_correlation": [0.5], "kept": [0]}


def test_tensorboard_has_every_epoch_once(
    recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    one = QUICK.model_copy(update={"max_epochs": 3})
    validate, calls = loop.validate, []

    def broken(update: Any) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return validate(update)

    monkeypatch.setattr(loop, "validate", broken)
    with pytest.raises(KeyboardInterrupt):
        train_member(tiny_run(recordings, training=one, tensorboard=True), tmp_path)
    train_member(tiny_run(recordings, training=one, tensorboard=True), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    with (tmp_path / "log.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"epoch"}
    for name in ("loss", "validation", "learning_rate", "waited"):
        logged = events.Scalars(name)
        assert [event.step for event in logged] == [1, 2, 3]
        assert [event.value for event in logged] == pytest.approx([float(row[name]) for row in rows], rel=1e-5)


def test_without_tensorboard_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        Logs(tmp_path, epochs=0, tensorboard=True)


def test_a_dry_run_says_what_a_run_needs_and_writes_nothing(
    recordings: dict[str, Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_run(recordings, members=3)
    text = describe_run(spec)
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if not line.startswith("whole"))
    twin = loop.start_member(spec, Hardware().fabric()).twin
    n_core = sum(parameter.numel() for parameter in twin.core.parameters())
    assert f"core {n_core:,}" in lines["parameters"]
    assert "trials/s" in lines["update"]
    assert "whole run    at most" in text
    assert "2 epochs, 3 members" in text
    paths = [str(recording.path) for recording in recordings.values()]
    options = ["core.patch_size=4", "core.patch_stride=4", "core.n_blocks=1", "core.dim=6", "cropper.size=[12, 20]"]
    output = tmp_path / "run"
    assert main(["train", "--recordings", *paths, "--output", str(output), "--dry-run", "--set", *options]) == 0
    assert "whole run" in capsys.readouterr().out
    assert not output.exists()


def test_the_command_trains_mice_of_any_name_without_their_trials_with_nan(
    recordings: dict[str, Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With options that are given several times: all of them count."""
    names = {"SIM1": "2023.04.01_mouse1", "SIM2": "keys"}
    for mouse_id, name in names.items():
        shutil.copytree(recordings[mouse_id].path, tmp_path / name)
        (tmp_path / name / "meta" / "simulated.json").unlink()
    trial = int(recordings["SIM2"].tier("train").indices[0])
    np.save(tmp_path / "keys" / f"data/pupil_center/{trial}.npy", np.array([np.nan, 1.0]))
    arguments = ["train", "--output", str(tmp_path / "run")]
    for name in (*names.values(), "third=" + str(recordings["SIM1"].path)):
        arguments += ["--recordings", name if "=" in name else str(tmp_path / name)]
    sizes = ["core.patch_size=4", "core.patch_stride=4", "core.n_blocks=1", "core.dim=6", "cropper.size=[12, 20]"]
    for option in (*sizes, "training.max_epochs=1"):
        arguments += ["--set", option]
    assert main(arguments) == 1
    assert "recording 'keys'" in (refused := capsys.readouterr().err)
    assert "Add --nan-trials exclude" in refused
    assert main([*arguments, "--nan-trials", "exclude"]) == 0
    checkpoint = load_checkpoint(tmp_path / "run" / "member-0" / "checkpoint")
    assert list(checkpoint.mice) == [*names.values(), "third"]
    assert (checkpoint.config.core.dim, checkpoint.provenance["training"]["max_epochs"]) == (6, 1)  # type: ignore[union-attr]
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.twin.state_dict().values())


def test_a_dry_run_of_a_long_run_says_what_makes_it_shorter(
    recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(spec: RunSpec, *, updates: int = 3) -> Any:
        found = real(spec, updates=updates)
        core = spec.model.core
        step = {1: 100.0, 2: 40.0, 4: 95.0}[core.patch_stride] * (1.5 if spec.hardware.precision == "bf16" else 1.0)
        return replace(found, step=step, epoch=step, run=step * spec.training.max_epochs * spec.members)

    real = dry_run._measure
    monkeypatch.setattr(dry_run, "_measure", measured)
    training = QUICK.model_copy(update={"max_epochs": 60})
    model = tiny_config({"patch_size": 4, "patch_stride": 1, "n_blocks": 1})
    text = describe_run(tiny_run(recordings, model, training, members=2))
    assert [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith("shorter")] == [
        "at most 80.0 min with --set core.patch_stride=2",
        "at most 1.7 h with --set training.max_epochs=30",
        "at most 1.7 h with --members 1",
    ]
    assert "whole run    at most 3.3 h" in text


def test_time_left_counts_the_members_that_are_still_to_be_trained(recordings: dict[str, Recording]) -> None:
    def left(member: int, epoch: int, **options: int) -> int:
        return loop.epochs_left(tiny_run(recordings, **options), member, epoch)  # of 2 epochs

    assert [left(member, epoch, members=3) for member in range(3) for epoch in (1, 2)] == [5, 4, 3, 2, 1, 0]
    assert [left(member, 1, members=5, parallel=2) for member in range(5)] == [5, 5, 3, 3, 1]


def test_a_small_recording_gets_a_suggestion_that_is_not_chosen_for_the_user(
    recordings: dict[str, Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for_paper = TrainingConfig()
    text = for_small_recordings(tiny_run(recordings, training=for_paper))
    assert text is not None
    _, options = parse_options(text.split("--set ")[1].split())
    chosen = parse_training(options)
    assert chosen.learning_rate > for_paper.learning_rate
    assert chosen.warmup > 0
    for spec in (
        tiny_run(recordings, training=chosen),
        tiny_run(recordings, training=TrainingConfig(learning_rate=0.002)),
        tiny_run(recordings, tiny_config({"kind": "cnn"}), TrainingConfig()),
    ):
        assert for_small_recordings(spec) is None
    big = SimpleNamespace(tier=lambda name: range(4500))
    assert for_small_recordings(tiny_run({"A": big}, training=for_paper)) is None  # type: ignore[dict-item]


def test_a_run_ends_with_its_score_and_with_commands_that_work(
    recordings: dict[str, Recording],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = [str(recording.path) for recording in recordings.values()]
    run = tmp_path / "a run"
    options = ["core.patch_size=4", "core.patch_stride=4", "core.n_blocks=1", "core.dim=6", "cropper.size=[12, 20]"]
    arguments = ["train", "--recordings", *paths, "--output", str(run), "--members", "2"]
    assert main([*arguments, "--set", *options, "training.max_epochs=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    scores = [
        load_checkpoint(run / f"member-{i}" / "checkpoint").provenance["validation_single_trial_correlation"]
        for i in range(2)
    ]
    assert f"validation single-trial correlation: {scores[0]:.4f}, {scores[1]:.4f}" in lines
    commands = [shlex.split(line) for line in lines[lines.index("next:") + 1 :]]
    assert [command[:4] for command in commands] == [
        ["python", "-m", "training", verb] for verb in ("evaluate", "export")
    ]
    assert main(commands[0][3:]) == 0
    assert (tmp_path / "a run-scores" / "scores.json").is_file()
    exported: list[Any] = []
    monkeypatch.setattr(
        "training.export.bundle.export_bundle", lambda *given, **_: exported.append(given) or sys.exit(0)
    )
    with pytest.raises(SystemExit):
        main(commands[1][3:])
    assert exported[0][1] == Path("exported_models/a run")


def test_the_command_hands_its_hardware_on(
    recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunSpec] = []

    def noted(spec: RunSpec, run: Path, *, ray: str | None) -> list[float]:
        seen.append(spec)
        return [0.0] * spec.members

    monkeypatch.setattr("training.trainer.run.train_members", noted)
    arguments = ["train", "--recordings", str(recordings["SIM1"].path), "--output", str(tmp_path / "run")]
    arguments += ["--members", "4", "--keep", "2", "--parallel", "2", "--precision", "bf16", "--deterministic"]
    assert main([*arguments, "--tensorboard", "--device", "cpu", "--compile"]) == 0
    (spec,) = seen
    assert (spec.members, spec.keep, spec.parallel, spec.tensorboard) == (4, 2, 2, True)
    assert [spec.provenance(i)["seed"] for i in range(4)] == [0, 1, 2, 3]
    assert spec.hardware == Hardware(precision="bf16", deterministic=True, compile=True)


def test_validation_loss_can_be_what_is_watched(recordings: dict[str, Recording], tmp_path: Path) -> None:
    watched = QUICK.model_copy(update={"monitor": "loss"})
    score = train_member(tiny_run(recordings, training=watched), tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    expected = []
    for recording in recordings.values():
        indices = recording.tier("validation").indices
        y = torch.from_numpy(loop.predict_trials(checkpoint.twin, recording, indices)).double().numpy()
        r = recording.responses(indices).astype(float) / recording.response_std
        eps = torch.finfo(torch.float32).eps
        expected.append(float((y + eps - (r + eps) * np.log(y + eps)).sum() / len(indices)))
    assert score == pytest.approx(-sum(expected) / 2, rel=1e-5)
    assert checkpoint.provenance["validation_loss"] == pytest.approx(-score)
