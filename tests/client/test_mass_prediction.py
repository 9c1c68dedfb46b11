"""Predictions into a Zarr folder: resumed after any interruption, by several servers, and the same to the byte."""

from __future__ import annotations

import errno
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from support.contract_server import SHAPE, ContractServer, error_reply
from v1t_client import Client, ModelChanged, Replicas
from v1t_client._cli import main
from v1t_client._errors import InvalidArgument
from v1t_client._large_sets import responses_zarr, work_queue
from v1t_client._large_sets.image_sets import open_images
from v1t_client.insilico.catalogue import EXPERIMENTS

N = 150


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (N, *SHAPE), dtype=np.uint8)


@pytest.fixture
def twins(server: ContractServer):
    with Client(transport=server.transport(), retries=0) as client, Replicas([client]) as replicas:
        yield replicas


def write_zarr(path: Path, images: np.ndarray, chunks: tuple[int, ...]) -> str:
    zarr.create_array(path, data=images, chunks=chunks)
    return str(path)


def expected(server: ContractServer, images: np.ndarray, speeds: Any) -> np.ndarray:
    return server.responses(images, np.broadcast_to(speeds, (len(images),)), server.neuron_ids["A"])


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def n_asked(server: ContractServer) -> int:
    return sum(len(seen.array().reshape(-1, *SHAPE)) for seen in server.seen if seen.path == "/predict" and seen.images)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk is asked of a second server because the first one is slow."""
    monkeypatch.setattr(work_queue, "_LEAST_PATIENCE", 60.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("chunks", [(1, 1, 36, 64), (64, 1, 36, 64), (47, 1, 9, 30), (N, 1, 5, 64)])
def test_a_zarr_of_any_chunking_is_answered_as_its_array(server, twins, images, tmp_path, rng, chunks):
    source = write_zarr(tmp_path / "images.zarr", images, chunks)
    speeds = rng.uniform(0, 30, N)
    twins.predict_to_zarr("A", source, tmp_path / "r.zarr", chunk=32, running_speed=speeds, spread=True)
    with xarray.open_zarr(tmp_path / "r.zarr") as found:
        np.testing.assert_array_equal(found["responses"], expected(server, images, speeds))
        np.testing.assert_array_equal(found["spread"], expected(server, images, speeds) / 10)
        np.testing.assert_array_equal(found["neuron"], server.neuron_ids["A"])
        assert found["responses"].dims == ("image", "neuron")
        assert found.attrs["model_hash"] == server.hash
        assert (found.attrs["state"], found.attrs["units"], found.attrs["simulated"]) == (
            "median",
            "standardized",
            True,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.zarr", "r.zarr"]
    assert n_asked(server) == N


@pytest.mark.parametrize("kind", ["npy", "folder", "array", "group", "three dimensions"])
def test_what_holds_the_images_does_not_matter(server, twins, images, tmp_path, kind):
    if kind == "npy":
        np.save(tmp_path / "images.npy", images)
    elif kind == "folder":
        (tmp_path / "images").mkdir()
        for i, image in enumerate(images):
            np.save(tmp_path / "images" / f"{i}.npy", image)
    elif kind == "group":
        zarr.open_group(tmp_path / "images.zarr", mode="w").create_array("images", data=images, chunks=(7, 1, 36, 64))
    elif kind == "three dimensions":
        write_zarr(tmp_path / "images.zarr", images[:, 0], (7, 36, 64))
    given = images if kind == "array" else next(tmp_path.iterdir())
    twins.predict_to_zarr("A", given, tmp_path / "r.zarr", running_speed=3)
    with xarray.open_zarr(tmp_path / "r.zarr") as found:
        np.testing.assert_array_equal(found["responses"], expected(server, images, 3))
        if kind == "folder":
            assert found["image"].values.tolist() == [f"{i}.npy" for i in range(N)]


def test_a_zarr_is_decoded_once(images, tmp_path, monkeypatch):
    opened = open_images(write_zarr(tmp_path / "images.zarr", images, (100, 1, 36, 64)))
    read = []
    get = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda self, key: read.append(key) or get(self, key))
    found = [opened.rows(slice(start, min(start + 8, N))) for start in range(0, N, 8)]
    np.testing.assert_array_equal(np.concatenate(found), images)
    assert len(read) == 2


def test_what_is_no_zarr_of_images_is_refused_by_name(twins, tmp_path, monkeypatch, images):
    (tmp_path / "empty.zarr").mkdir()
    write_zarr(tmp_path / "flat.zarr", np.zeros((5, 3)), (5, 3))
    group = zarr.open_group(tmp_path / "two.zarr", mode="w")
    for name in ("a", "b"):
        group.create_array(name, data=images[:2])
    write_zarr(tmp_path / "large.zarr", images, (N, 1, 1, 64))
    monkeypatch.setattr("v1t_client._large_sets.zarr_images._MOST_BYTES", 100 * 36 * 64)
    for name, words in [
        ("missing", "not a readable Zarr"),
        ("empty", "not a readable Zarr"),
        ("flat", "does not hold images"),
        ("two", "which array holds the images"),
        ("large", r"150 images are decoded together.*at most 100.*chunks=\(64, 1, 36, 64\)"),
    ]:
        with pytest.raises(InvalidArgument, match=words):
            twins.predict_to_zarr("A", tmp_path / f"{name}.zarr", tmp_path / "r.zarr")


def test_another_twin_option_or_set_does_not_go_on(server, twins, images, tmp_path):
    server.script = []
    answer = server._predict
    server._predict = lambda seen: answer(seen) if n_asked(server) < 100 else error_reply(422, "invalid_input", "no")
    output = tmp_path / "r.zarr"

    def ask(**options: Any) -> Any:
        given = options.pop("images", images)
        return twins.predict_to_zarr("A", given, output, chunk=16, **{"running_speed": 3, **options})

    with pytest.raises(Exception, match="no"):
        ask()
    done = set(content(tmp_path / "r.zarr.part"))
    assert any(name.startswith("responses/") for name in done)
    with pytest.raises(InvalidArgument, match=r"running_speed was 3, not 4"):
        ask(running_speed=4)
    with pytest.raises(InvalidArgument, match="state was None, not 'running'"):
        ask(state="running")
    with pytest.raises(InvalidArgument, match="images was"):
        ask(images=images[:-1])
    server.hash = "cd" * 32
    with pytest.raises(InvalidArgument, match=f"model was '{'ab' * 32}', not '{'cd' * 32}'"):
        ask()
    server.hash = "ab" * 32
    assert set(content(tmp_path / "r.zarr.part")) == done
    del server._predict
    asked = n_asked(server)
    ask()
    assert n_asked(server) - asked < N
    before, asked = content(output), n_asked(server)
    ask()  # is complete
    assert (content(output), n_asked(server)) == (before, asked)
    with pytest.raises(InvalidArgument, match=r"is another prediction.*running_speed was 3, not 4"):
        ask(running_speed=4)
    ask(running_speed=4, force=True)
    assert zarr.open_array(output / "responses", mode="r")[0, 0] == expected(server, images, 4)[0, 0]


def test_behaviour_channels_by_name_are_part_of_what_is_resumed(server, twins, images, tmp_path, monkeypatch):
    stop = RuntimeError("stopped")
    monkeypatch.setattr(responses_zarr.ResponsesZarr, "add", lambda *_: (_ for _ in ()).throw(stop))
    with pytest.raises(RuntimeError, match="stopped"):
        twins.predict_to_zarr("A", images, tmp_path / "r.zarr", behavior={"running_speed": 3.0})
    for behavior, words in [({"running_speed": 4.0}, "running_speed was 3.0, not 4.0"), ({"lick": 1}, "behavior.lick")]:
        with pytest.raises(InvalidArgument, match=re.escape(words)):
            twins.predict_to_zarr("A", images, tmp_path / "r.zarr", behavior=behavior)


def test_a_second_process_does_not_write_the_same_folder(twins, images, tmp_path, monkeypatch):
    def meanwhile(*_: Any) -> None:
        monkeypatch.undo()
        with pytest.raises(InvalidArgument, match="another process is writing"):
            twins2.predict_to_zarr("A", images, tmp_path / "r.zarr")
        raise KeyboardInterrupt

    with Client(transport=ContractServer().transport()) as client, Replicas([client]) as twins2:
        monkeypatch.setattr(responses_zarr.ResponsesZarr, "add", meanwhile)
        with pytest.raises(KeyboardInterrupt):
            twins.predict_to_zarr("A", images, tmp_path / "r.zarr")


def test_a_disk_that_fills_up_loses_nothing(server, twins, images, tmp_path, monkeypatch):
    twins.predict_to_zarr("A", images, tmp_path / "whole.zarr", chunk=10)
    write, room = responses_zarr._write, 20

    def fill(path: Path, data: bytes, **more: Any) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            path.with_name(f".{path.name}.part").write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data, **more)

    monkeypatch.setattr(responses_zarr, "_write", fill)
    runs = 0
    while not (tmp_path / "r.zarr").exists():
        try:
            twins.predict_to_zarr("A", images, tmp_path / "r.zarr", chunk=10)
        except InvalidArgument as error:
            assert "No space left on device" in str(error)  # noqa: PT017
            assert "repeat the call to resume" in str(error)  # noqa: PT017
            room, runs = 15, runs + 1
    assert runs >= 2
    assert content(tmp_path / "r.zarr") == content(tmp_path / "whole.zarr")


def test_a_version_is_pinned_and_no_images_are_refused(server, twins, images, tmp_path):
    detail = server._model
    server._model = lambda: {**detail(), "version": "3"}
    twins.predict_to_zarr("A", images[:5], tmp_path / "r.zarr")
    assert [seen.form["model"] for seen in server.seen if seen.path == "/predict"] == ["demo@3"]
    for none in (images[:0], []):
        with pytest.raises(InvalidArgument, match=r"no images|empty list"):
            twins.predict_to_zarr("A", none, tmp_path / "none.zarr")
    with pytest.raises(InvalidArgument, match="folder that does not exist"):
        twins.predict_to_zarr("A", images, tmp_path / "no" / "such.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["r.zarr"]


# Several servers


class Hanging(ContractServer):
    """Answers one request for predictions, and then never in time."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def _predict(self, seen: Any) -> Any:
        if n_asked(self) > 16:
            self.release.wait(30)
        return super()._predict(seen)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue, "_LEAST_PATIENCE", 0.05)


@pytest.mark.usefixtures("_impatient")
def test_a_server_that_hangs_loses_its_chunks_to_the_others(images, tmp_path):
    good, hanging = ContractServer(), Hanging()
    with Client(transport=good.transport()) as a, Client(transport=hanging.transport()) as b, Replicas([a, b]) as twins:
        twins.predict_to_zarr("A", images, tmp_path / "r.zarr", chunk=8, running_speed=3)
        found = zarr.open_array(tmp_path / "r.zarr" / "responses", mode="r")[:]
        hanging.release.set()
    np.testing.assert_array_equal(found, expected(good, images, 3))


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("fault", ["dies", "another twin", "busy", "refuses"])
def test_a_server_that_fails_leaves_its_chunks_to_the_others(images, tmp_path, fault):
    good, bad = ContractServer(), ContractServer()
    answer = bad._predict

    def fail(seen: Any) -> Any:
        if n_asked(bad) < 30:
            time.sleep(0.01)
            return answer(seen)
        if fault == "dies":
            raise __import__("httpx").ConnectError("refused")
        if fault == "another twin":
            bad.hash = "cd" * 32
            return answer(seen)
        return error_reply(429 if fault == "busy" else 403, fault, fault)

    bad._predict = fail
    good_answer = good._predict
    good._predict = lambda seen: (time.sleep(0.01), good_answer(seen))[1]
    with (
        Client(transport=good.transport()) as a,
        Client(transport=bad.transport(), retries=0, timeout=0.3) as b,
        Replicas([a, b]) as twins,
    ):
        twins.predict_to_zarr("A", images, tmp_path / "r.zarr", chunk=8, running_speed=3)
        assert n_asked(bad) >= 8
    np.testing.assert_array_equal(
        zarr.open_array(tmp_path / "r.zarr" / "responses", mode="r")[:], expected(good, images, 3)
    )


def test_when_all_servers_fail_the_error_is_theirs(images, tmp_path):
    servers = [ContractServer(), ContractServer()]
    for server in servers:
        server._predict = lambda seen: error_reply(422, "invalid_input", "too bright")
    a, b = (Client(transport=server.transport()) for server in servers)
    with a, b, Replicas([a, b]) as twins:
        with pytest.raises(Exception, match="too bright"):
            twins.predict_to_zarr("A", images, tmp_path / "r.zarr")
        for server in servers:
            del server._predict
        twins.predict_to_zarr("A", images, tmp_path / "r.zarr")  # they are asked again


def test_a_twin_that_changes_everywhere_is_refused(server, twins, images, tmp_path):
    answer = server._predict

    def change(seen: Any) -> Any:
        server.hash = "ab" * 32 if n_asked(server) < 60 else "cd" * 32
        return answer(seen)

    server._predict = change
    with pytest.raises(ModelChanged):
        twins.predict_to_zarr("A", images, tmp_path / "r.zarr", chunk=10)


@pytest.mark.usefixtures("patient")
def test_an_experiment_divides_its_images_among_the_servers(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    screen = EXPERIMENTS["screen"](mouse="A", images=str(tmp_path / "images.npy"), top=3)
    servers = [ContractServer(), ContractServer(), ContractServer()]
    with Client(transport=servers[0].transport()) as alone:
        once = screen.run(alone)
    for server in servers:
        server._predict = partial(_after_a_while, server._predict)
    clients = [Client(transport=server.transport()) for server in servers]
    with Replicas(clients) as twins:
        divided = screen.run(twins)
    for client in clients:
        client.close()
    xarray.testing.assert_allclose(once.dataset, divided.dataset)  # sums over other batches
    assert sum(map(n_asked, servers)) == 2 * N
    assert all(n_asked(server) > 0 for server in servers)


def _after_a_while(answer: Callable[[Any], Any], seen: Any) -> Any:
    """So that one server does not answer everything before another one is asked."""
    time.sleep(0.2)
    return answer(seen)


# The command


def test_the_command_writes_a_zarr_by_two_servers(images, tmp_path, capsys):
    servers = [ContractServer(), ContractServer()]
    source = write_zarr(tmp_path / "images.zarr", images, (50, 1, 36, 64))
    with servers[0].listening() as a, servers[1].listening() as b:
        urls = ["--url", a, "--url", b]
        command = ["predict", "--dataset", source, "--mouse", "A", "--running-speed", "3"]
        assert main([*command, *urls, "--output", str(tmp_path / "r.npy")]) == 2
        assert "--output responses.zarr" in capsys.readouterr().err
        assert main(["mice", *urls]) == 2
        assert "asks one server" in capsys.readouterr().err
        assert main([*command, *urls, "--output", str(tmp_path / "r.zarr")]) == 0
        assert "simulated: Trained on a simulated recording." in capsys.readouterr().err
        assert main([*command, "--url", a, "--output", str(tmp_path / "r.npy")]) == 0
    found = zarr.open_array(tmp_path / "r.zarr" / "responses", mode="r")[:]
    np.testing.assert_array_equal(found, expected(servers[0], images, 3))
    np.testing.assert_array_equal(np.load(tmp_path / "r.npy"), found)


def test_the_command_needs_images_once(capsys):
    for words in ([], ["a.png", "--dataset", "b.zarr"]):
        assert main(["predict", *words, "--mouse", "A"]) == 2
        assert "either IMAGE ... or --dataset PATH" in capsys.readouterr().err


def test_ray_needs_a_bundle(capsys):
    assert main(["predict", "a.npy", "--mouse", "A", "--ray", "local", "--output", "r.zarr"]) == 2
    assert "--bundle FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_twenty_times_it_ends_with_the_bytes_of_an_unbroken_run(rng, tmp_path):
    class Slow(ContractServer):
        def _predict(self, seen: Any) -> Any:
            time.sleep(0.02)
            return super()._predict(seen)

    server = Slow()
    images = rng.integers(0, 256, (6000, *SHAPE), dtype=np.uint8)
    source = write_zarr(tmp_path / "images.zarr", images, (300, 1, 36, 64))
    with server.listening() as url:
        command = [sys.executable, "-m", "v1t_client", "predict", "--dataset", source, "--mouse", "A"]
        command += ["--url", url, "--spread", "--output"]
        subprocess.run([*command, str(tmp_path / "whole.zarr")], check=True, timeout=120)
        output, part = tmp_path / "r.zarr", tmp_path / "r.zarr.part"
        for _ in range(20):
            done = len(list(part.glob("responses/*.0")))
            process = subprocess.Popen([*command, str(output)], stderr=subprocess.DEVNULL)
            while process.poll() is None and len(list(part.glob("responses/*.0"))) == done:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
            assert process.wait(10) == -signal.SIGKILL
        subprocess.run([*command, str(output)], check=True, timeout=120)
    assert content(output) == content(tmp_path / "whole.zarr")
    whole = zarr.open_array(output / "responses", mode="r")[:]
    np.testing.assert_array_equal(whole, expected(server, images, 0.05))
