"""A new mouse on the core of a checkpoint: what is trained, what stays bit for bit, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_twins import QUICK, tiny_checkpoint, tiny_config, tiny_mouse, tiny_run

from training.__main__ import main
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import ModelConfig
from training.data.batches import read_batch
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import ConfigError
from training.models import Twin
from training.trainer import transfer
from training.trainer.hardware import Hardware
from training.trainer.loop import train_member
from training.trainer.run import train_ensemble
from training.trainer.transfer import FeatureMaps, take_core, transfer_config
from training.trainer.update import Update

DROPOUT = {"patch_dropout": 0.2, "block_dropout": 0.3}


def core_of(config: ModelConfig) -> Checkpoint:
    """A core that was trained on mice "A" and "B", with a hash."""
    checkpoint = tiny_checkpoint(config)
    return Checkpoint(twin=checkpoint.twin, provenance=checkpoint.provenance, weights_hash="c0de")


def started(config: ModelConfig, recordings: dict[str, Recording]) -> Twin:
    torch.manual_seed(0)
    return Twin(config, [Mouse.from_recording(recording) for recording in recordings.values()])


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(DROPOUT),
        tiny_config({"kind": "cnn", "dropout": 0.2}),
        tiny_config(DROPOUT, b_mlp={"mice": "per_mouse"}),
        tiny_config(cropper={"size": (12, 20), "crop": 0.8, "shifter": "pupil_center"}),
    ],
    ids=["v1t", "cnn", "b_mlp per mouse", "image shifter"],
)
def test_a_frozen_core_stays_bit_for_bit_and_all_else_is_trained(
    recordings: dict[str, Recording], tmp_path: Path, config: ModelConfig
) -> None:
    core = core_of(config)
    before = {name: tensor.clone() for name, tensor in core.twin.core.state_dict().items()}
    train_member(tiny_run(recordings, config, QUICK, cores=[core], freeze_core=True), tmp_path)
    trained = load_checkpoint(tmp_path / "checkpoint")
    own = set(trained.twin.own_core_parameters())
    assert bool(own) == (config.b_mlp.mice == "per_mouse")
    for name, tensor in trained.twin.core.state_dict().items():
        if name not in own:
            assert torch.equal(tensor, before[name]), name  # buffers, such as batch norm's, too
    start = dict(started(config, recordings).named_parameters())
    for name, parameter in trained.twin.named_parameters():
        if not name.startswith("core.") or name.removeprefix("core.") in own:
            assert not torch.equal(parameter, start[name]), name
    assert trained.provenance["core"] == {
        "weights": "c0de",
        "frozen": True,
        "mice": ["A", "B"],
        "provenance": core.provenance,
    }


def test_without_freezing_the_core_is_trained_on(recordings: dict[str, Recording], tmp_path: Path) -> None:
    core = core_of(tiny_config())
    train_member(tiny_run(recordings, core.config, QUICK, cores=[core]), tmp_path)
    trained = load_checkpoint(tmp_path / "checkpoint").twin.core
    for (name, ours), theirs in zip(trained.named_parameters(), core.twin.core.parameters(), strict=True):
        assert not torch.equal(ours, theirs), name
        # three updates an epoch: nothing is further than Adam's steps from where it started
        assert float((ours - theirs).detach().abs().max()) <= 2 * 3 * 0.011, name


def test_a_frozen_core_has_no_dropout_and_no_l1(recordings: dict[str, Recording]) -> None:
    config = tiny_config(DROPOUT | {"l1": 0.7}, readout={"hidden": 4, "l1": 0.3})
    twin = started(config, recordings)
    take_core(twin, core_of(config))
    twin.freeze_core()
    twin.train()
    assert twin.readouts.training
    assert not any(module.training for module in twin.core.modules())
    features = twin.readout("SIM1").features
    expected = 0.3 * float(features.detach().abs().sum())
    assert twin.regularizer("SIM1").item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["vit", "cnn"])
def test_maps_that_are_kept_give_the_update_that_the_core_gives(recordings: dict[str, Recording], kind: str) -> None:
    config = tiny_config({"kind": kind})
    gradients: list[dict[str, Any]] = []
    for kept in (False, True):
        twin = started(config, recordings)
        take_core(twin, core_of(config))
        twin.freeze_core()
        twin.train()
        maps = FeatureMaps.of(twin, recordings, tiers=("train", "validation"), batch_size=7) if kept else None
        assert twin.training
        torch.manual_seed(1)  # positions are drawn alike
        for mouse_id, recording in recordings.items():
            indices = np.random.default_rng(0).permutation(recording.tier("train").indices)[:9]
            batch = read_batch(recording, indices, torch.device("cpu"))
            update = Update(twin, QUICK, recordings, Hardware().fabric(), maps=maps)
            update.accumulate(mouse_id, indices, batch, batch_size=9)
        gradients.append({name: p.grad for name, p in twin.named_parameters() if p.requires_grad})
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4, msg=name)


def test_maps_are_not_kept_where_they_change_or_do_not_fit(
    recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    for config in (tiny_config(b_mlp={"mice": "per_mouse"}), tiny_config(cropper={"shifter": "pupil_center"})):
        twin = started(config, recordings)
        twin.freeze_core()
        assert FeatureMaps.of(twin, recordings, tiers=("train",)) is None
    twin = started(tiny_config(), recordings)
    assert FeatureMaps.of(twin, recordings, tiers=("train",)) is None  # not frozen
    twin.freeze_core()
    assert FeatureMaps.of(twin, recordings, tiers=("train",)) is not None
    monkeypatch.setattr(transfer, "_free_memory", lambda device: 1000)
    assert FeatureMaps.of(twin, recordings, tiers=("train",)) is None


def test_a_core_of_other_images_is_refused(recordings: dict[str, Recording]) -> None:
    config = tiny_config(cropper={"size": None})
    core = tiny_checkpoint(config, [tiny_mouse("A", image_shape=(1, 20, 32))])
    with pytest.raises(ConfigError, match=r"does not fit the images.*got \(1, 18, 32\).*expected \(1, 20, 32\)"):
        take_core(started(config, recordings), core)
    with pytest.raises(ConfigError, match="does not fit this model"):
        take_core(started(tiny_config({"n_blocks": 3}), recordings), core_of(tiny_config()))


def test_options_of_the_core_come_from_its_checkpoint() -> None:
    core = core_of(tiny_config())
    assert transfer_config(core, {"readout.l1": 0.5, "core.dim": 6}, freeze=True).readout.l1 == 0.5
    assert transfer_config(core, {"core.block_dropout": 0.1}, freeze=False).core.block_dropout == 0.1
    for options, freeze in (
        ({"core.dim": 8}, False),
        ({"core.block_dropout": 0.1}, True),
        ({"behavior": "none"}, False),
        ({"cropper.crop": 0.5}, False),
        ({"b_mlp.mice": "per_mouse"}, False),
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(options))} is an option of the core"):
            transfer_config(core, options, freeze=freeze)


def test_the_command_fits_a_new_mouse_and_resumes(
    recordings: dict[str, Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core = save_checkpoint(tmp_path / "core", tiny_checkpoint(tiny_config()))
    arguments = ["train", "--recordings", str(recordings["SIM2"].path), "--output", str(tmp_path / "run")]
    arguments += ["--core", str(core), "--set", "training.max_epochs=2", "training.batch_size=8"]
    for _ in range(2):
        assert main([*arguments, "--freeze-core"]) == 0
    assert "kept 1 of 1 member" in capsys.readouterr().out
    fitted = load_checkpoint(tmp_path / "run" / "member-0" / "checkpoint")
    assert list(fitted.mice) == ["SIM2"]
    assert fitted.provenance["core"]["weights"] == load_checkpoint(core).weights_hash
    assert main(arguments) == 1
    assert "holds another run: its core differ" in capsys.readouterr().err
    for wrong, words in (
        (["--model", "cnn"], "brings the model"),
        (["--set", "core.dim=8"], "core.dim is an option of the core"),
    ):
        assert main([*arguments, *wrong]) == 1
        assert words in capsys.readouterr().err
    without = [part for part in arguments if part not in ("--core", str(core))]
    assert main([*without, "--freeze-core"]) == 1
    assert "no core to freeze" in capsys.readouterr().err


def test_members_start_from_the_cores_of_an_ensemble_in_turn(recordings: dict[str, Recording], tmp_path: Path) -> None:
    cores = [Checkpoint(twin=tiny_checkpoint(tiny_config(), seed=seed).twin, weights_hash=str(seed)) for seed in (1, 2)]
    one = QUICK.model_copy(update={"max_epochs": 1})
    paths = train_ensemble(
        tiny_run(recordings, training=one, members=3, cores=cores, freeze_core=True), tmp_path / "run"
    )
    for path, core in zip(paths, (cores[0], cores[1], cores[0]), strict=True):
        fitted = load_checkpoint(path)
        assert fitted.provenance["core"]["weights"] == core.weights_hash
        for name, tensor in fitted.twin.core.state_dict().items():
            assert torch.equal(tensor, core.twin.core.state_dict()[name])
