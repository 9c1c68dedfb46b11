"""The thread of an engine on a GPU; here with graphs on the CPU."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.errors import BundleError
from server.inference import engine as engines
from server.inference.engine import Engine
from server.inference.gpu.recorded import GPU
from server.inference.gpu.thread import GPUThread
from server.inference.sessions import Session


@pytest.fixture
def twin(tmp_path: Path) -> TinyTwin:
    return write_tiny_bundle(tmp_path / "tiny")


@pytest.fixture
def callers(monkeypatch: pytest.MonkeyPatch) -> set[threading.Thread]:
    """The threads that open or run graphs, from now on; engines are loaded as on a GPU."""
    found: set[threading.Thread] = set()

    def noted(function: Any) -> Any:
        def noting(*args: Any, **options: Any) -> Any:
            found.add(threading.current_thread())
            return function(*args, **options)

        return noting

    monkeypatch.setattr(engines, "on_gpu", lambda provider: True)
    monkeypatch.setattr(Session, "__init__", noted(Session.__init__))
    monkeypatch.setattr(Session, "run", noted(Session.run))
    return found


def test_an_engine_is_loaded_warmed_and_asked_in_one_thread(twin: TinyTwin, callers: set[threading.Thread]) -> None:
    engine = Engine.load(twin.folder, provider="cpu")
    engine.warm_up()
    inputs = twin.draw("A", np.random.default_rng(0), 3)
    np.testing.assert_allclose(engine.predict("A", *inputs), twin.answer("A", *inputs), atol=1e-5)
    (thread,) = (one for one in callers if not one.name.startswith("forward"))
    assert thread is not threading.current_thread()
    assert thread.daemon
    del engine
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_bundle_that_is_refused_leaves_no_thread(twin: TinyTwin, callers: set[threading.Thread]) -> None:
    def threads() -> int:
        return sum(thread.name == "gpu" for thread in threading.enumerate())

    graph = twin.folder / twin.manifest.cores[0].path
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(bytes(content))
    before = threads()
    with pytest.raises(BundleError, match=graph.name):
        Engine.load(twin.folder, provider="cpu")
    deadline = time.monotonic() + 10
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before


def test_errors_reach_the_caller_and_the_thread_goes_on() -> None:
    thread = GPUThread()
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0)
    assert thread.call(divmod, 7, 2) == (3, 1)
    thread.end()


def test_one_engine_at_a_time_has_the_gpu() -> None:
    thread = GPUThread()
    ran = threading.Event()
    with GPU:
        caller = threading.Thread(target=thread.call_alone, args=(ran.set,))
        caller.start()
        assert not ran.wait(0.1)
    assert ran.wait(10)
    caller.join(10)
    thread.end()
