"""The decode pool stops what nobody waits for, keeps a thread for small bodies, and estimates the wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from server.serving.decode_pool import DecodePool, checkpoint

LARGE = 32 * 1024**2
PATIENCE = 10


def until(event: threading.Event) -> None:
    assert event.wait(PATIENCE)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def test_decoding_stops_at_the_next_checkpoint_once_nobody_waits() -> None:
    pool, started, go_on, done = DecodePool(), threading.Event(), threading.Event(), []

    def decode() -> None:
        started.set()
        for file in range(3):
            checkpoint()
            done.append(file)
            until(go_on)

    task = asyncio.create_task(pool.run(1, decode))
    await asyncio.to_thread(until, started)
    await eventually(lambda: done == [0])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await pool.run(1, lambda: None)
    await eventually(lambda: not pool._pending)
    assert done == [0]


async def test_a_request_that_is_cancelled_in_the_queue_is_never_decoded() -> None:
    pool, go_on, done = DecodePool(1), threading.Event(), []
    first = asyncio.create_task(pool.run(LARGE, until, go_on))
    queued = [asyncio.create_task(pool.run(work, done.append, work)) for work in (1, LARGE)]
    await asyncio.sleep(0.05)
    for task in queued:
        task.cancel()
    await asyncio.gather(*queued, return_exceptions=True)
    go_on.set()
    await first
    await eventually(lambda: not pool._pending)
    assert done == []


async def test_a_small_body_does_not_wait_for_large_ones() -> None:
    pool, go_on = DecodePool(2), threading.Event()
    large = [asyncio.create_task(pool.run(LARGE, until, go_on)) for _ in range(4)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(PATIENCE / 2):
        assert await pool.run(1, lambda: "small") == "small"
    assert not any(task.done() for task in large)
    large[1].cancel()  # while it waits for its turn
    go_on.set()
    results = await asyncio.gather(*large, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), asyncio.CancelledError, type(None), type(None)]
    await eventually(lambda: not pool._pending)


async def test_the_estimated_wait_counts_what_runs_for_a_request_that_has_left() -> None:
    pool, started, go_on = DecodePool(), threading.Event(), threading.Event()
    await pool.run(LARGE, lambda: threading.Event().wait(0.2))

    def decode() -> None:
        started.set()
        until(go_on)

    task = asyncio.create_task(pool.run(LARGE, decode))
    await asyncio.to_thread(until, started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.estimated_wait >= 0.1  # 0.2 s in one of two threads
    go_on.set()
    await eventually(lambda: pool.estimated_wait == 0)


async def test_errors_of_the_function_reach_the_caller() -> None:
    pool = DecodePool()
    for work in (1, LARGE):
        with pytest.raises(KeyError, match="wrong"):
            await pool.run(work, {}.__getitem__, "wrong")
    assert await pool.run(LARGE, lambda: "next") == "next"
