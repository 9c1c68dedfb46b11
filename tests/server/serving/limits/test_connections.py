"""How many connections there may be: what memory and the limit of open files allow."""

from __future__ import annotations

import asyncio
import resource

import psutil
import pytest

from server.errors import NotReady
from server.serving.limits import connections as module
from server.serving.limits.connections import Connections
from server.serving.telemetry.metrics import Metrics

MB = 1024**2


@pytest.mark.parametrize(("memory", "expected"), [(16 * MB, 64), (512 * MB, 2048)])
def test_memory_bounds_the_connections(memory: int, expected: int) -> None:
    assert Connections(memory, Metrics()).limit == expected


async def test_the_limit_of_open_files_bounds_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    connections = Connections(2**33, Metrics())
    connections.start()
    assert 1024 - 64 - psutil.Process().num_fds() - 5 <= connections.limit <= 1024 - 64
    await connections.stop()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    connections = Connections(2**30, Metrics())
    connections.start()
    assert connections.limit == 4096
    await connections.stop()


async def test_running_out_of_files_is_logged_counted_and_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PERIOD", 0.01)
    monkeypatch.setattr(module.logger.parent, "propagate", True)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (psutil.Process().num_fds() + 10, 4096))
    metrics = Metrics()
    connections = Connections(2**30, metrics)
    connections.check()
    connections.start()

    async def check_for_a_while() -> None:
        for _ in range(500):
            connections.check()
            await asyncio.sleep(0.01)

    with pytest.raises(NotReady, match="files open") as shown:
        await check_for_a_while()
    assert shown.value.retry_after
    await connections.stop()
    assert metrics.registry.get_sample_value("v1t_connections_refused_total", {"reason": "out_of_files"})
    assert caplog.text.count("files open") == 1
