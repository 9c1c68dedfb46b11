"""Devices and precisions: several processes make one process's update, and the same seed makes the same weights."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from support.tiny_twins import QUICK, tiny_config, tiny_run, tiny_twin

from training.checkpoints.checkpoint import load_checkpoint
from training.config import ModelConfig
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import CheckpointError, ConfigError
from training.files import locked
from training.models import Twin
from training.trainer.hardware import Hardware, leave_together
from training.trainer.loop import train_member
from training.trainer.members import member_folder, placed_hardware, train_members
from training.trainer.update import Update

DROPOUT = {"patch_dropout": 0.1, "block_dropout": 0.2}


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def gradients(
    fabric: Fabric,
    config: ModelConfig,
    recordings: dict[str, Recording],
    *,
    compiled: bool = False,
    training: bool = False,
    mice: tuple[str, ...] = ("SIM1", "SIM2"),
) -> tuple[float, dict[str, torch.Tensor]]:
    """Of one update for these mice, in evaluation mode: without dropout and drawn positions it is a function."""
    twin: Twin = tiny_twin(config, [Mouse.from_recording(recording) for recording in recordings.values()])
    update = Update(twin, QUICK, recordings, fabric, compiled=torch.compile(twin.core) if compiled else None)
    twin.train(training)
    torch.manual_seed(9)
    trials = {
        "SIM1": recordings["SIM1"].tier("train").indices[:7],
        "SIM2": recordings["SIM2"].tier("train").indices[:1],  # of two processes, one gets no trial
    }
    loss = update.gradients({mouse_id: trials[mouse_id] for mouse_id in mice})
    return loss, {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


def share(fabric: Fabric, pickled: bytes) -> Any:
    """One of two processes."""
    config, recordings, folder = pickle.loads(pickled)
    loss, found = gradients(fabric, config, recordings)
    _, of_one = gradients(fabric, config, recordings, mice=("SIM2",))  # one process has none of its trials
    score = train_member(tiny_run(recordings, config), folder, fabric=fabric)
    with pytest.raises(ConfigError, match="batch norm"):
        gradients(fabric, tiny_config({"kind": "cnn"}), recordings)
    leave_together(fabric)
    arrays = {name: gradient.numpy() for name, gradient in found.items()}  # tensors would end with this process
    return fabric.world_size, score, loss, arrays, list(of_one)


@pytest.mark.slow
def test_two_processes_make_the_update_of_one(recordings: dict[str, Recording], tmp_path: Path) -> None:
    config = tiny_config()
    loss, expected = gradients(Hardware().fabric(), config, recordings)
    launch: Any = Hardware(devices=2).fabric().launch
    processes, score, found_loss, found, of_one = launch(share, pickle.dumps((config, recordings, tmp_path)))
    assert processes == 2
    assert found_loss == pytest.approx(loss, rel=1e-6)
    # A weight without a gradient stays without one, so that the optimiser does not move it: no position is drawn in
    # evaluation mode, and an update after each mouse is none of the other mice.
    assert set(found) == set(expected)
    assert set(of_one) == set(gradients(Hardware().fabric(), config, recordings, mice=("SIM2",))[1])
    assert not any(".SIM1." in name for name in of_one)
    for name, gradient in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), gradient, rtol=1e-5, atol=1e-5, msg=name)
    kept = load_checkpoint(tmp_path / "checkpoint").provenance
    assert kept["validation_single_trial_correlation"] == pytest.approx(score)


@pytest.mark.usefixtures("torch_as_it_was")
def test_the_same_seed_makes_the_same_weights_bit_for_bit(recordings: dict[str, Recording], tmp_path: Path) -> None:
    hashes = []
    for folder in ("one", "another"):
        torch.rand(len(hashes) + 3)  # whatever else was drawn before
        train_member(
            tiny_run(recordings, tiny_config(DROPOUT), seed=3, hardware=Hardware(deterministic=True)), tmp_path / folder
        )
        assert torch.are_deterministic_algorithms_enabled()
        hashes.append(load_checkpoint(tmp_path / folder / "checkpoint").weights_hash)
    assert hashes[0] == hashes[1]


def test_in_half_precision_the_core_alone_is_half(recordings: dict[str, Recording]) -> None:
    config = tiny_config()
    loss, exact = gradients(Hardware().fabric(), config, recordings)
    half_loss, half = gradients(Hardware(precision="bf16").fabric(), config, recordings)
    assert half_loss != loss
    assert half_loss == pytest.approx(loss, rel=0.01)
    for name, gradient in exact.items():
        assert half[name].dtype == torch.float32
        if gradient.norm() > 1:
            assert float((half[name] - gradient).norm() / gradient.norm()) < 0.1, name
    # Had coordinates been bfloat16, positions would be off by 2^-9 of the map.
    twin = tiny_twin(config, [Mouse.from_recording(recording) for recording in recordings.values()])
    seen: list[torch.dtype] = []
    twin.readout("SIM1").register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    read_out = twin.readout("SIM1").forward

    def watched(feature_map: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
        assert not torch.is_autocast_enabled("cpu")
        seen.append(feature_map.dtype)
        return read_out(feature_map, shift)

    twin.readout("SIM1").forward = watched  # type: ignore[method-assign]
    update = Update(twin, QUICK, recordings, Hardware(precision="bf16").fabric())
    update.gradients({"SIM1": recordings["SIM1"].tier("train").indices[:2]})
    assert seen == [torch.float32]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("default")
def test_a_compiled_core_makes_the_same_update(recordings: dict[str, Recording]) -> None:
    # Also with dropout: the same seed draws the same masks, outside of the compiled graphs.
    for config, training in ((tiny_config(), False), (tiny_config({"block_dropout": 0.2}), True)):
        fabric = Hardware().fabric()
        loss, expected = gradients(fabric, config, recordings, training=training)
        found_loss, found = gradients(fabric, config, recordings, training=training, compiled=True)
        assert found_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3, msg=name)


def test_hardware_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Hardware(device="auto").resolved() == torch.device("cpu")
    for wrong, words in (
        (Hardware(device="abacus"), "no such device; got abacus"),
        (Hardware(device="cuda"), "no CUDA device"),
        (Hardware(precision="fp16"), "fp16 needs a GPU"),
    ):
        with pytest.raises(ConfigError, match=words):
            wrong.resolved()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Hardware(device="auto").resolved() == torch.device("cuda")
    assert Hardware(device="cuda", devices=2, precision="fp16").resolved() == torch.device("cuda")
    for wrong, words in (
        (Hardware(device="cuda:2"), "no such GPU; got cuda:2; expected cuda:0 to cuda:1"),
        (Hardware(device="cuda", devices=3), "not enough GPUs; got 3; expected 2"),
        (Hardware(device="cuda:1", devices=2), "several devices need --device cuda"),
    ):
        with pytest.raises(ConfigError, match=words):
            wrong.resolved()


@pytest.mark.slow
def test_parallel_members_are_the_same_as_sequential_ones(recordings: dict[str, Recording], tmp_path: Path) -> None:
    found = {}
    for parallel in (1, 2):
        run = tmp_path / str(parallel)
        scores = train_members(tiny_run(recordings, tiny_config(DROPOUT), members=3, parallel=parallel), run)
        hashes = [load_checkpoint(member_folder(run, i) / "checkpoint").weights_hash for i in range(3)]
        found[parallel] = (scores, hashes)
    assert found[1] == found[2]
    assert len(set(found[1][1])) == 3


def test_parallel_members_take_one_gpu_each_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device, expected in (
        ("cuda", ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda:1", ["cuda:1"] * 3),
        ("cpu", ["cpu"] * 3),
    ):
        assert [placed_hardware(Hardware(device=device), i).device for i in range(3)] == expected


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    with locked(lock), pytest.raises(CheckpointError, match=r"another process trains in .*run"), locked(lock):
        pass
    with locked(lock):  # free again
        pass
