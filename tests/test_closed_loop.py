"""The programs of `docs/closed_loop`: the ZeroMQ bridge against garbage and deaf peers, and the rig with a restart."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zmq
from support.live_server import PATIENCE, ROOT, free_port, serving
from support.tiny_bundle import TinyTwin

FOLDER = ROOT / "docs" / "closed_loop"


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zeromq_bridge", FOLDER / "zeromq_bridge.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Broken:
    """A server that must not be asked."""

    def predict(self, fields: Any, images: Any) -> None:
        raise ZeroDivisionError


def head(**fields: Any) -> bytes:
    return json.dumps({"mouse": "A", "shape": [1, 1, 2, 2], "dtype": "uint8"} | fields).encode()


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "the request has other frames"),
        ([b"{}"], "the request has other frames"),
        ([b"a", b"b", b"c"], "the request has other frames"),
        ([b"\xff\x00", b""], "the first frame is not JSON"),
        ([b"[" * 100_000, b""], "the first frame is not JSON"),
        ([b"[1]", b""], "the first frame is not a JSON object"),
        ([head(dtype="object"), b"1234"], "dtype is not known"),
        ([head(dtype=["uint8"]), b"1234"], "dtype is not known"),
        ([head(shape=[2, 2]), b"1234"], "shape is not that of images"),
        ([head(shape=[1, 1, -2, -2]), b"1234"], "shape is not that of images"),
        ([head(shape=[2**30] * 4), b"1234"], "the images do not fit their shape"),
        ([head(dtype="<f4"), b"1234"], "the images do not fit their shape"),
        ([head(), b"1234"], "the bridge failed: ZeroDivisionError()"),
    ],
)
def test_what_is_no_request_is_answered_with_an_error(bridge: ModuleType, frames: list[bytes], words: str) -> None:
    (reply,) = bridge.answer(_Broken(), frames)
    error = json.loads(reply)["error"]
    assert words in error["message"]
    assert error.keys() == {"code", "message", "got", "expected", "hint"}


def test_a_server_that_is_not_there_is_named(bridge: ModuleType) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    (reply,) = bridge.answer(bridge.Server(url), [head(), b"1234"])
    assert json.loads(reply)["error"]["code"] == "unreachable"
    assert json.loads(reply)["error"]["hint"] == f"Is a server running at {url}?"
    assert bridge.refusal(502, b"<html>").body["error"]["message"].endswith("with status 502")


@contextmanager
def bridged(url: str) -> Iterator[int]:
    """The port of a bridge to this server."""
    port = free_port()
    command = [sys.executable, str(FOLDER / "zeromq_bridge.py"), "--server", url, "--bind", f"tcp://127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "asks" in process.stdout.readline()
            yield port
            assert process.poll() is None
        finally:
            process.terminate()


@contextmanager
def peer(kind: int, port: int) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(kind) as one:
        one.setsockopt(zmq.LINGER, 0)
        one.setsockopt(zmq.RCVTIMEO, 1000 * PATIENCE)
        one.connect(f"tcp://127.0.0.1:{port}")
        yield one


@pytest.mark.slow
def test_garbage_and_peers_that_never_read_harm_nobody(twin: TinyTwin, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = twin.manifest.mice["A"].image_shape
    images = rng.integers(0, 256, (64, *shape), dtype=np.uint8)
    behavior, pupil_center = twin.draw("A", rng, 64)[1:]
    names = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
    fields = {"shape": images.shape, "dtype": "uint8", "mouse": "A", "pupil_center": pupil_center.tolist()}
    fields |= dict(zip(names, behavior.T.tolist(), strict=True))
    with serving(twin.folder.parent, tmp_path) as server:
        server.wait_for("/readyz", 200)
        with bridged(server.url) as port, peer(zmq.DEALER, port) as deaf, peer(zmq.REQ, port) as rig:
            question = [json.dumps(fields).encode(), images.tobytes()]
            for _ in range(60):  # a peer that asks and asks, and reads none of the replies
                deaf.send_multipart([b"", *question], zmq.NOBLOCK)
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(rng.bytes(10_000))
            for n_frames in rng.integers(1, 5, 50):
                rig.send_multipart([rng.bytes(int(n)) for n in rng.integers(0, 100, n_frames)])
                (reply,) = rig.recv_multipart()
                assert "error" in json.loads(reply)
            rig.send_multipart([json.dumps(fields | {"mouse": "nobody\ud800"}).encode(), images.tobytes()])
            assert json.loads(rig.recv())["error"]["code"] in ("not_found", "malformed_body", "invalid_input")
            rig.send_multipart(question)
            said, responses = rig.recv_multipart()
        assert json.loads(said)["model"]["hash"] == twin.manifest.hash
        got = np.frombuffer(responses, "<f4").reshape(json.loads(said)["shape"])
        np.testing.assert_allclose(got, twin.answer("A", images, behavior, pupil_center), atol=1e-5)


@pytest.mark.slow
def test_a_thousand_turns_go_on_over_a_restart_of_the_server(twin: TinyTwin, tmp_path: Path) -> None:
    neuron = int(twin.mice["A"].neurons.ids[3])
    _, H, W = twin.manifest.mice["A"].image_shape
    server_port = free_port()
    out = tmp_path / "turns.csv"
    command = [
        sys.executable,
        str(FOLDER / "rig.py"),
        "--mouse",
        "A",
        "--neuron",
        str(neuron),
        "--size",
        str(H),
        str(W),
    ]

    def turns() -> list[str]:
        return out.read_text().splitlines()[1:] if out.exists() else []

    def wait_for_turns(n: int) -> None:
        end = time.monotonic() + PATIENCE
        while len(turns()) < n:
            assert time.monotonic() < end, turns()[-3:]
            time.sleep(0.05)

    with bridged(f"http://127.0.0.1:{server_port}") as port, out.open("wb") as stream:
        more: dict[str, Any] = {"cwd": tmp_path, "stdout": stream, "stderr": subprocess.DEVNULL}
        options = ["--bridge", f"tcp://127.0.0.1:{port}", "--blank", "5", "--turns", "1000"]
        settings: dict[str, Any] = {"port": server_port, "V1T_MAX_BATCH": "64"}
        rig = None
        try:
            with serving(twin.folder.parent, tmp_path, **settings) as server:
                server.wait_for("/readyz", 200)
                rig = subprocess.Popen([*command, *options], env={**os.environ, "OMP_NUM_THREADS": "1"}, **more)
                wait_for_turns(100)
            after = len(turns())
            with serving(twin.folder.parent, tmp_path, **settings):
                rig.wait(6 * PATIENCE)
        finally:
            if rig is not None:
                rig.kill()
    assert rig.returncode == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [int(row["turn"]) for row in rows] == list(range(1000))
    problems = [row["problem"] for row in rows]
    assert set(problems[:90]) == {""}
    assert after < 900  # the restart was in the middle
    assert problems[-90:] == [""] * 90
    assert all(row["predicted"] for row in rows if not row["problem"])
    _is_choice_of_the_twin(rows, twin, neuron)


def _is_choice_of_the_twin(rows: list[dict[str, str]], twin: TinyTwin, neuron: int) -> None:
    """The rig's images and state, drawn again: each chosen image is the twin's, and its predicted response."""
    rng = np.random.default_rng(0)
    record = twin.manifest.mice["A"]
    derivative, center = 0.5, [250.0, 180.0]  # of the tiny twin, where they are left out
    position = list(twin.mice["A"].neurons.ids).index(neuron)
    sys.path.insert(0, str(FOLDER))
    try:
        rig = importlib.import_module("rig")
    finally:
        sys.path.remove(str(FOLDER))
    mouse = rig.Mouse(record.image_shape[1:], rng)
    for row in rows:
        images = rng.integers(0, 256, (64, *record.image_shape), dtype=np.uint8)
        state = mouse.measure()
        mouse.show(images[int(row["image"])], state["running_speed"])
        if row["problem"]:
            continue
        behavior = np.tile([state["pupil_dilation"], derivative, state["running_speed"]], (64, 1))
        expected = twin.answer("A", images, behavior, np.tile(center, (64, 1)))[:, position]
        assert expected[int(row["image"])] == pytest.approx(expected.max(), abs=1e-5)
        assert float(row["predicted"]) == pytest.approx(expected.max(), abs=1e-5)
