"""Members on a Ray cluster have the weights that they have here, also when a machine's worker is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from support.ray_cluster import ray_cluster
from support.tiny_twins import QUICK, tiny_config, tiny_run

from training.__main__ import main
from training.data.recordings import Recording
from training.errors import ConfigError
from training.ray_pool import RayPool
from training.trainer.members import member_folder
from training.trainer.run import train_ensemble

pytestmark = pytest.mark.slow

DROPOUT = {"patch_dropout": 0.1, "block_dropout": 0.1}


@pytest.fixture
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(folder: Path, member: int) -> dict[str, torch.Tensor]:
    return torch.load(member_folder(folder, member) / "state.pt", weights_only=True)["twin"]


@pytest.mark.usefixtures("_one_thread")
def test_three_members_on_ray_have_the_same_weights_though_a_worker_is_killed(
    tmp_path: Path, recordings: dict[str, Recording]
) -> None:
    training = QUICK.model_copy(update={"save_minutes": 1e-9, "max_epochs": 4})
    spec = tiny_run(recordings, tiny_config(DROPOUT), training, seed=5, members=3)
    train_ensemble(spec, tmp_path / "here")
    killed = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            time.sleep(0.02)
            log = member_folder(tmp_path / "ray", 0) / "log.csv"
            if not log.exists() or len(log.read_text().splitlines()) < 2:  # an epoch
                continue
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    opened = [Path(file.path).parent for file in process.open_files()]
                    if log.parent in opened:  # it holds the member's lock
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                        return

    killer = threading.Thread(target=kill)
    with ray_cluster(nodes=1):
        killer.start()
        train_ensemble(spec, tmp_path / "ray", ray="auto")
        killer.join()
    assert killed
    for member in range(3):
        here, there = weights(tmp_path / "here", member), weights(tmp_path / "ray", member)
        assert here.keys() == there.keys()
        for name, tensor in here.items():
            assert torch.equal(tensor, there[name]), f"member {member}: {name}"
    assert (tmp_path / "here/members.json").read_bytes() == (tmp_path / "ray/members.json").read_bytes()


def fail() -> None:
    raise ConfigError("an option is wrong", got=3, hint="Leave it out.")


@pytest.mark.usefixtures("_one_thread")
def test_a_task_s_error_is_raised_here_as_it_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with ray_cluster(nodes=1), RayPool("auto") as pool:
        assert pool.slots == 2
        assert pool.submit(os.getcwd).result(60) == os.getcwd()
        with pytest.raises(ConfigError, match=r"an option is wrong; got 3\. Leave it out"):
            pool.submit(fail).result(60)
        torch.set_num_threads(3)
        with pytest.raises(ConfigError, match=r"got 2 CPUs, 0 GPUs; expected 3 CPUs.*OMP_NUM_THREADS=1"):
            RayPool("auto")


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path, recordings: dict[str, Recording], capsys) -> None:
    paths = [str(recording.path) for recording in recordings.values()]
    command = ["train", "--recordings", *paths, "--output", str(tmp_path / "run"), "--ray", "auto"]
    assert main(command) != 0
    assert "no Ray cluster" in capsys.readouterr().err
    assert main([*command, "--parallel", "2"]) != 0
    assert "--parallel is for one machine" in capsys.readouterr().err
