"""A bundle in the process that asks: the same answers as over HTTP, and nothing left of it at the end."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import tomllib
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkout import ROOT
from support.tiny_bundle import TinyTwin, write_tiny_bundle
from v1t_client import InvalidArgument, InvalidRequest, NotFound, NotReady, TimedOut, V1TError
from v1t_client.insilico import EXPERIMENTS, open_predictor

from server.in_process import LocalServer, open_bundle
from server.inference.engine import Engine
from server.settings import Settings


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V1T_THREADS", "1")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def asked(rng: np.random.Generator, twin: TinyTwin, mouse: str, n: int) -> tuple[np.ndarray, dict[str, Any], Any]:
    """An image, the keyword arguments of `predict`, and the right answer."""
    image, behavior, pupil = twin.draw(mouse, rng, n)
    names = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
    options = {**dict(zip(names, behavior.T, strict=True)), "pupil_center": pupil}
    return image, options, twin.answer(mouse, image, behavior, pupil)


def test_answers_are_those_of_the_twin_with_their_labels(twin: TinyTwin, rng: np.random.Generator) -> None:
    with open_predictor(twin.folder) as opened:
        for mouse, n in (("A", 1), ("B", 9), ("A", 21)):  # of several runs of the engine
            image, options, expected = asked(rng, twin, mouse, n)
            prediction = opened.predict(mouse, image, **options)
            np.testing.assert_allclose(prediction.responses, expected, atol=1e-5)
            assert prediction.model.hash == twin.manifest.hash
            np.testing.assert_array_equal(prediction.neuron_ids, twin.mice[mouse].neurons.ids)
        assert not prediction.assumed
        with pytest.raises(NotFound, match="no such mouse"):
            opened.predict("C", image)
        with pytest.raises(InvalidRequest, match="another shape"):
            opened.predict("B", np.zeros((1, 3, 4)))


def test_threads_and_two_bundles_get_their_own_answers(
    twin: TinyTwin, tmp_path: Path, rng: np.random.Generator
) -> None:
    other = write_tiny_bundle(tmp_path / "other", name="other", seed=1)
    with open_predictor(twin.folder) as one, open_predictor(other.folder) as two, ThreadPoolExecutor(4) as pool:
        questions = [(opened, asked(rng, of, "A", 3)) for opened, of in [(one, twin), (two, other)] * 8]
        answers = list(pool.map(lambda q: q[0].predict("A", q[1][0], **q[1][1]).responses, questions))
    for (_, (_, _, expected)), responses in zip(questions, answers, strict=True):
        np.testing.assert_allclose(responses, expected, atol=1e-5)


def test_end_of_the_block_frees_threads_engine_and_files(twin: TinyTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[weakref.ref[Engine]] = []
    load = Engine.load

    def loaded(*arguments: Any, **options: Any) -> Engine:
        engine = load(*arguments, **options)
        engines.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(Engine, "load", loaded)
    before = set(threading.enumerate())
    with open_predictor(twin.folder) as opened:
        opened.predict("A", np.zeros((1, 8, 12)))
        (engine,) = (reference() for reference in engines)
        assert engine is not None
        copy = Path(engine._graphs.files.folder)
        assert copy.is_dir()
        del engine
    gc.collect()
    assert not copy.exists()
    assert engines[0]() is None
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()
    with pytest.raises(V1TError, match="closed"):
        opened.mice()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Lets the first run after the warm-up wait: `begun` is set then, and `go` ends it."""
    begun, go = threading.Event(), threading.Event()
    predict_many, warm_up = Engine.predict_many, Engine.warm_up
    is_warm = False

    def warmed(self: Engine) -> None:
        nonlocal is_warm
        warm_up(self)
        is_warm = True

    def slow(self: Engine, *arguments: Any) -> Any:
        if is_warm and not begun.is_set():
            begun.set()
            assert go.wait(30)
        return predict_many(self, *arguments)

    monkeypatch.setattr(Engine, "warm_up", warmed)
    monkeypatch.setattr(Engine, "predict_many", slow)
    yield begun, go
    go.set()


INTERRUPTED = """
import signal, sys, threading
import numpy as np
from server.inference.engine import Engine
from v1t_client.insilico import open_predictor

begun, go, predict_many = threading.Event(), threading.Event(), Engine.predict_many

def slow(engine, *arguments):
    begun.set()
    assert go.wait(60)
    return predict_many(engine, *arguments)

def ctrl_c():
    assert begun.wait(60)
    signal.pthread_kill(main, signal.SIGINT)

main = threading.get_ident()
signal.signal(signal.SIGINT, signal.default_int_handler)
image = np.load(sys.argv[2])
with open_predictor(sys.argv[1]) as opened:
    expected = opened.predict("A", image).responses
    Engine.predict_many = slow
    threading.Thread(target=ctrl_c).start()
    try:
        opened.predict("A", image)
    except KeyboardInterrupt:
        print("interrupted")
    go.set()
    np.testing.assert_array_equal(opened.predict("A", image).responses, expected)
print("answered")
"""


@pytest.mark.slow
def test_interrupt_cancels_the_request_and_the_next_is_answered(
    twin: TinyTwin, rng: np.random.Generator, tmp_path: Path
) -> None:
    """In a process of its own, so that no signal can end the process of the tests."""
    image, *_ = asked(rng, twin, "A", 2)
    np.save(tmp_path / "image.npy", image)
    command = [sys.executable, "-c", INTERRUPTED, str(twin.folder), str(tmp_path / "image.npy")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split() == ["interrupted", "answered"], ended.stderr
    assert ended.returncode == 0, ended.stderr


def test_call_ends_with_its_time(twin: TinyTwin, stuck: tuple[threading.Event, threading.Event]) -> None:
    with open_predictor(twin.folder, timeout=0.2, retries=0) as opened:
        assert opened.ready()
        with pytest.raises(TimedOut):
            opened.predict("A", np.zeros((1, 8, 12)))
        stuck[1].set()


def test_end_of_the_block_ends_a_run_that_nobody_waits_for(twin: TinyTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []

    def until_stopped(self: Engine, stimuli: Any) -> None:
        deadline = time.monotonic() + 30
        while not self._graphs.stop._stopped and time.monotonic() < deadline:
            time.sleep(0.01)
        stopped.append(self._graphs.stop._stopped)
        raise RuntimeError("stopped")

    with open_predictor(twin.folder, timeout=0.2, retries=0) as opened:
        monkeypatch.setattr(Engine, "predict_many", until_stopped)
        with pytest.raises(TimedOut):
            opened.predict("A", np.zeros((1, 8, 12)))
        assert not stopped
    assert stopped == [True]


def test_refused_bundle_is_named_with_the_reason(twin: TinyTwin, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}')
    with pytest.raises(NotReady, match="schema_version"), open_predictor(tmp_path):
        pass


def test_settings_of_the_environment_hold(twin: TinyTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V1T_MAX_IMAGES", "3")
    monkeypatch.setenv("V1T_API_KEYS", "of-a-server-for-others")  # not for this one
    with open_predictor(twin.folder) as opened, pytest.raises(V1TError, match="at most 3"):
        opened.predict("A", np.zeros((4, 1, 8, 12)))
    monkeypatch.setenv("V1T_MAX_IMAGES", "many")
    with pytest.raises(InvalidArgument, match="V1T_MAX_IMAGES is 'many'"), open_predictor(twin.folder):
        pass


def test_large_bundle_is_waited_for(twin: TinyTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.serving.repository._PATIENCE", 0.0)  # other bundles do not wait for this one
    local = LocalServer(Settings(bundles=(twin.folder,), threads=1))
    try:
        exchange = local.begin("GET", b"/readyz", [], b"")
        assert exchange.head(30)[0] == 200
    finally:
        local.close()


def test_abandoned_stream_ends(twin: TinyTwin) -> None:
    """The reader takes the head and leaves; the application is told so, and computes no more."""
    local = open_bundle(twin.folder)
    try:
        body = b'{"mouse": "A", "n_images": 1000000, "seed": 1, "grid": [4, 6], "luminance": 100, "contrast": 30}'
        headers = [(b"content-type", b"application/json"), (b"accept", b"application/x-v1t-stream")]
        exchange = local.begin("POST", b"/receptive_fields", headers, body)
        status, _ = exchange.head(30)
        assert status == 200, exchange.read(30)
        exchange.close()
        exchange.task.result(30)
    finally:
        local.close()


def test_forked_process_is_told_to_open_its_own(twin: TinyTwin) -> None:
    """In a process of its own: this one has threads, which a fork would break."""
    code = f"""
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from v1t_client import V1TError
from v1t_client.insilico import open_predictor

def ask(results):
    try:
        twin.mice()
    except V1TError as error:
        results.put(str(error))
    twin.close()

with open_predictor({str(twin.folder)!r}) as twin:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=ask, args=(results,))
    child.start()
    print(results.get(timeout=30))
    child.join(30)
    print(child.exitcode, len(twin.mice()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=90)
    said, counts = done.stdout.splitlines()
    assert "fork; open it here" in said
    assert counts == "0 2"


def test_no_socket_no_process_and_no_bentoml(twin: TinyTwin) -> None:
    code = f"""
import socket, subprocess, sys
import v1t_client.insilico
assert "server" not in sys.modules
sockets = []
create = socket.socket.bind
socket.socket.bind = lambda *arguments: sockets.append(arguments)
with v1t_client.insilico.open_predictor({str(twin.folder)!r}) as twin:
    twin.mice()
assert not sockets and "bentoml" not in sys.modules and "uvicorn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=90)


def test_experiment_runs_on_it(twin: TinyTwin) -> None:
    with open_predictor(twin.folder) as opened:
        result = EXPERIMENTS["behavior"](mouse="A").run(opened)
    assert result.receipt.model["hash"] == twin.manifest.hash


def test_entry_point_of_the_package_opens_a_bundle() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["v1t_client.in_process"].items()
    assert EntryPoint(name, value, "v1t_client.in_process").load() is open_bundle
