"""The batcher: which requests share a run, their order, and the effect of errors and cancellations."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

from server.errors import Busy, DeadlineExceeded, NotReady, Overloaded
from server.inference.engine import Prediction, Stimulus
from server.serving.batcher import Batcher
from server.serving.jobs import Work
from server.serving.telemetry.metrics import Metrics


class SumEngine:
    """Responds with the sum of each image. It can be blocked, and fails on negative images."""

    def __init__(self) -> None:
        self.runs: list[list[int]] = []  # images of each stimulus, run by run
        self.open = threading.Event()
        self.open.set()
        self.threads: set[int] = set()

    def predict_many(self, stimuli: Any) -> list[Prediction]:
        self.threads.add(threading.get_ident())
        assert self.open.wait(30)
        self.runs.append([len(stimulus.image) for stimulus in stimuli])
        if any((stimulus.image < 0).any() for stimulus in stimuli):
            raise RuntimeError("negative light")
        sums = [
            stimulus.image.sum((1, 2, 3))[:, None] + stimulus.behavior.sum(1, keepdims=True) for stimulus in stimuli
        ]
        return [Prediction(total, -total) for total in sums]


def stimulus(rng: np.random.Generator, B: int = 1, mouse_id: str = "A") -> Stimulus:
    return Stimulus(
        mouse_id,
        rng.random((B, 1, 2, 2), dtype=np.float32),
        rng.random((B, 3), dtype=np.float32),
        rng.random((B, 2), dtype=np.float32),
    )


def answer(asked: Stimulus) -> np.ndarray:
    return asked.image.sum((1, 2, 3))[:, None] + asked.behavior.sum(1, keepdims=True)


async def predict(batcher: Batcher, engine: Any, one: Stimulus, **more: Any) -> Prediction:
    """The batcher's answer to one stimulus."""
    (prediction,) = await batcher.compute(engine, [one], **more)
    return prediction


@asynccontextmanager
async def running(max_batch: int = 4, max_queue: int = 100) -> AsyncIterator[tuple[Batcher, Metrics]]:
    metrics = Metrics()
    batcher = Batcher(max_batch=max_batch, max_queue=max_queue, metrics=metrics)
    batcher.start()
    yield batcher, metrics
    await batcher.close()


@pytest.fixture
def engine() -> Iterator[SumEngine]:
    engine = SumEngine()
    yield engine
    engine.open.set()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def value(metrics: Metrics, name: str) -> float:
    found = metrics.registry.get_sample_value(name)
    assert found is not None
    return found


async def test_every_request_gets_its_own_answer(engine: SumEngine, rng: np.random.Generator) -> None:
    asked = [stimulus(rng, B=int(rng.integers(1, 12))) for _ in range(60)]
    async with running(max_queue=1000) as (batcher, metrics):
        answers = await asyncio.gather(*(predict(batcher, engine, one) for one in asked))
    for one, got in zip(asked, answers, strict=True):
        np.testing.assert_allclose(got.response, answer(one), rtol=1e-6)
        np.testing.assert_allclose(got.spread, -answer(one), rtol=1e-6)
    n_images = sum(len(one.image) for one in asked)
    assert value(metrics, "v1t_batch_images_sum") == n_images == sum(map(sum, engine.runs))
    assert value(metrics, "v1t_batch_images_count") == len(engine.runs)
    assert value(metrics, "v1t_queue_seconds_count") == len(asked)
    assert value(metrics, "v1t_queue_images") == 0
    assert max(map(sum, engine.runs)) == 4
    assert len(engine.threads) == 1


async def test_a_single_request_runs_at_once_and_requests_that_wait_meanwhile_run_together(
    engine: SumEngine, rng: np.random.Generator
) -> None:
    engine.open.clear()
    async with running() as (batcher, _):
        first = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        rest = [asyncio.create_task(predict(batcher, engine, stimulus(rng, mouse_id=mouse))) for mouse in "ABAB"]
        await settle()
        engine.open.set()
        await asyncio.gather(first, *rest)
    assert engine.runs == [[1], [1, 1, 1, 1]]


async def test_a_large_request_takes_turns_with_small_ones(engine: SumEngine, rng: np.random.Generator) -> None:
    engine.open.clear()
    finished: list[str] = []

    async def ask(name: str, one: Stimulus, batcher: Batcher) -> None:
        got = await predict(batcher, engine, one)
        np.testing.assert_allclose(got.response, answer(one), rtol=1e-6)
        finished.append(name)

    async with running() as (batcher, _):
        large = asyncio.create_task(ask("large", stimulus(rng, B=18), batcher))
        await settle()
        small = [asyncio.create_task(ask("small", stimulus(rng), batcher)) for _ in range(2)]
        await settle()
        engine.open.set()
        await asyncio.gather(large, *small)
    assert finished == ["small", "small", "large"]
    assert engine.runs == [[4], [4], [1, 1, 2], [4], [4]] or engine.runs == [[4], [1, 1, 2], [4], [4], [4]]


async def test_an_error_reaches_only_its_request(engine: SumEngine, rng: np.random.Generator) -> None:
    engine.open.clear()
    bad = stimulus(rng)
    bad.image[:] = -1
    async with running() as (batcher, metrics):
        blocker = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        asked = [stimulus(rng), bad, stimulus(rng)]
        tasks = [asyncio.create_task(predict(batcher, engine, one)) for one in asked]
        await settle()
        engine.open.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await blocker
        assert isinstance(answers[1], RuntimeError)
        for i in (0, 2):
            np.testing.assert_allclose(answers[i].response, answer(asked[i]), rtol=1e-6)  # type: ignore[union-attr]
        assert batcher.alive
        assert value(metrics, "v1t_queue_images") == 0


async def test_an_error_in_a_piece_ends_the_whole_request(engine: SumEngine, rng: np.random.Generator) -> None:
    bad = stimulus(rng, B=20)
    bad.image[0] = -1
    async with running() as (batcher, metrics):
        with pytest.raises(RuntimeError, match="negative light"):
            await predict(batcher, engine, bad)
        await settle()
        assert engine.runs == [[4]]
        assert value(metrics, "v1t_queue_images") == 0


async def test_a_cancelled_request_is_not_computed(engine: SumEngine, rng: np.random.Generator) -> None:
    engine.open.clear()
    async with running() as (batcher, metrics):
        first = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        dropped = [asyncio.create_task(predict(batcher, engine, stimulus(rng, B=7))) for _ in range(3)]
        kept = asyncio.create_task(predict(batcher, engine, stimulus(rng, B=2)))
        await settle()
        assert value(metrics, "v1t_queue_images") == 23
        for task in dropped:
            task.cancel()
        await settle()
        assert value(metrics, "v1t_queue_images") == 2
        engine.open.set()
        await asyncio.gather(first, kept)
    assert engine.runs == [[1], [2]]


async def test_a_full_queue_refuses_with_a_time_to_retry(engine: SumEngine, rng: np.random.Generator) -> None:
    engine.open.clear()
    async with running(max_queue=5) as (batcher, _):
        tasks = [asyncio.create_task(predict(batcher, engine, stimulus(rng)))]
        await settle()
        tasks.append(asyncio.create_task(predict(batcher, engine, stimulus(rng, B=4))))
        await settle()
        with pytest.raises(Busy) as refused:
            await predict(batcher, engine, stimulus(rng, B=2))
        assert refused.value.retry_after is not None
        assert refused.value.retry_after >= 1
        tasks.append(asyncio.create_task(predict(batcher, engine, stimulus(rng))))
        await settle()
        engine.open.set()
        await asyncio.gather(*tasks)


async def test_a_run_holds_images_of_one_bundle_only(rng: np.random.Generator) -> None:
    one, two = SumEngine(), SumEngine()
    one.open.clear()
    async with running() as (batcher, _):
        tasks = [asyncio.create_task(predict(batcher, one, stimulus(rng)))]
        await settle()
        tasks += [asyncio.create_task(predict(batcher, engine, stimulus(rng))) for engine in (one, two, one, two)]
        await settle()
        one.open.set()
        await asyncio.gather(*tasks)
    assert one.runs == [[1], [1, 1]]
    assert two.runs == [[1, 1]]


async def test_closing_fails_pending_requests(engine: SumEngine, rng: np.random.Generator) -> None:
    engine.open.clear()
    async with running() as (batcher, _):
        running_one = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        waiting = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        engine.open.set()
        await batcher.close()
        with pytest.raises(NotReady):
            await waiting
        assert not batcher.alive
        running_one.cancel()


async def test_a_request_past_its_deadline_is_not_computed(engine: SumEngine, rng: np.random.Generator) -> None:
    engine.open.clear()
    async with running() as (batcher, metrics):
        first = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        soon, later = time.perf_counter() + 0.02, time.perf_counter() + 60
        late = [asyncio.create_task(predict(batcher, engine, stimulus(rng, B=7), deadline=soon)) for _ in range(3)]
        kept = asyncio.create_task(predict(batcher, engine, stimulus(rng, B=2), deadline=later))
        await asyncio.sleep(0.05)
        engine.open.set()
        await asyncio.gather(first, kept)
        for task in late:
            with pytest.raises(DeadlineExceeded):
                await task
        assert value(metrics, "v1t_queue_images") == 0
    assert engine.runs == [[1], [2]]


async def test_a_large_request_stops_at_its_deadline(engine: SumEngine, rng: np.random.Generator) -> None:
    engine.open.clear()
    async with running() as (batcher, metrics):
        deadline = time.perf_counter() + 0.02
        large = asyncio.create_task(predict(batcher, engine, stimulus(rng, B=40), deadline=deadline))
        await asyncio.sleep(0.05)
        engine.open.set()
        with pytest.raises(DeadlineExceeded):
            await large
        assert value(metrics, "v1t_queue_images") == 0
    assert engine.runs == [[4]]


class Sums(NamedTuple):
    image: np.ndarray  # (B,)
    place: np.ndarray  # (B,)


def sums_of(one: Stimulus) -> np.ndarray:
    return one.image.sum((1, 2, 3))


async def test_other_work_takes_turns_and_leaves_batches_whole(engine: SumEngine, rng: np.random.Generator) -> None:
    pieces: list[tuple[int, slice, int]] = []

    def run(engine: Any, stimuli: Sequence[Stimulus], images: slice) -> list[Sums]:
        (piece,) = stimuli
        pieces.append((len(engine.runs), images, threading.get_ident()))
        return [Sums(sums_of(piece), np.arange(images.start, images.stop))]

    engine.open.clear()
    asked = stimulus(rng, B=5)
    async with running() as (batcher, metrics):
        first = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        before = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        work = asyncio.create_task(batcher.compute(engine, [asked], Work("sums", run, 2)))
        await settle()
        after = [asyncio.create_task(predict(batcher, engine, stimulus(rng))) for _ in range(2)]
        await settle()
        assert value(metrics, "v1t_queue_images") == 8
        engine.open.set()
        await asyncio.gather(first, before, *after)
        (got,) = await work
        assert value(metrics, "v1t_queue_images") == 0
        assert metrics.registry.get_sample_value("v1t_work_seconds_count", {"work": "sums"}) == 3
    assert engine.runs == [[1], [1, 1, 1]]  # the work at the head of the queue did not separate them
    assert [(runs, images) for runs, images, _ in pieces] == [(2, slice(0, 2)), (2, slice(2, 4)), (2, slice(4, 5))]
    assert {thread for *_, thread in pieces} == engine.threads
    np.testing.assert_allclose(got.image, sums_of(asked), rtol=1e-6)
    np.testing.assert_array_equal(got.place, np.arange(5))


async def test_the_wait_estimate_counts_the_run_in_progress(engine: SumEngine, rng: np.random.Generator) -> None:
    async with running() as (batcher, metrics):
        engine.open.clear()
        first = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await asyncio.sleep(0.5)
        engine.open.set()
        await first  # the batcher now estimates 0.5 s per image
        engine.open.clear()
        kept = asyncio.create_task(predict(batcher, engine, stimulus(rng, B=4)))
        await settle()
        assert value(metrics, "v1t_queue_images") == 0
        with pytest.raises(Busy, match="longer than the request's time"):
            await predict(batcher, engine, stimulus(rng), deadline=time.perf_counter() + 0.5)
        engine.open.set()
        await kept
        await predict(batcher, engine, stimulus(rng), deadline=time.perf_counter() + 0.5)


async def test_work_that_fails_touches_nothing_else(engine: SumEngine, rng: np.random.Generator) -> None:
    def run(engine: Any, stimuli: Sequence[Stimulus], images: slice) -> list[Sums]:
        raise RuntimeError("no such thing")

    async with running() as (batcher, metrics):
        work = asyncio.create_task(batcher.compute(engine, [stimulus(rng, B=9)], Work("sums", run, 2)))
        prediction = await predict(batcher, engine, asked := stimulus(rng))
        np.testing.assert_allclose(prediction.response, answer(asked), rtol=1e-6)
        with pytest.raises(RuntimeError, match="no such thing"):
            await work
        assert batcher.alive
        assert value(metrics, "v1t_queue_images") == 0


async def test_a_request_that_cannot_be_in_time_is_refused_before_it_queues(
    engine: SumEngine, rng: np.random.Generator
) -> None:
    async with running() as (batcher, metrics):
        engine.open.clear()
        first = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await asyncio.sleep(0.1)
        engine.open.set()
        await first  # the batcher now estimates 0.1 s per image
        engine.open.clear()
        kept = [asyncio.create_task(predict(batcher, engine, stimulus(rng, B=4))) for _ in range(5)]
        await settle()
        assert value(metrics, "v1t_queue_images") == 16
        with pytest.raises(Busy, match="longer than the request's time") as refused:
            await predict(batcher, engine, stimulus(rng), deadline=time.perf_counter() + 1)
        assert refused.value.retry_after in (2, 3)
        kept.append(asyncio.create_task(predict(batcher, engine, stimulus(rng), deadline=time.perf_counter() + 60)))
        await settle()
        assert value(metrics, "v1t_queue_images") == 17
        engine.open.set()
        await asyncio.gather(*kept)
        # An idle engine takes any request, whatever the estimate.
        await predict(batcher, engine, stimulus(rng), deadline=time.perf_counter() + 0.05)


async def test_a_request_that_was_late_because_of_others_may_be_retried(
    engine: SumEngine, rng: np.random.Generator
) -> None:
    def slowly(stimuli: Any) -> list[Prediction]:
        time.sleep(0.02)
        return SumEngine.predict_many(engine, stimuli)

    engine.predict_many = slowly  # type: ignore[method-assign]
    async with running() as (batcher, metrics):
        large = predict(batcher, engine, stimulus(rng, B=40), deadline=time.perf_counter() + 0.15)
        late = asyncio.create_task(large)
        others = [asyncio.create_task(predict(batcher, engine, stimulus(rng, B=4))) for _ in range(10)]
        with pytest.raises(Overloaded, match="too busy") as refused:
            await late
        assert (refused.value.status, refused.value.retry_after) == (503, 1)
        await asyncio.gather(*others)
        assert value(metrics, "v1t_queue_images") == 0


async def test_an_image_for_several_mice_stays_in_one_run_and_small_requests_fill_the_rest(
    engine: SumEngine, rng: np.random.Generator
) -> None:
    engine.open.clear()
    mice = [stimulus(rng, B=3, mouse_id=mouse) for mouse in "ABC"]
    async with running() as (batcher, metrics):
        held = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        several = asyncio.create_task(batcher.compute(engine, mice))
        small = [asyncio.create_task(predict(batcher, engine, stimulus(rng))) for _ in range(2)]
        await settle()
        assert value(metrics, "v1t_queue_images") == 3 * 3 + 2
        engine.open.set()
        answers = await several
        await asyncio.gather(held, *small)
    for one, got in zip(mice, answers, strict=True):
        np.testing.assert_allclose(got.response, answer(one), rtol=1e-6)
    # Runs of 4: an image of 3 mice and one of a small request, twice, then the last image.
    assert engine.runs == [[1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1]]


async def test_more_mice_than_fit_a_run_are_answered_and_cancelled_like_others(
    engine: SumEngine, rng: np.random.Generator
) -> None:
    mice = [stimulus(rng, B=2, mouse_id=str(i)) for i in range(7)]
    async with running() as (batcher, metrics):
        answers = await batcher.compute(engine, mice)
        for one, got in zip(mice, answers, strict=True):
            np.testing.assert_allclose(got.response, answer(one), rtol=1e-6)
        assert engine.runs == [[1] * 7, [1] * 7]
        engine.open.clear()
        held = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        several = asyncio.create_task(batcher.compute(engine, mice))
        await settle()
        several.cancel()
        await settle()
        assert value(metrics, "v1t_queue_images") == 0
        with pytest.raises(Busy, match="full"):
            await batcher.compute(engine, [stimulus(rng, B=20) for _ in range(6)])
        engine.open.set()
        await held


class Recorder(SumEngine):
    """Records who is computed, by the number in the first pixel."""

    def predict_many(self, stimuli: Any) -> list[Prediction]:
        answers = super().predict_many(stimuli)
        self.order = [*getattr(self, "order", []), [int(stimulus.image[0, 0, 0, 0]) for stimulus in stimuli]]
        return answers


def numbered(number: int, B: int = 1) -> Stimulus:
    one = stimulus(np.random.default_rng(number), B)
    one.image[:, 0, 0, 0] = number
    return one


@pytest.mark.parametrize("seed", range(5))
async def test_interactive_requests_go_first_and_every_fourth_run_is_bulk(seed: int) -> None:
    """Against a model of the two queues, with arrivals in random order: numbers from 1000 on are bulk requests."""
    rng = np.random.default_rng(seed)
    engine = Recorder()
    engine.open.clear()
    n = {"interactive": int(rng.integers(8, 20)), "bulk": int(rng.integers(4, 8))}
    arrivals = rng.permutation([*range(1, n["interactive"] + 1), *range(1001, 1001 + n["bulk"])])
    async with running(max_batch=1) as (batcher, _):
        asked = [asyncio.create_task(predict(batcher, engine, numbered(0)))]
        await settle()  # it runs while all others arrive
        for number in arrivals:
            priority = "bulk" if number > 1000 else "interactive"
            asked.append(asyncio.create_task(predict(batcher, engine, numbered(number), priority=priority)))
            await settle()
        engine.open.set()
        await asyncio.gather(*asked)
    interactive = [int(one) for one in arrivals if one < 1000]
    bulk = [int(one) for one in arrivals if one > 1000]
    expected: list[int] = []
    while interactive or bulk:
        ahead, interactive = interactive[:3], interactive[3:]
        expected += ahead + bulk[:1] if interactive or ahead else bulk[:1]
        bulk = bulk[1:]
    assert [number for (number,) in engine.order[1:]] == expected


async def test_bulk_requests_never_share_a_run_with_interactive_ones_and_are_not_starved() -> None:
    engine = Recorder()
    is_over = False
    async with running(max_batch=8, max_queue=1000) as (batcher, _):

        async def ask_again(number: int) -> None:
            while not is_over:
                await predict(batcher, engine, numbered(number))

        clients = [asyncio.create_task(ask_again(number)) for number in range(1, 20)]
        await settle()
        bulk = [asyncio.create_task(predict(batcher, engine, numbered(1000, B=16), priority="bulk")) for _ in range(3)]
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*bulk)  # although interactive requests wait at all times
        is_over = True
        await asyncio.gather(*clients)
    np.testing.assert_allclose(answers[0].response, answer(numbered(1000, B=16)), rtol=1e-6)
    kinds = ["".join(sorted({"b" if number == 1000 else "i" for number in run})) for run in engine.order]
    assert set(kinds) == {"b", "i"}
    during = "".join(kinds)[kinds.index("b") : len(kinds) - kinds[::-1].index("b")]
    assert all(1 <= len(gap) <= 3 for gap in during.split("b") if gap)


async def test_a_run_of_bulk_requests_is_short_while_interactive_ones_come(rng: np.random.Generator) -> None:
    class Slow(SumEngine):
        def predict_many(self, stimuli: Any) -> list[Prediction]:
            time.sleep(0.004 * sum(len(stimulus.image) for stimulus in stimuli))
            return super().predict_many(stimuli)

    engine = Slow()
    async with running(max_batch=16) as (batcher, _):
        await predict(batcher, engine, stimulus(rng, B=16), priority="bulk")
        assert engine.runs == [[16]]  # nobody else: a whole batch
        for _ in range(20):
            await predict(batcher, engine, stimulus(rng))
        engine.runs.clear()
        await predict(batcher, engine, stimulus(rng, B=16), priority="bulk")
    assert max(map(sum, engine.runs)) <= 2  # 10 ms, at 4 ms or more an image


async def test_the_queue_of_bulk_requests_does_not_refuse_interactive_ones(
    engine: SumEngine, rng: np.random.Generator
) -> None:
    engine.open.clear()
    async with running(max_queue=8) as (batcher, metrics):
        first = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        bulk = asyncio.create_task(predict(batcher, engine, stimulus(rng, B=8), priority="bulk"))
        await settle()
        with pytest.raises(Busy, match="the queue is full"):
            await predict(batcher, engine, stimulus(rng), priority="bulk")
        interactive = asyncio.create_task(predict(batcher, engine, stimulus(rng)))
        await settle()
        assert value(metrics, "v1t_queue_images") == 9
        bulk.cancel()
        await settle()
        assert value(metrics, "v1t_queue_images") == 1
        engine.open.set()
        await asyncio.gather(first, interactive)
