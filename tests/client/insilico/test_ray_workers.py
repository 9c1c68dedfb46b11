"""A Ray cluster as the workers of a large prediction, killed ones included."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
import zarr
from support.live_server import processes_serving
from support.ray_cluster import ray_cluster
from support.tiny_bundle import write_tiny_bundle
from v1t_client import InvalidArgument, Replicas
from v1t_client._cli import main
from v1t_client.insilico import open_predictor
from v1t_client.insilico.framework.ray_workers import ray_workers

pytestmark = pytest.mark.slow


def test_two_workers_answer_as_one_server_while_one_is_killed_for_memory(tmp_path, rng):
    twin = write_tiny_bundle(tmp_path / "tiny")
    image, *_ = twin.draw("A", rng, 1000)
    with open_predictor(twin.folder) as client:
        alone = client.predict_many("A", image).responses
    with ray_cluster(nodes=2), ray_workers(twin.folder, "auto") as workers, Replicas(workers=workers) as twins:
        assert twins.n_replicas == 2
        pids: dict[int, int] = {}
        deadline = time.monotonic() + 60
        while len(set(pids.values())) < 2:  # until both work: one may start later
            assert time.monotonic() < deadline
            pids = dict(twins.run([_pid] * 16))

        def kill() -> None:  # as the kernel does when memory is short
            while not len(list((tmp_path / "r.zarr.part" / "responses").glob("*.0"))):
                time.sleep(0.01)
            os.kill(pids[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        twins.predict_to_zarr("A", image, tmp_path / "r.zarr", chunk=8)
        killer.join()
    np.testing.assert_allclose(zarr.open_array(tmp_path / "r.zarr" / "responses", mode="r")[:], alone, atol=1e-5)
    deadline = time.monotonic() + 30
    while (left := processes_serving(twin.folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left  # the server of the killed worker neither


def test_the_command_runs_on_a_cluster_of_its_own(tmp_path, rng, capfd):
    twin = write_tiny_bundle(tmp_path / "tiny")
    image, *_ = twin.draw("A", rng, 70)
    np.save(tmp_path / "images.npy", image)
    command = ["predict", "--dataset", str(tmp_path / "images.npy"), "--mouse", "A", "--bundle", str(twin.folder)]
    assert main([*command, "--output", str(tmp_path / "local.zarr")]) == 0
    assert main([*command, "--output", str(tmp_path / "ray.zarr"), "--ray", "local"]) == 0
    assert (tmp_path / "ray.zarr/responses/0.0").read_bytes() == (tmp_path / "local.zarr/responses/0.0").read_bytes()


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    twin = write_tiny_bundle(tmp_path / "tiny")
    with pytest.raises(InvalidArgument, match="no Ray cluster"), ray_workers(twin.folder, "auto"):
        pass
    with pytest.raises(InvalidArgument, match="not a bundle"), ray_workers(tmp_path, "auto"):
        pass


def _pid(client: object) -> int:
    time.sleep(0.2)
    return os.getpid()
