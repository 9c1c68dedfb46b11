"""Sets of images larger than a request: cut, asked, retried and joined; written as they come, and gone on with."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image as PillowImage
from support import live_server
from support.contract_server import SHAPE, ContractServer, error_reply
from support.tiny_bundle import write_tiny_bundle
from v1t_client import AsyncClient, Client, ModelChanged, NotReady, Prediction, TooLarge
from v1t_client._cli import main
from v1t_client._errors import InvalidArgument
from v1t_client._large_sets.image_sets import open_images
from v1t_client._large_sets.progress import Progress
from v1t_client._large_sets.responses_file import digest
from v1t_client._protocol.arguments import PredictRequest
from v1t_client._protocol.retry import Retry

N = 37


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (N, *SHAPE), dtype=np.uint8)


@pytest.fixture
def speeds(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 30, N)


def expected(server: ContractServer, images: np.ndarray, speeds: np.ndarray, mouse: str = "A") -> np.ndarray:
    return server.responses(images, speeds, server.neuron_ids[mouse])


def asked(server: ContractServer) -> list[int]:
    """Images of each request for a prediction that came whole."""
    return [len(seen.array().reshape(-1, *SHAPE)) for seen in server.seen if seen.path == "/predict" and seen.images]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = Retry.pause
    monkeypatch.setattr(Retry, "pause", lambda self, attempt, **more: pause(replace(self, base=0.01), attempt, **more))


def streamed(server: ContractServer, is_async: bool, *arguments: Any, **more: Any) -> list[Prediction]:
    """What `predict_stream` of either client gives."""
    if not is_async:
        with Client(transport=server.transport(), retries=0) as client:
            return list(client.predict_stream(*arguments, **more))

    async def gather() -> list[Prediction]:
        async with AsyncClient(transport=server.transport(), retries=0) as client:
            return [prediction async for prediction in client.predict_stream(*arguments, **more)]

    return asyncio.run(gather())


# Chunks


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("in_flight", [1, 3])
def test_chunks_are_answered_in_order_with_their_own_behaviour(server, images, speeds, is_async, in_flight):
    parts = streamed(server, is_async, "A", images, running_speed=speeds, chunk=10, in_flight=in_flight)
    assert [len(part) for part in parts] == [10, 10, 10, 7]
    responses = np.concatenate([part.responses for part in parts])
    np.testing.assert_array_equal(responses, expected(server, images, speeds))
    assert sorted(asked(server)) == [7, 10, 10, 10]


@pytest.mark.parametrize("kind", ["array", "mapped", "npy", "list", "iterator", "folder"])
def test_whatever_holds_the_images_the_answers_are_the_same(server, images, speeds, tmp_path, kind):
    np.save(tmp_path / "images.npy", images)
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(images):
        np.save(folder / f"{i:03}.npy", image)
    given = {
        "array": images,
        "mapped": np.load(tmp_path / "images.npy", mmap_mode="r"),
        "npy": str(tmp_path / "images.npy"),
        "list": list(images),
        "iterator": iter(images),
        "folder": folder,
    }[kind]
    with Client(transport=server.transport()) as client:
        prediction = client.predict_many("A", given, running_speed=speeds, chunk=16)
    np.testing.assert_array_equal(prediction.responses, expected(server, images, speeds))
    np.testing.assert_array_equal(prediction.neuron_ids, server.neuron_ids["A"])


def test_a_stream_goes_on_where_it_is_told_to(server, images, speeds):
    parts = streamed(server, False, "A", images, running_speed=speeds, chunk=10, first=33)
    np.testing.assert_array_equal(parts[0].responses, expected(server, images, speeds)[33:])


def test_an_iterator_is_read_no_further_than_what_is_under_way(server, client, images):
    read = 0

    def endless():
        nonlocal read
        for i in itertools.count():
            read += 1
            yield images[i % N]

    answers = client.predict_stream("A", endless(), chunk=4, in_flight=2)
    for _ in range(3):
        next(answers)
    answers.close()
    assert read <= 4 * 5


def test_large_images_make_smaller_chunks(server, client):
    image = np.zeros((5, 1, 2000, 2000), np.uint8)
    sizes = []

    class Recording(ContractServer):
        def _predict(self, seen):
            sizes.append(len(seen.array()))
            return error_reply(422, "invalid_input", "another size")

    with Client(transport=Recording().transport()) as client, pytest.raises(Exception, match="another size"):
        list(client.predict_stream("A", image))
    assert max(sizes) == 2  # 8 MB


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"running_speed": np.ones(N - 1)}, "running_speed does not fit"),
        ({"chunk": 0}, "chunk is not a count"),
        ({"in_flight": 0}, "in_flight is not a count"),
        ({"first": -1}, "first is not a count"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_sent(server, client, images, given, words):
    with pytest.raises(InvalidArgument, match=words):
        list(client.predict_stream("A", images, **given))
    assert not server.seen


def test_what_is_no_set_of_images_is_refused(client, tmp_path, images):
    np.save(tmp_path / "fortran.npy", np.asfortranarray(images))
    np.save(tmp_path / "short.npy", images)
    with (tmp_path / "short.npy").open("r+b") as stream:
        stream.truncate(500)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty").mkdir()
    for given, words in [
        ("fortran.npy", "image by image"),
        ("short.npy", "damaged"),
        ("text.npy", "not a readable .npy file"),
        ("missing.npy", "cannot be read"),
        ("empty", "has no images"),
    ]:
        with pytest.raises(InvalidArgument, match=words):
            client.predict_many("A", tmp_path / given)
    with pytest.raises(InvalidArgument, match="empty list"):
        client.predict_many("A", [])
    with pytest.raises(InvalidArgument, match="no images"):
        client.predict_many("A", iter([]))


# Patience


@pytest.mark.parametrize("is_async", [False, True])
def test_a_server_that_is_away_or_busy_is_waited_for(server, images, speeds, is_async):
    away = [httpx.ConnectError("refused")] * 4 + [httpx.ReadError("broke")] * 2
    server.script = [*away, error_reply(429, "busy", "full"), error_reply(503, "not_ready", "starting")]
    parts = streamed(server, is_async, "A", images, running_speed=speeds, chunk=20)  # with retries=0
    np.testing.assert_array_equal(np.concatenate([p.responses for p in parts]), expected(server, images, speeds))
    assert not server.script


@pytest.mark.parametrize("status", [413, 504])
def test_what_is_too_much_for_one_request_is_asked_in_halves(images, speeds, status):
    class Small(ContractServer):
        def _predict(self, seen):
            return super()._predict(seen) if len(seen.array()) <= 5 else error_reply(status, "too_large", "too much")

    server = Small()
    parts = streamed(server, False, "A", images, running_speed=speeds, chunk=20)
    assert [len(part) for part in parts] == [20, 17]
    np.testing.assert_array_equal(np.concatenate([p.responses for p in parts]), expected(server, images, speeds))
    assert sorted(asked(server))[-2:] == [17, 20]  # once each
    assert sorted(asked(server))[-3] <= 10


def test_what_is_too_much_even_alone_is_an_error(images):
    class Tiny(ContractServer):
        def _predict(self, seen):
            return error_reply(413, "too_large", "too much")

    with Client(transport=Tiny().transport()) as client, pytest.raises(TooLarge):
        client.predict_many("A", images)


def test_a_stream_gives_up_when_its_time_is_over(server, images):
    server.script = [error_reply(503, "not_ready", "starting", **{"Retry-After": "1"})] * 10
    with Client(transport=server.transport(), timeout=0.5) as client, pytest.raises(NotReady):
        client.predict_many("A", images)


@pytest.mark.parametrize("is_async", [False, True])
def test_another_bundle_in_the_middle_is_an_error(server, images, is_async):
    class Swapped(ContractServer):
        def _predict(self, seen):
            self.hash = ("ab" if len(asked(self)) < 3 else "cd") * 32
            return super()._predict(seen)

    with pytest.raises(ModelChanged, match="another bundle"):
        streamed(Swapped(), is_async, "A", images, chunk=5, in_flight=1)


async def test_leaving_a_stream_cancels_what_is_under_way(server, images):
    cancelled = []

    class Held(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            if len(server.seen) >= 2:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(request)
                    raise
            return await server.transport().handle_async_request(request)

    async with AsyncClient(transport=Held()) as client:
        stream = client.predict_stream("A", images, chunk=5, in_flight=3)
        assert len(await anext(stream)) == 5
        await asyncio.sleep(0.01)
        await stream.aclose()
        await asyncio.sleep(0.01)
    assert cancelled


def test_an_error_ends_the_stream_and_nothing_else_is_asked(server, images):
    server.script = [error_reply(422, "invalid_input", "too bright")] * 2
    with pytest.raises(Exception, match="too bright"):
        streamed(server, False, "A", images, chunk=5, in_flight=2)
    assert len(server.seen) <= 3


# Files


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_file_takes_the_responses_as_they_come(server, images, speeds, tmp_path, spread, is_async):
    output = tmp_path / "responses.npy"
    more = {"output": output, "running_speed": speeds, "spread": spread, "chunk": 10}
    if is_async:

        async def ask() -> Prediction:
            async with AsyncClient(transport=server.transport()) as client:
                return await client.predict_many("A", images, **more)

        prediction = asyncio.run(ask())
    else:
        with Client(transport=server.transport()) as client:
            prediction = client.predict_many("A", images, **more)
    right = expected(server, images, speeds)
    written = np.load(output)
    np.testing.assert_array_equal(written, np.stack([right, right / 10]) if spread else right)
    assert written.dtype == np.float32
    np.testing.assert_array_equal(prediction.responses, right)
    if spread:
        np.testing.assert_array_equal(prediction.spread, (right / 10).astype(np.float32))
    assert prediction.model.name == "demo"
    assert sorted(os.listdir(tmp_path)) == ["responses.npy", "responses.npy.json"]


def test_an_iterator_of_unknown_length_can_be_written_too(server, client, images, speeds, tmp_path):
    client.predict_many("A", iter(images), running_speed=speeds, output=tmp_path / "r.npy", chunk=10)
    np.testing.assert_array_equal(np.load(tmp_path / "r.npy"), expected(server, images, speeds))
    with pytest.raises(InvalidArgument, match="unknown number"):
        client.predict_many("A", iter(images), spread=True, output=tmp_path / "s.npy")


@pytest.mark.parametrize("spread", [False, True])
def test_after_an_interruption_the_same_call_goes_on(server, client, images, speeds, tmp_path, spread):
    np.save(tmp_path / "images.npy", images)
    output = tmp_path / "responses.npy"

    def ask() -> Prediction:
        return client.predict_many(
            "A", tmp_path / "images.npy", running_speed=speeds, spread=spread, output=output, chunk=10, in_flight=1
        )

    class Stops(ContractServer):
        def _predict(self, seen):
            if len(asked(self)) == 3:
                raise KeyboardInterrupt
            return super()._predict(seen)

    stops = Stops()
    stops.neuron_ids = server.neuron_ids
    with (
        Client(transport=stops.transport()) as first,
        pytest.raises(KeyboardInterrupt),
    ):
        first.predict_many(
            "A", tmp_path / "images.npy", running_speed=speeds, spread=spread, output=output, chunk=10, in_flight=1
        )
    assert not output.exists()
    prediction = ask()
    assert asked(server) == [10, 7]  # not the 20 that were answered
    right = expected(server, images, speeds)
    np.testing.assert_array_equal(np.load(output), np.stack([right, right / 10]) if spread else right)
    np.testing.assert_array_equal(prediction.responses, right)


def test_a_beginning_of_another_question_is_not_gone_on_with(server, client, images, tmp_path):
    output = tmp_path / "responses.npy"
    server.script = [error_reply(422, "invalid_input", "stop")]
    begun = {"output": output, "chunk": 10, "in_flight": 1}
    state = {"question": "another", "done": 10, "model": server.hash}
    (tmp_path / "responses.npy.part").write_bytes(bytes(1000))
    (tmp_path / "responses.npy.part.json").write_text(json.dumps(state))
    with pytest.raises(InvalidArgument, match="belongs to another"):
        client.predict_many("A", images, running_speed=1, **begun)
    server.script = []
    client.predict_many("A", images, running_speed=1, **begun, force=True)
    assert len(np.load(output)) == N
    with pytest.raises(InvalidArgument, match="exists already"):
        client.predict_many("A", images, running_speed=1, **begun)


def test_the_answers_of_two_models_are_never_joined_in_a_file(server, client, images, tmp_path):
    output = tmp_path / "responses.npy"
    server.script = []
    one = client.predict_stream("A", images, chunk=10, in_flight=1)
    next(one)
    one.close()

    class Stops(ContractServer):
        def _predict(self, seen):
            return super()._predict(seen) if len(asked(self)) < 2 else error_reply(422, "invalid_input", "stop")

    stops = Stops()
    stops.hash = "cd" * 32
    stops.neuron_ids = server.neuron_ids
    with Client(transport=stops.transport()) as first, pytest.raises(Exception, match="stop"):
        first.predict_many("A", images, output=output, chunk=10, in_flight=1)
    with pytest.raises(ModelChanged):
        client.predict_many("A", images, output=output, chunk=10)
    client.predict_many("A", images, output=output, chunk=10, force=True)
    assert len(np.load(output)) == N


# Progress


def test_progress_is_a_line_on_a_terminal_and_nothing_elsewhere(server, images, monkeypatch, capsys):
    with Client(transport=server.transport()) as client:
        client.predict_many("A", images, chunk=10)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr("v1t_client._large_sets.progress._EVERY", 0.0)
        client.predict_many("A", images, chunk=10, progress=True)
    shown = capsys.readouterr().err
    assert f"10 of {N} images" in shown
    assert shown.endswith("\r\x1b[K")  # and it is gone when the answer is there


def test_progress_says_how_long_the_rest_takes():
    progress = Progress(10_000, done=200, shown=False, stream=io.StringIO())
    progress.update(3200)
    assert progress.line(progress._start + 10) == "3,200 of 10,000 images, 300/s, 23 s left"
    unknown = Progress(None, shown=False, stream=io.StringIO())
    unknown.update(50)
    assert unknown.line(unknown._start + 10) == "50 images, 5/s"
    labelled = Progress(500, done=100, shown=False, stream=io.StringIO(), label="noise images", at_most=True)
    labelled.advance(100)
    labelled.advance(100)
    assert labelled.line(labelled._start + 10) == "noise images: 300 of at most 500, 20/s, at most 10 s left"


def test_progress_survives_a_terminal_that_is_closed(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("v1t_client._large_sets.progress._EVERY", 0.0)
    with Progress(10, shown=True, stream=Closed()) as progress:
        progress.update(3)
        progress.update(7)
    monkeypatch.setattr(sys, "stderr", None)  # as of a program without a console
    with Progress(10) as progress:
        progress.update(3)


# The command


@pytest.fixture
def url(server):
    with server.listening() as url:
        yield url


def test_the_command_writes_a_large_file_as_it_comes(server, url, rng, tmp_path, capsys):
    images = rng.integers(0, 256, (150, *SHAPE), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    command = ["predict", str(tmp_path / "images.npy"), "--mouse", "A", "--running-speed", "3", "--url", url]
    assert main(command) == 2
    assert "--output responses.npy" in capsys.readouterr().err
    output = tmp_path / "responses.npy"
    assert main([*command, "--output", str(output)]) == 0
    np.testing.assert_array_equal(np.load(output), expected(server, images, np.full(150, 3.0)))
    assert sorted(asked(server)) == [22, 64, 64]
    assert main([*command, "--output", str(tmp_path / "responses.csv")]) == 0
    assert len((tmp_path / "responses.csv").read_text().splitlines()) == 1 + 150 * 23


def test_the_command_takes_a_folder(server, url, images, tmp_path, capsys):
    for i, image in enumerate(images[:3]):
        PillowImage.fromarray(image[0]).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert main(["predict", str(tmp_path), "--mouse", "A", "--url", url]) == 0
    assert "3 images x 23 neurons" in capsys.readouterr().out
    assert [len(seen.images) for seen in server.seen if seen.path == "/predict"] == [3]


def test_a_command_whose_server_fails_keeps_what_was_answered(server, url, rng, tmp_path, capsys):
    images = rng.integers(0, 256, (200, *SHAPE), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    output = tmp_path / "responses.npy"
    command = ["predict", str(tmp_path / "images.npy"), "--mouse", "A", "--running-speed", "3", "--url", url]
    command += ["--output", str(output)]
    answer, refusal = server._predict, error_reply(422, "invalid_input", "too bright")
    server._predict = lambda seen: answer(seen) if len(asked(server)) < 3 else refusal
    assert main(command) == 1
    errors = capsys.readouterr().err
    assert "too bright" in errors
    assert "run the same command again" in errors
    del server._predict
    assert main(command) == 0
    np.testing.assert_array_equal(np.load(output), expected(server, images, np.full(200, 3.0)))


@pytest.mark.slow
def test_an_interrupted_command_keeps_what_was_answered(rng, tmp_path):
    class Slow(ContractServer):
        def _predict(self, seen):
            time.sleep(0.3)
            return super()._predict(seen)

    server = Slow()
    images = rng.integers(0, 256, (64 * 8, *SHAPE), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    output = tmp_path / "responses.npy"
    with server.listening() as url:
        command = [sys.executable, "-m", "v1t_client", "predict", str(tmp_path / "images.npy"), "--mouse", "A"]
        command += ["--running-speed", "3", "--url", url, "--output", str(output)]
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
        )
        state = tmp_path / "responses.npy.part.json"
        deadline = time.monotonic() + 30
        while not state.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 130
        assert "run the same command again" in errors
        done = json.loads(state.read_text())["done"]
        assert 0 < done < len(images)
        before = len(asked(server))
        subprocess.run(command, check=True, timeout=60)
        assert len(asked(server)) - before <= (len(images) - done) // 64
    np.testing.assert_array_equal(np.load(output), expected(server, images, np.full(len(images), 3.0)))


# A real server


@pytest.mark.slow
def test_a_stream_outlives_the_death_of_the_server_s_worker(rng, tmp_path):
    twin = write_tiny_bundle(tmp_path / "tiny")
    image, behavior, pupil_center = twin.draw("A", rng, 1000)
    with live_server.serving(twin.folder, tmp_path, OMP_NUM_THREADS="1") as server:
        server.wait_for("/readyz", 200)
        killed = threading.Event()

        def kill_workers() -> None:
            time.sleep(0.5)
            for child in psutil.Process(server.process.pid).children(recursive=True):
                if "worker" in " ".join(child.cmdline()):
                    child.kill()
                    killed.set()

        with Client(server.url) as client:
            killer = threading.Thread(target=kill_workers)
            killer.start()
            prediction = client.predict_many(
                "A",
                image,
                pupil_dilation=behavior[:, 0],
                pupil_dilation_derivative=behavior[:, 1],
                running_speed=behavior[:, 2],
                pupil_center=pupil_center,
                chunk=8,
            )
            killer.join()
        assert killed.is_set()
    np.testing.assert_allclose(prediction.responses, twin.answer("A", image, behavior, pupil_center), atol=1e-4)


def test_a_file_is_resumed_only_with_the_same_values_of_every_channel(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((3000, *SHAPE), np.uint8))
    images = open_images(tmp_path / "images.npy")
    whisking = np.linspace(0, 1, 3000)

    def identity(**behavior):
        return digest(PredictRequest(mouse="A", image=None, behavior=behavior), images)

    same = identity(whisking=whisking, licks=2)
    assert identity(licks=2, whisking=whisking.copy()) == same
    changed = whisking.copy()
    changed[1500] += 1e-9  # numpy would leave it out of a long array's text
    assert identity(whisking=changed, licks=2) != same
    assert identity(whisking=whisking) != same
