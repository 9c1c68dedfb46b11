"""Long exchanges: stacks of images answered while they arrive, in bounded memory, and what stops them half-way."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request
from support import live_server
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.api.codecs import streaming as streams
from server.api.codecs.streaming import Event, EventStream, Upload, in_order, patiently
from server.errors import Busy, InvalidInput, MalformedBody
from server.inference.engine import Engine
from server.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # BentoML's, in its own imports
    from server.service import create_service


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@asynccontextmanager
async def serving(twin: TinyTwin, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_service(
        Settings(**{"bundles": (twin.folder,), "provider": "cpu", "threads": 1, "max_batch": 2} | settings)
    ).to_asgi()
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twin") as client,
    ):
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
        yield client


@pytest.fixture
async def client(twin: TinyTwin) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(twin) as client:
        yield client


def npy(*arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    for array in arrays:
        np.save(stream, array)
    return stream.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|i1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def events_of(body: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """The events of a stream, read as the documentation says."""
    stream, events = io.BytesIO(body), []
    while line := stream.readline():
        event = json.loads(line)
        events.append((event, stream.read(event.get("bytes", 0))))
    return events


def in_pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    return pieces()


# A stack of images


@pytest.mark.parametrize("size", [1000, 7, 10**9])
async def test_a_stack_is_answered_as_numpy_computes_however_its_bytes_are_cut(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator, size: int
) -> None:
    image, behavior, pupil_center = twin.draw("A", rng, 21)  # pieces of 4 runs of 2
    body = npy(behavior, pupil_center, image)
    response = await client.post(
        "/predict/stream?mouse=A&arrays=behavior,pupil_center",
        content=in_pieces(body, size),
        headers={"Content-Type": "application/x-npy"},
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-npy"
    assert int(response.headers["content-length"]) == len(response.content)
    responses = np.load(io.BytesIO(response.content))
    assert responses.dtype == np.float32
    np.testing.assert_allclose(responses, twin.answer("A", image, behavior, pupil_center), atol=1e-5)
    head = json.loads(response.headers["v1t-reply"])
    assert head["model"]["hash"] == twin.manifest.hash
    assert head["assumed"] == []
    assert head["request_id"] == response.headers["x-request-id"]


async def test_events_carry_parts_with_their_place_and_the_end(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    image, _, _ = twin.draw("A", rng, 19)
    ids = twin.mice["A"].neurons.ids[[4, 0, 2]]
    response = await client.post(
        "/predict/stream",
        params={
            "mouse": "A",
            "units": "raw",
            "spread": "true",
            "neuron_ids": json.dumps(ids.tolist()),
            "running_speed": "3.5",
            "pupil_center": "[1, 2]",
        },
        content=npy(image),
        headers={"Accept": "application/x-v1t-stream"},
    )
    assert response.status_code == 200, response.text
    events = events_of(response.content)
    assert [event["event"] for event, _ in events] == ["part"] * 3 + ["end"]
    assert [(event["start"], event["done"], event["total"]) for event, _ in events[:3]] == [
        (0, 8, 19),
        (8, 16, 19),
        (16, 19, 19),
    ]
    parts = np.concatenate([np.load(io.BytesIO(body)) for event, body in events if body], axis=1)  # (2, B, n)
    mouse = twin.mice["A"]
    means = np.tile(mouse.behavior_mean, (19, 1))
    means[:, 2] = 3.5
    members = twin.member_responses("A", image, means, np.tile([1.0, 2.0], (19, 1)))[..., [4, 0, 2]]
    std = mouse.neurons.response_std[[4, 0, 2]]
    np.testing.assert_allclose(parts[0], members.mean(0) * std, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts[1], members.std(0) * std, rtol=1e-4, atol=1e-5)
    assert len(json.loads(response.headers["v1t-reply"])["assumed"]) == 2


async def test_a_stack_of_another_size_is_resized_as_in_a_small_request(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    images = rng.uniform(0, 255, (13, 1, 20, 30)).astype(np.float32)
    streamed = await client.post("/predict/stream?mouse=A&resize=fill", content=npy(images))
    assert "brought to" in json.loads(streamed.headers["v1t-reply"])["assumed"][0]
    small = await client.post(
        "/predict",
        data={"mouse": "A", "resize": "fill"},
        files={"image": npy(images)},
        headers={"Accept": "application/x-npy"},
    )
    assert json.loads(small.headers["v1t-reply"])["assumed"] == json.loads(streamed.headers["v1t-reply"])["assumed"]
    np.testing.assert_allclose(np.load(io.BytesIO(streamed.content)), np.load(io.BytesIO(small.content)), atol=1e-6)


async def test_a_stack_may_be_larger_than_a_request(twin: TinyTwin, rng: np.random.Generator) -> None:
    image, behavior, pupil_center = twin.draw("A", rng, 64)
    async with serving(twin, max_body=8 * 1024, max_images=8, max_queue=8) as client:
        assert len(npy(image)) > 3 * 8 * 1024
        response = await client.post(
            "/predict/stream?mouse=A&arrays=behavior,pupil_center", content=npy(behavior, pupil_center, image)
        )
        assert response.status_code == 200, response.text
        responses = np.load(io.BytesIO(response.content))
        np.testing.assert_allclose(responses, twin.answer("A", image, behavior, pupil_center), atol=1e-5)
        whole = await client.post("/predict", data={"mouse": "A"}, files={"image": npy(image)})
        assert whole.status_code == 413


@pytest.mark.parametrize(
    ("query", "change", "status", "words"),
    [
        ("mouse=Z", lambda image: npy(image), 404, "no such mouse"),
        ("", lambda image: npy(image), 422, "mouse is missing"),
        ("mouse=A&brightness=3", lambda image: npy(image), 422, "unknown field"),
        ("mouse=A&running_speed=fast", lambda image: npy(image), 422, "running_speed cannot be read"),
        ("mouse=A&spread=true", lambda image: npy(image), 406, "cannot grow by both"),
        ("mouse=A&arrays=image", lambda image: npy(image), 422, "does not name what comes before"),
        ("mouse=A&arrays=behavior&running_speed=3", lambda image: npy(image), 422, "given twice"),
        ("mouse=A&arrays=behavior", lambda image: npy(image), 422, "behavior has another shape"),
        (
            "mouse=A&arrays=behavior",
            lambda image: npy(np.ones((3, 3)), image),
            422,
            "behavior does not fit the images",
        ),
        ("mouse=A&arrays=behavior", lambda image: npy(np.full((9, 3), np.nan), image), 422, "not finite"),
        ("mouse=A", lambda image: npy(image[0]), 422, "another shape"),
        ("mouse=A", lambda image: npy(image[:0]), 422, "another shape"),
        ("mouse=A", lambda image: npy(image[:, :, :-1]), 422, "another size"),
        ("mouse=A", lambda image: npy_header((9, 1, 9000, 9000)), 413, "too large to stream"),
        ("mouse=A", lambda image: npy_header((9, 0, 8, 12)), 422, "another shape"),
        ("mouse=A", lambda image: npy_header((9, -1, 8, 12)), 422, "another shape"),
        ("mouse=A", lambda image: npy_header((10**30, 1, 8, 12)), 413, "too many images"),
        ("mouse=A", lambda image: npy_header((9, 10**30, 8, 12)), 413, "too large to stream"),
        ("mouse=A", lambda image: b"\x93NUMPY\x03\x00\x10\x00\x00\x00" + bytes(16), 422, "header cannot be read"),
        ("mouse=A", lambda image: b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(16), 422, "no .npy file"),
        ("mouse=A", lambda image: npy(np.array([{}])), 422, "numbers of a type"),
        ("mouse=A&mouse=A", lambda image: npy(image), 422, "given twice"),
        ("mouse=A&image=1", lambda image: npy(image), 422, "unknown field"),
        ("mouse=A&arrays=", lambda image: npy(image), 422, "does not name what comes before"),
        ("mouse=A", lambda image: npy(np.asfortranarray(image)), 422, "Fortran"),
        ("mouse=A", lambda image: npy(image.astype(complex)), 422, "numbers of a type"),
        ("mouse=A", lambda image: npy(np.where(image < 9, np.nan, image)), 422, "not finite"),
        ("mouse=A", lambda image: b"\x89PNG\r\n\x1a\n" + bytes(100), 422, "no .npy file"),
        ("mouse=A", lambda image: npy(image).replace(b"'shape'", b"'shapf'"), 422, "header cannot be read"),
        ("mouse=A", lambda image: npy(image)[:50], 400, "ends within"),
        ("mouse=A", lambda image: npy(image)[:500], 400, "ends within images 0 to 7"),
        ("mouse=A", lambda image: b"", 400, "ends within"),
    ],
)
async def test_what_is_wrong_from_the_start_is_refused_by_status(
    client: httpx.AsyncClient,
    twin: TinyTwin,
    rng: np.random.Generator,
    query: str,
    change: Any,
    status: int,
    words: str,
) -> None:
    image, _, _ = twin.draw("A", rng, 9)
    response = await client.post(f"/predict/stream?{query}", content=change(image))
    assert response.status_code == status, response.text
    assert words in response.text


async def test_other_bodies_and_replies_are_refused(client: httpx.AsyncClient, rng: np.random.Generator) -> None:
    refused = [
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Accept": "application/json"}, 406),
        ({"X-Request-Timeout": "soon"}, 422),
    ]
    for headers, status in refused:
        response = await client.post("/predict/stream?mouse=A", content=b"", headers=headers)
        assert response.status_code == status, headers


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda body, image: body[:-3], "malformed_body"),
        (lambda body, image: body + b"more", "malformed_body"),
        (lambda body, image: npy(np.concatenate([image[:16], np.full_like(image[16:], np.inf)])), "invalid_input"),
    ],
)
async def test_what_goes_wrong_half_way_is_the_last_event(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator, change: Any, code: str
) -> None:
    image, _, _ = twin.draw("A", rng, 20)
    response = await client.post(
        "/predict/stream?mouse=A",
        content=change(npy(image), image),
        headers={"Accept": "application/x-v1t-stream"},
    )
    assert response.status_code == 200
    (*parts, (last, _)) = events_of(response.content)
    assert [event["start"] for event, _ in parts][:2] == [0, 8]
    assert last["event"] == "error"
    assert last["error"]["code"] == code
    assert last["request_id"] == response.headers["x-request-id"]
    fine = await client.post("/predict/stream?mouse=A", content=npy(image))
    assert fine.status_code == 200


async def test_the_first_piece_is_refused_as_any_request_when_the_queue_is_full(
    twin: TinyTwin, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _, _ = twin.draw("A", rng, 8)
    async with serving(twin, max_images=8, max_queue=8) as client:
        original = Engine.predict_many

        def slow(self: Engine, stimuli: Any) -> Any:
            time.sleep(0.2)
            return original(self, stimuli)

        monkeypatch.setattr(Engine, "predict_many", slow)
        small = asyncio.create_task(client.post("/predict", data={"mouse": "A"}, files={"image": npy(image)}))
        await asyncio.sleep(0.1)
        refused = await client.post("/predict/stream?mouse=A", content=npy(image))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert (await small).status_code == 200


async def test_the_request_s_own_timeout_bounds_the_whole_stream(
    twin: TinyTwin, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Engine.predict_many

    def slow(self: Engine, stimuli: Any) -> Any:
        time.sleep(0.02)
        return original(self, stimuli)

    image, _, _ = twin.draw("A", rng, 400)
    async with serving(twin) as client:
        monkeypatch.setattr(Engine, "predict_many", slow)
        response = await client.post(
            "/predict/stream?mouse=A",
            content=npy(image),
            headers={"X-Request-Timeout": "0.5", "Accept": "application/x-v1t-stream"},
        )
    (*parts, (last, _)) = events_of(response.content)
    assert parts
    assert last["error"]["code"] in ("deadline_exceeded", "overloaded")  # its own pieces wait for each other


async def test_a_stream_holds_its_caller_s_place_until_it_ends(
    twin: TinyTwin, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Engine.predict_many
    begun = threading.Event()

    def slow(self: Engine, stimuli: Any) -> Any:
        begun.set()
        time.sleep(0.02)
        return original(self, stimuli)

    image, _, _ = twin.draw("A", rng, 60)
    async with serving(twin, max_concurrent=1) as client:
        monkeypatch.setattr(Engine, "predict_many", slow)
        stream = asyncio.create_task(client.post("/predict/stream?mouse=A", content=npy(image)))
        assert await asyncio.to_thread(begun.wait, 10)
        await asyncio.sleep(0.1)  # past its first piece
        refused = await client.get("/mice")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert (await stream).status_code == 200
        assert (await client.get("/mice")).status_code == 200


async def test_small_requests_take_turns_with_a_stream(
    twin: TinyTwin, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Engine.predict_many

    def slow(self: Engine, stimuli: Any) -> Any:
        time.sleep(0.01)
        return original(self, stimuli)

    image, _, _ = twin.draw("A", rng, 400)  # 2 s of work
    async with serving(twin) as client:
        monkeypatch.setattr(Engine, "predict_many", slow)
        stream = asyncio.create_task(client.post("/predict/stream?mouse=A", content=npy(image)))
        await asyncio.sleep(0.2)
        for _ in range(5):
            small = await client.post("/predict", data={"mouse": "A"}, files={"image": npy(image[:1])})
            assert small.status_code == 200
        assert not stream.done()
        waiting = [
            float(line.split()[1])
            for line in (await client.get("/metrics")).text.splitlines()
            if line.startswith("v1t_queue_images ")
        ]
        assert waiting[0] <= 2 * 8  # two pieces, not the whole stack
        assert (await stream).status_code == 200


# The plumbing


def request_of(*messages: dict[str, Any] | asyncio.Event) -> tuple[Request, list[int]]:
    """A request whose messages come as they are received; an event among them is waited for."""
    left, taken = list(messages), [0]

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        message = left.pop(0)
        if isinstance(message, asyncio.Event):
            await message.wait()
            return {"type": "http.disconnect"}
        taken[0] += 1
        return message

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "state": {"request_id": "r"}}
    return Request(scope, receive), taken


def chunk(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def collected(stream: EventStream, request: Request, stall_after: int | None = None) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        if stall_after is not None and len(sent) >= stall_after:
            await asyncio.Event().wait()
        sent.append(message)

    await stream({"type": "http"}, request.receive, send)
    return sent


async def test_an_upload_is_read_no_further_than_it_is_asked_for() -> None:
    request, taken = request_of(*(chunk(bytes([i]) * 10) for i in range(9)), chunk(b"", more=False))
    upload = Upload(request, patience=5)
    assert await upload.read(15, "it") == bytes([0] * 10 + [1] * 5)
    assert taken == [2]
    assert await upload.read(5, "it") == bytes([1] * 5)
    assert taken == [2]
    assert not upload.received.is_set()
    with pytest.raises(MalformedBody, match="ends within the rest"):
        await upload.read(71, "the rest")
    assert upload.received.is_set()


async def test_answers_keep_their_order_and_few_pieces_are_held() -> None:
    held, most = 0, 0

    async def pieces() -> AsyncIterator[int]:
        nonlocal held, most
        for i in range(20):
            held += 1
            most = max(most, held)
            yield i

    async def ask(i: int) -> int:
        await asyncio.sleep(0.002 * (i % 3))
        return i * i

    async for piece, squared in in_order(pieces(), ask, ahead=3):
        assert squared == piece * piece
        await asyncio.sleep(0.001)
        held -= 1
    assert held == 0
    assert most <= 3


async def test_an_answer_is_given_before_the_next_piece_comes() -> None:
    answered = asyncio.Event()

    async def pieces() -> AsyncIterator[int]:
        yield 1
        await asyncio.wait_for(answered.wait(), 5)  # only then comes the second
        yield 2

    async def ask(i: int) -> int:
        return i

    seen = []
    async for piece, _ in in_order(pieces(), ask):
        seen.append(piece)
        answered.set()
    assert seen == [1, 2]


async def test_what_was_asked_is_cancelled_when_nobody_wants_the_rest() -> None:
    cancelled = []

    async def pieces() -> AsyncIterator[int]:
        for i in range(9):
            yield i

    async def ask(i: int) -> int:
        if i == 0:
            return 0
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(i)
            raise
        return i

    answers = in_order(pieces(), ask, ahead=3)
    assert await anext(answers) == (0, 0)
    await asyncio.sleep(0.01)
    await answers.aclose()
    assert sorted(cancelled) == [1, 2]


async def test_a_stream_waits_where_the_queue_is_full_until_its_deadline() -> None:
    refusals = 2

    async def ask() -> str:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise Busy("full", retry_after=0.01)
        return "answered"

    assert await patiently(ask, deadline=time.perf_counter() + 5) == "answered"
    refusals = 10**6
    with pytest.raises(Busy):
        await patiently(ask, deadline=time.perf_counter() + 0.05)


async def test_events_stop_when_the_client_hangs_up() -> None:
    gone, closed = asyncio.Event(), asyncio.Event()

    async def events() -> AsyncGenerator[Event, None]:
        try:
            yield Event("progress", more={"done": 0})
            gone.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    request, _ = request_of(gone)
    stream = await EventStream.begin(request, events(), patience=5)
    sent = await asyncio.wait_for(collected(stream, request), 5)
    assert closed.is_set()
    assert sent[-1].get("more_body") is True  # so that it is seen to be short


async def test_a_client_that_does_not_read_is_given_up() -> None:
    closed = asyncio.Event()

    async def events() -> AsyncGenerator[Event, None]:
        try:
            while True:
                yield Event("part", b"x" * 100)
        finally:
            closed.set()

    request, _ = request_of()
    stream = await EventStream.begin(request, events(), patience=0.05)
    sent = await asyncio.wait_for(collected(stream, request, stall_after=5), 5)
    assert closed.is_set()
    assert len(sent) == 5


async def test_a_quiet_stream_shows_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ALIVE_AFTER", 0.02)

    async def events() -> AsyncGenerator[Event, None]:
        yield Event("progress", more={"done": 0, "total": 2})
        await asyncio.sleep(0.1)
        yield Event("end")

    request, _ = request_of()
    stream = await EventStream.begin(request, events(), patience=5)
    sent = await collected(stream, request)
    names = [event["event"] for event, _ in events_of(b"".join(message.get("body", b"") for message in sent))]
    assert names[0] == "progress"
    assert names[-1] == "end"
    assert set(names[1:-1]) == {"alive"}
    assert sent[-1]["more_body"] is False


async def test_an_error_of_ours_is_told_and_another_one_is_not_explained() -> None:
    for raised, code in ((InvalidInput("too bright"), "invalid_input"), (RuntimeError("secret"), "error")):

        async def events(raised: Exception = raised) -> AsyncGenerator[Event, None]:
            yield Event("progress")
            raise raised

        request, _ = request_of()
        stream = await EventStream.begin(request, events(), patience=5)
        body = b"".join(message.get("body", b"") for message in await collected(stream, request))
        last, _ = events_of(body)[-1]
        assert (last["event"], last["error"]["code"], last["request_id"]) == ("error", code, "r")
        assert b"secret" not in body


# Over a real connection


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_streams_a_large_stack_in_bounded_memory(twin: TinyTwin, rng: np.random.Generator, tmp_path: Path) -> None:
    image, behavior, pupil_center = (array.astype(np.float64) for array in twin.draw("A", rng, 100_000))
    assert image.nbytes > 75e6
    with live_server.serving(twin.folder, tmp_path, OMP_NUM_THREADS="1", V1T_MAX_BATCH="64") as server:
        server.wait_for("/readyz", 200)
        for name, array in (("behavior", behavior), ("pupil_center", pupil_center), ("images", image)):
            np.save(tmp_path / f"{name}.npy", array)
        curl = (
            "cat behavior.npy pupil_center.npy images.npy | curl -sS --fail -X POST -T - -o responses.npy "
            f"'{server.url}/predict/stream?mouse=A&arrays=behavior,pupil_center'"
        )
        before = resident_mb(server.url)
        subprocess.run(curl, shell=True, cwd=tmp_path, check=True, timeout=live_server.PATIENCE)
        grown = resident_mb(server.url) - before
        responses = np.load(tmp_path / "responses.npy")
        np.testing.assert_allclose(
            responses[:500], twin.answer("A", image[:500], behavior[:500], pupil_center[:500]), atol=1e-4
        )
        np.testing.assert_allclose(
            responses[-500:], twin.answer("A", image[-500:], behavior[-500:], pupil_center[-500:]), atol=1e-4
        )
        assert grown < 40, f"{grown:.0f} MB"

        # Cut short: curl says so, and what it has cannot pass for the whole.
        with (tmp_path / "images.npy").open("r+b") as stream:
            stream.truncate(image.nbytes // 10)
        cut = subprocess.run(curl, shell=True, cwd=tmp_path, capture_output=True, timeout=live_server.PATIENCE)
        assert cut.returncode != 0
        with pytest.raises(ValueError, match="Failed to read all data"):
            np.load(tmp_path / "responses.npy")


def resident_mb(url: str) -> float:
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith("process_resident_memory_bytes "):
            return float(line.split()[1]) / 1e6
    raise AssertionError("no memory in /metrics")
