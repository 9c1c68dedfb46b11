"""The memory budget grants what fits, refuses what does not, and takes its size from the container or the machine."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from server.errors import Busy, TooLarge
from server.serving.limits.memory_budget import Ended, MemoryBudget, default_budget
from server.serving.telemetry.metrics import Metrics

MB = 1024**2


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_what_fits_is_granted_and_what_does_not_is_refused(metrics: Metrics) -> None:
    budget = MemoryBudget(100 * MB, metrics)
    one, two = budget.reservation(), budget.reservation()
    one.set(50 * MB)
    with pytest.raises(Busy, match="in use by other requests") as busy:
        two.set(30 * MB)
    assert busy.value.retry_after
    assert (budget.used, two.size) == (50 * MB, 0)
    with pytest.raises(TooLarge, match="V1T_MEMORY"):
        two.set(76 * MB)  # large requests never get the last quarter
    two.set(25 * MB)
    one.set(10 * MB)
    two.set(60 * MB)
    assert metrics.registry.get_sample_value("v1t_memory_bytes") == 70 * MB
    one.release()
    two.release()
    assert budget.used == 0


def test_small_requests_fit_beside_large_ones(metrics: Metrics) -> None:
    budget = MemoryBudget(100 * MB, metrics)
    budget.reservation().set(75 * MB)
    small = [budget.reservation() for _ in range(26)]
    for one in small[:25]:
        one.set(MB)
    with pytest.raises(Busy):
        small[25].set(MB)


def test_reservations_of_many_threads_add_up(metrics: Metrics) -> None:
    budget = MemoryBudget(10**9, metrics)
    reservations = [budget.reservation() for _ in range(8)]

    def change(seed: int) -> None:
        for size in np.random.default_rng(seed).integers(0, 10**6, 2000).tolist():
            reservations[seed].set(size)

    threads = [threading.Thread(target=change, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.used == sum(one.size for one in reservations)


def test_a_thread_that_outlasts_its_request_keeps_the_reservation_until_it_ends(metrics: Metrics) -> None:
    budget = MemoryBudget(100 * MB, metrics)
    reservation = budget.reservation()
    reservation.set(10 * MB)
    started, go_on, seen = threading.Event(), threading.Event(), []

    def work() -> None:
        started.set()
        go_on.wait(10)
        with pytest.raises(Ended):
            reservation.set(20 * MB)  # nobody would release it
        seen.append(budget.used)

    thread = threading.Thread(target=reservation.used_by(work))
    thread.start()
    started.wait(10)
    reservation.release()
    assert budget.used == 10 * MB
    go_on.set()
    thread.join()
    assert (seen, budget.used) == ([10 * MB], 0)
    with pytest.raises(Ended):
        reservation.used_by(work)()
    assert budget.reservation().used_by(lambda n: n + 1)(1) == 2


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("0::/\n", {"memory.max": 4 << 30}, 2 << 30, id="in a container, version 2"),
        pytest.param("0::/a/b\n", {"a/memory.max": 1 << 30, "a/b/memory.max": "max"}, 1 << 29, id="the parent's"),
        pytest.param("5:memory:/x\n1:cpu:/y\n", {"memory/x/memory.limit_in_bytes": 2 << 30}, 1 << 30, id="version 1"),
        pytest.param("5:memory:/outside\n", {"memory/memory.limit_in_bytes": 2 << 30}, 1 << 30, id="container, 1"),
        pytest.param("0::/\n", {"memory.max": "max"}, None, id="no limit"),
        pytest.param("5:memory:/\n", {"memory/memory.limit_in_bytes": 2**63 - 4096}, None, id="no limit, version 1"),
        pytest.param("", {}, None, id="no control groups"),
        pytest.param("0::/\n", {"memory.max": 1 << 20}, 128 * MB, id="a tiny container"),
    ],
)
def test_the_default_is_half_of_the_container_s_memory_or_a_quarter_of_the_machine_s(
    tmp_path: Path, groups: str, files: dict[str, object], expected: int | None
) -> None:
    own = tmp_path / "cgroup"
    own.write_text(groups)
    for name, content in files.items():
        file = tmp_path / "mounted" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    machine = psutil.virtual_memory().total
    assert default_budget([tmp_path / "mounted"], own) == (machine // 4 if expected is None else expected)
