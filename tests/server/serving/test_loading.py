"""Bundles that never finish loading: refused within the time limit, while others are served."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from support.endless_bundle import make_endless
from support.tiny_bundle import write_tiny_bundle

from server.bundle.manifest import MANIFEST
from server.errors import NotReady
from server.inference.engine import Engine
from server.serving import repository as repository_module
from server.serving.loading import load_engine
from server.serving.repository import Repository
from server.serving.telemetry.metrics import Metrics
from server.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")


async def test_a_graph_that_never_ends_is_refused_and_others_are_served(tmp_path: Path) -> None:
    good = write_tiny_bundle(tmp_path / "b-good", name="good")
    metrics = Metrics()
    settings = Settings(bundles=(tmp_path,), provider="cpu", threads=1, load_timeout=2)
    repository = Repository(settings, metrics)
    await repository.load()
    assert [bundle.name for bundle in repository.bundles] == ["good"]
    make_endless(write_tiny_bundle(tmp_path / "a-endless", name="endless"))
    write_tiny_bundle(tmp_path / "c-new", name="new", mice=("X",))

    start = time.monotonic()
    loading = asyncio.create_task(repository.load())
    await asyncio.sleep(1)
    assert metrics.registry.get_sample_value("v1t_loading") == 1
    change = await loading
    assert 2 <= time.monotonic() - start < 10
    (problem,) = change.problems
    assert "'endless'" in problem or "'a-endless'" in problem
    assert "V1T_LOAD_TIMEOUT=2 s" in problem
    assert {bundle.name for bundle in repository.bundles} == {"good", "new"}
    assert repository.look_up("A").hash == good.manifest.hash
    assert metrics.registry.get_sample_value("v1t_refused") == 1
    assert metrics.registry.get_sample_value("v1t_loading") == 0

    # The run is stopped, not only forgotten.
    for thread in threading.enumerate():
        if thread.name == "load a-endless":
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()

    # It is not tried again until its files change: then at once.
    start = time.monotonic()
    assert len((await repository.load()).problems) == 1
    assert time.monotonic() - start < 1
    write_tiny_bundle(tmp_path / "a-endless", name="endless", mice=("Y",))
    assert not (await repository.load()).problems
    assert repository.look_up("Y").name == "endless"


async def test_the_refusal_at_the_start_says_what_is_being_loaded(tmp_path: Path) -> None:
    make_endless(write_tiny_bundle(tmp_path / "endless", name="endless"))
    settings = Settings(bundles=(tmp_path,), provider="cpu", threads=1, load_timeout=1)
    repository = Repository(settings, Metrics())
    loading = asyncio.create_task(repository.load())
    await asyncio.sleep(0.5)
    with pytest.raises(NotReady, match=r"Bundle 'endless' has been loading for \d s"):
        repository.check_ready()
    await loading
    with pytest.raises(NotReady, match="V1T_LOAD_TIMEOUT"):
        repository.check_ready()


async def test_others_do_not_wait_for_a_slow_bundle_which_is_taken_in_when_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository_module, "_PATIENCE", 0.3)
    write_tiny_bundle(tmp_path / "a-slow", name="slow", mice=("S",))
    write_tiny_bundle(tmp_path / "b-good", name="good", mice=("G",))
    release, loads = threading.Event(), []

    def load(bundle: Path, settings: Settings) -> Engine:
        loads.append(bundle.name)
        if bundle.name == "a-slow":
            release.wait(10)
        return load_engine(bundle, settings)

    metrics = Metrics()
    repository = Repository(Settings(bundles=(tmp_path,), provider="cpu", threads=1), metrics, load)
    change = await repository.load()
    assert [bundle.name for bundle in change.loaded] == ["good"]
    assert "still being loaded" in change.problems[0]
    assert not repository.ready  # at the start, all are needed
    assert metrics.registry.get_sample_value("v1t_loading") == 1
    assert len((await repository.load()).problems) == 1
    release.set()
    async with asyncio.timeout(10):
        while not repository.ready:
            await asyncio.sleep(0.01)
    assert repository.look_up("S").name == "slow"
    assert loads == ["a-slow", "b-good"]


@pytest.mark.parametrize("name", [MANIFEST, "A.stem.onnx", "A.neurons.npz"])
async def test_a_pipe_in_place_of_a_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    twin = write_tiny_bundle(tmp_path / "piped")
    (twin.folder / name).unlink()
    os.mkfifo(twin.folder / name)
    repository = Repository(Settings(bundles=(tmp_path,), provider="cpu"), Metrics())
    async with asyncio.timeout(5):
        change = await repository.load()
    (problem,) = change.problems
    assert name in problem
    assert "not a regular file" in problem


async def test_bundle_that_is_still_being_loaded_is_not_called_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Retry-After is short: a program that waits for the server goes on to wait."""
    monkeypatch.setattr(repository_module, "_PATIENCE", 0.0)
    begin = asyncio.Event()
    loop = asyncio.get_running_loop()

    def load(bundle: Path, settings: Settings) -> Engine:
        asyncio.run_coroutine_threadsafe(begin.wait(), loop).result(30)
        return load_engine(bundle, settings)

    bundle = write_tiny_bundle(tmp_path / "large").folder
    repository = Repository(Settings(bundles=(bundle,), provider="cpu", threads=1), Metrics(), load)
    await repository.load()
    assert repository.is_loading
    with pytest.raises(NotReady, match="cannot serve") as caught:
        repository.check_ready()
    assert caught.value.retry_after == 5
    begin.set()
    while repository.is_loading:
        await asyncio.sleep(0.01)
    repository.check_ready()
    (bundle / MANIFEST).write_text("{}")
    refusing = Repository(Settings(bundles=(bundle,), provider="cpu", threads=1), Metrics())
    await refusing.load()
    while refusing.is_loading:
        await asyncio.sleep(0.01)
    with pytest.raises(NotReady, match="cannot serve") as caught:
        refusing.check_ready()
    assert caught.value.retry_after == 30
