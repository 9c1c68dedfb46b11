"""The service over HTTP, in this process: answers, refusals, and the headers of every reply."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from support.checkout import ROOT
from support.in_process import cpu_settings, serving
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.api.codecs import schemas
from server.bundle.manifest import Crop
from server.inference.engine import Engine
from server.settings import Settings, SettingsError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
async def client(twin: TinyTwin) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(Settings(bundles=(twin.folder,), provider="cpu", threads=1)) as client:
        yield client


def question(mouse_id: str, arrays: tuple[np.ndarray, np.ndarray, np.ndarray], **more: Any) -> dict[str, Any]:
    image, behavior, pupil_center = arrays
    return {
        "mouse": mouse_id,
        "image": image.tolist(),
        "pupil_dilation": behavior[:, 0].tolist(),
        "pupil_dilation_derivative": behavior[:, 1].tolist(),
        "running_speed": behavior[:, 2].tolist(),
        "pupil_center": pupil_center.tolist(),
        **more,
    }


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error body, after checks that hold for every error."""
    assert response.status_code == status, response.text
    reply = response.json()
    schemas.ErrorReply.model_validate(reply)
    assert reply["request_id"] == response.headers["x-request-id"]
    assert reply["error"]["code"] == code
    return reply["error"]  # type: ignore[no-any-return]


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# Answers


@pytest.mark.parametrize("mouse_id", ["A", "B"])
async def test_json_gives_what_numpy_computes(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator, mouse_id: str
) -> None:
    arrays = twin.draw(mouse_id, rng, 11)  # more than one run
    response = await client.post("/predict", json=question(mouse_id, arrays, spread=True))
    assert response.status_code == 200, response.text
    reply = response.json()
    schemas.PredictReply.model_validate(reply)
    members = twin.member_responses(mouse_id, *arrays)
    np.testing.assert_allclose(reply["responses"], members.mean(0), atol=1e-5)
    np.testing.assert_allclose(reply["spread"], members.std(0), atol=1e-5)
    assert reply["neuron_ids"] == twin.mice[mouse_id].neurons.ids.tolist()
    assert reply["model"]["hash"] == twin.manifest.hash
    assert reply["model"]["notice"] == "Random weights: for tests only."
    assert reply["request_id"] == response.headers["x-request-id"]


async def test_npy_reply_holds_the_same_numbers_and_its_header_the_other_fields(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    arrays = twin.draw("A", rng, 3)
    ids = twin.mice["A"].neurons.ids[[5, 1]].tolist()
    asked = question("A", arrays, spread=True, neuron_ids=ids, units="raw")
    asked.pop("running_speed")
    in_json = (await client.post("/predict", json=asked)).json()
    response = await client.post("/predict", json=asked, headers={"Accept": "application/x-npy"})
    assert response.headers["content-type"] == "application/x-npy"
    array = np.load(io.BytesIO(response.content))
    assert array.dtype == np.float32
    assert array.shape == (2, 3, 2)
    np.testing.assert_array_equal(array, np.array([in_json["responses"], in_json["spread"]], np.float32))
    head = json.loads(response.headers["v1t-reply"])
    for reply in (head, in_json):
        reply.pop("request_id")
    in_body = ("responses", "spread", "neuron_ids")  # not in the header: the client knows which neurons it asked for
    assert head == {name: value for name, value in in_json.items() if name not in in_body}
    assert in_json["neuron_ids"] == ids
    arrays[1][:, 2] = 3.0  # the training mean that was assumed
    expected = twin.answer("A", *arrays)[:, [5, 1]] * twin.mice["A"].neurons.response_std[[5, 1]]
    np.testing.assert_allclose(array[0], expected, rtol=1e-4, atol=1e-5)
    # All neurons, without spread: the array has no spread axis.
    asked = question("A", arrays)
    response = await client.post("/predict", json=asked, headers={"Accept": "application/x-npy"})
    assert np.load(io.BytesIO(response.content)).shape == (3, 7)


async def test_a_form_with_a_picture_gives_what_numpy_computes(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    pixels = rng.integers(0, 256, (8, 12), dtype=np.uint8)
    response = await client.post(
        "/predict",
        data={"mouse": "A", "pupil_dilation": "41", "pupil_center": "[240, 170]", "running_speed": "3.5"},
        files={"image": ("frame.png", png(pixels), "image/png")},
    )
    assert response.status_code == 200, response.text
    expected = twin.answer("A", pixels[None, None], np.array([[41, 0.5, 3.5]]), np.array([[240, 170]]))
    np.testing.assert_allclose(response.json()["responses"], expected, atol=1e-5)
    assert len(response.json()["assumed"]) == 1


async def test_base64_and_npy_files_give_the_same_as_numbers(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    arrays = twin.draw("B", rng, 2)
    stream = io.BytesIO()
    np.save(stream, arrays[0])
    asked = question("B", arrays)
    expected = (await client.post("/predict", json=asked)).json()["responses"]
    in_base64 = {**asked, "image": {"base64": base64.b64encode(stream.getvalue()).decode()}}
    assert (await client.post("/predict", json=in_base64)).json()["responses"] == expected
    form = {name: value if name == "mouse" else json.dumps(value) for name, value in asked.items() if name != "image"}
    response = await client.post("/predict", data=form, files={"image": ("images.npy", stream.getvalue())})
    assert response.json()["responses"] == expected


async def test_concurrent_mixed_requests_each_get_their_own_answer(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    asked = [("AB"[i % 2], twin.draw("AB"[i % 2], rng, int(rng.integers(1, 12)))) for i in range(60)]
    responses = await asyncio.gather(
        *(client.post("/predict", json=question(mouse_id, arrays)) for mouse_id, arrays in asked)
    )
    for (mouse_id, arrays), response in zip(asked, responses, strict=True):
        assert response.json()["mouse"] == mouse_id
        np.testing.assert_allclose(response.json()["responses"], twin.answer(mouse_id, *arrays), atol=1e-5)


async def test_mice_and_their_details_are_listed(client: httpx.AsyncClient, twin: TinyTwin) -> None:
    reply = (await client.get("/mice")).json()
    schemas.MiceReply.model_validate(reply)
    assert [mouse["mouse"] for mouse in reply["mice"]] == ["A", "B"]
    assert reply["mice"][1]["uses"] == ["image", "behavior"]
    detail = (await client.get("/mice/A?model=tiny")).json()
    schemas.MouseDetail.model_validate(detail)
    assert detail["behavior"][2]["name"] == "running_speed"
    assert detail["behavior"][2]["mean"] == 3.0
    assert detail["model"]["name"] == "tiny"
    assert detail["image_shape"] == [1, 8, 12]
    assert detail["distilled"] is None


async def test_neurons_are_selected_by_position_and_score(client: httpx.AsyncClient, twin: TinyTwin) -> None:
    table = twin.mice["A"].neurons
    score = table.scores["single_trial_correlation"]
    reply = (await client.get("/mice/A/neurons", params={"x_min": 100, "x_max": 290, "score_min": 0.2})).json()
    schemas.NeuronsReply.model_validate(reply)
    matches = (table.coordinates[:, 0] >= 100) & (table.coordinates[:, 0] <= 290) & (score >= 0.2)
    assert 0 < matches.sum() < len(table)
    assert reply["neuron_ids"] == table.ids[matches].tolist()
    assert reply["total"] == matches.sum()
    np.testing.assert_allclose(reply["coordinates_um"], table.coordinates[matches], rtol=1e-6)
    np.testing.assert_allclose(reply["readout_position_px"], table.readout_position[matches], rtol=1e-6)
    np.testing.assert_allclose(reply["response_std"], table.response_std[matches], rtol=1e-6)
    np.testing.assert_allclose(reply["scores"]["single_trial_correlation"], score[matches], rtol=1e-6)
    page = (await client.get("/mice/A/neurons", params={"limit": 3, "offset": 2})).json()
    assert page["total"] == 7
    assert page["neuron_ids"] == table.ids[2:5].tolist()
    unknown = (await client.get("/mice/B/neurons")).json()
    assert unknown["coordinates_um"] == unknown["response_std"] == [None] * 5
    assert unknown["readout_position_px"] is None


async def test_metrics_count_batches_and_bound_their_labels(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    arrays = twin.draw("A", rng, 3)
    await client.post("/predict", json=question("A", arrays))
    for i in range(20):
        await client.get(f"/wp-admin/{i}.php")
        await client.get(f"/mice/nobody-{i}")
        await client.post("/predict", json=question(f"nobody-{i}", arrays))
    got = samples((await client.get("/metrics")).text)
    assert got["v1t_batch_images_sum", frozenset()] == 3
    assert got["v1t_batch_images_count", frozenset()] == 1
    stages = {dict(labels)["stage"]: value for (name, labels), value in got.items() if name == "v1t_stage_seconds_sum"}
    assert stages.keys() == {"stem", "core", "readout", "ensemble"}
    assert min(stages.values()) > 0
    assert sum(stages.values()) <= got["v1t_compute_seconds_sum", frozenset()]
    assert got["v1t_ready", frozenset()] == 1
    requests = {dict(labels)["mouse"] for name, labels in got if name == "v1t_requests_total"}
    assert requests == {"", "A", "unknown"}
    routes = {dict(labels)["route"] for name, labels in got if name == "v1t_requests_total"}
    assert routes == {"/predict", "/mice/{mouse}", "/readyz", "other"}
    lost = {"route": "other", "mouse": "", "status": "404"}
    assert got["v1t_requests_total", frozenset(lost.items())] == 20


# Headers of every reply


async def test_every_reply_carries_an_id_and_security_headers(client: httpx.AsyncClient) -> None:
    for path in ("/", "/mice", "/livez", "/readyz", "/metrics", "/docs.json", "/nowhere", "/static_content/x.js"):
        response = await client.get(path)
        assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"]), path
        assert response.headers["x-content-type-options"] == "nosniff", path
        assert response.headers["x-frame-options"] == "DENY", path
        assert response.headers["referrer-policy"] == "no-referrer", path
        assert response.headers["cache-control"] == ("no-cache" if path == "/" else "no-store"), path
        assert response.headers["content-security-policy"].startswith("default-src 'none'"), path
        assert "server" not in response.headers, path
        echoed = await client.get(path, headers={"X-Request-Id": "trial-7.a_B"})
        assert echoed.headers["x-request-id"] == "trial-7.a_B", path
    for strange in ("a b", "x" * 129, "é", "a\tb", ""):
        response = await client.get("/mice", headers={"X-Request-Id": strange.encode()})
        assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


# Refusals


async def test_unknown_routes_and_methods_use_the_error_body(client: httpx.AsyncClient) -> None:
    error_of(await client.get("/nowhere"), 404, "not_found")
    error_of(await client.get("/mice/"), 404, "not_found")
    error_of(await client.get("/assets/index.js"), 404, "not_found")
    response = await client.get("/predict")
    assert error_of(response, 405, "method_not_allowed")["expected"] == "POST"
    assert response.headers["allow"] == "POST"
    error_of(await client.delete("/mice/A"), 405, "method_not_allowed")


async def test_unknown_names_are_not_found(client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator) -> None:
    arrays = twin.draw("A", rng)
    assert error_of(await client.post("/predict", json=question("Z", arrays)), 404, "not_found")["expected"] == "A or B"
    asked = question("A", arrays, model="nothing")
    assert error_of(await client.post("/predict", json=asked), 404, "not_found")["expected"] == "tiny"
    error_of(await client.post("/predict", json=question("A", arrays, neuron_ids=[5])), 404, "not_found")
    error_of(await client.get("/mice/Z"), 404, "not_found")
    error_of(await client.get("/mice/Z/neurons"), 404, "not_found")
    error_of(await client.get("/mice/%00%ff%22"), 404, "not_found")


@pytest.mark.parametrize(
    "query",
    [
        "x_min=left",
        "x_min=nan",
        "limit=-1",
        "limit=1.5",
        "offset=x",
        "score=luck",
        "score_min=inf",
        "x_min=1&x_min=2",
        "q=1",
    ],
)
async def test_bad_queries_are_refused(client: httpx.AsyncClient, query: str) -> None:
    error_of(await client.get(f"/mice/A/neurons?{query}"), 422, "invalid_input")


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        ({"Content-Type": "application/json"}, b"{", 400, "malformed_body"),
        ({"Content-Type": "application/json"}, b"", 400, "malformed_body"),
        ({"Content-Type": "application/json"}, b"[" * 90_000, 400, "malformed_body"),
        ({"Content-Type": "application/json"}, b"[]", 422, "invalid_input"),
        ({"Content-Type": "application/json"}, b'{"mouse": "A"}', 422, "invalid_input"),
        ({"Content-Type": "application/json"}, b'{"mouse": "A", "image": [[NaN]]}', 400, "malformed_body"),
        ({"Content-Type": "application/json"}, b'{"mouse": "A", "mouse": "B"}', 422, "invalid_input"),
        ({}, b"{}", 415, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"mouse=A", 415, "unsupported_media_type"),
        ({"Content-Type": "application/vnd.bentoml+pickle"}, b"cos\nsystem", 415, "unsupported_media_type"),
        ({"Content-Type": "application/json", "Content-Encoding": "br"}, b"{}", 415, "unsupported_media_type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"{}", 400, "malformed_body"),
        ({"Content-Type": "application/json", "Accept": "text/html"}, b"{}", 406, "not_acceptable"),
        ({"Content-Type": "application/json", "Accept": "application/json;q=0"}, b"{}", 406, "not_acceptable"),
        ({"Content-Type": "multipart/form-data"}, b"", 400, "malformed_body"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"garbage", 400, "malformed_body"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x\r\n\r\n\r\n--x--\r\n", 400, "malformed_body"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x--\r\n", 422, "invalid_input"),
    ],
)
async def test_bad_bodies_are_refused(
    client: httpx.AsyncClient, headers: dict[str, str], content: bytes, status: int, code: str
) -> None:
    error_of(await client.post("/predict", content=content, headers=headers), status, code)


@pytest.mark.parametrize(
    ("route", "key"),
    [
        ("/predict", "mouse"),
        ("/gradient", "mouse"),
        ("/attention", "mouse"),
        ("/receptive_fields", "seed"),
        ("/v2/models/tiny.A/infer", "id"),
    ],
)
async def test_a_key_that_occurs_twice_is_refused_on_every_route(
    client: httpx.AsyncClient, route: str, key: str
) -> None:
    content, headers = f'{{"{key}": "A", "{key}": "B"}}', {"Content-Type": "application/json"}
    reply = await client.post(route, content=content, headers=headers)
    assert reply.status_code == 422
    assert "has a key twice in one object" in reply.text
    assert f"'{key}' again at line 1" in reply.text


async def test_another_size_is_refused_with_a_hint(client: httpx.AsyncClient) -> None:
    asked: dict[str, Any] = {"mouse": "A", "image": np.zeros((16, 24)).tolist()}
    error = error_of(await client.post("/predict", json=asked), 422, "invalid_input")
    assert error["got"] == "(1, 16, 24)"
    assert error["expected"] == "(1, 8, 12)"
    assert "resize=fit" in error["hint"]
    assert (await client.post("/predict", json={**asked, "resize": "fit"})).status_code == 200


async def test_a_response_that_is_not_finite_is_an_error_and_not_null(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    image, behavior, pupil_center = twin.draw("A", rng)
    asked = question("A", (image, np.full_like(behavior, 3e38), pupil_center), spread=True)
    error = error_of(await client.post("/predict", json=asked), 422, "invalid_input")
    assert "no finite response" in error["message"]


async def test_large_bodies_are_refused_with_and_without_a_content_length(twin: TinyTwin) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            sent.append(1)
            yield b" " * 1000

    sent: list[int] = []
    settings = Settings(bundles=(twin.folder,), provider="cpu", max_body=10_000)
    async with serving(settings) as client:
        for content in (b" " * 10_001, chunks()):
            response = await client.post("/predict", content=content, headers={"Content-Type": "application/json"})
            error_of(response, 413, "too_large")
        assert len(sent) < 15
        response = await client.post("/predict", files={"image": b" " * 10_001}, data={"mouse": "A"})
        error_of(response, 413, "too_large")
        many = [("image", (f"{i}.png", b"x")) for i in range(40)]
        response = await client.post("/predict", files=many, data={"mouse": "A"})
        error_of(response, 422, "invalid_input")
    async with serving(Settings(bundles=(twin.folder,), provider="cpu", max_images=5)) as client:
        for count in (6, 40):
            many = [("image", (f"{i}.png", b"x")) for i in range(count)]
            error_of(await client.post("/predict", files=many, data={"mouse": "A"}), 413, "too_large")


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Blocks all engines until it is set."""
    gate = threading.Event()
    run: Callable[..., Any] = Engine.predict_many

    def held(self: Engine, stimuli: Any) -> Any:
        assert gate.wait(30)
        return run(self, stimuli)

    monkeypatch.setattr(Engine, "predict_many", held)
    monkeypatch.setattr(Engine, "warm_up", lambda self: None)
    return gate


async def test_a_full_queue_answers_429_with_a_time_to_retry(
    twin: TinyTwin, rng: np.random.Generator, hold: threading.Event
) -> None:
    settings = Settings(bundles=(twin.folder,), provider="cpu", max_queue=4, max_images=4)
    async with serving(settings) as client:
        asked = question("A", twin.draw("A", rng, 2))
        tasks = [asyncio.create_task(client.post("/predict", json=asked)) for _ in range(6)]
        await asyncio.sleep(0.3)
        hold.set()
        responses = await asyncio.gather(*tasks)
    refused = [response for response in responses if response.status_code != 200]
    assert 1 <= len(refused) <= 4
    for response in refused:
        error_of(response, 429, "busy")
        assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["/mice/A%0A", "/%0a", "/v2/models/a%0Ab/versions/1%0A2/ready"])
async def test_a_path_with_a_line_break_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 404
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"


async def test_a_busy_server_discards_the_body_before_it_refuses(
    twin: TinyTwin, rng: np.random.Generator, hold: threading.Event
) -> None:
    sent: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        for i in range(5):
            sent.append(i)
            yield b"{" * 1000  # not JSON: decoding it would be a 400

    async with serving(Settings(bundles=(twin.folder,), provider="cpu", max_queue=4, max_images=4)) as client:
        asked = question("A", twin.draw("A", rng, 2))
        tasks = []
        for _ in range(3):
            tasks.append(asyncio.create_task(client.post("/predict", json=asked)))
            await asyncio.sleep(0.1)  # the first runs, the others wait
        response = await client.post("/predict", content=chunks(), headers={"Content-Type": "application/json"})
        error_of(response, 429, "busy")
        assert sent == [0, 1, 2, 3, 4]  # closing earlier resets the connection, and the reply may be lost
        hold.set()
        assert [task.status_code for task in await asyncio.gather(*tasks)] == [200, 200, 200]


async def test_a_body_that_does_not_arrive_by_the_deadline_is_the_client_s_fault(twin: TinyTwin) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    async with serving(Settings(bundles=(twin.folder,), provider="cpu")) as client:
        headers = {"Content-Type": "application/json", "X-Request-Timeout": "0.2"}
        error_of(await client.post("/predict", content=chunks(), headers=headers), 408, "request_timeout")


async def test_a_request_past_its_deadline_is_refused_and_leaves_the_queue(
    twin: TinyTwin, rng: np.random.Generator, hold: threading.Event
) -> None:
    async with serving(Settings(bundles=(twin.folder,), provider="cpu", timeout=0.3, max_batch=1)) as client:
        asked = question("A", twin.draw("A", rng))
        responses = await asyncio.gather(*(client.post("/predict", json=asked) for _ in range(3)))
        computed, *waiting = sorted(responses, key=lambda response: -response.status_code)
        error_of(computed, 504, "deadline_exceeded")
        assert computed.headers["retry-after"] == "1"
        for response in waiting:  # because of the first request: these were not late themselves
            error_of(response, 503, "overloaded")
        hold.set()
        assert (await client.post("/predict", json=asked)).status_code == 200
        got = samples((await client.get("/metrics")).text)
        assert got["v1t_queue_images", frozenset()] == 0
        assert got["v1t_batch_images_sum", frozenset()] == 2  # the one that ran already, and the last


async def test_a_request_may_ask_for_less_time(twin: TinyTwin, rng: np.random.Generator, hold: threading.Event) -> None:
    async with serving(Settings(bundles=(twin.folder,), provider="cpu", max_batch=1)) as client:
        asked = question("A", twin.draw("A", rng))
        slow = asyncio.create_task(client.post("/predict", json=asked))
        await asyncio.sleep(0.05)
        response = await client.post("/predict", json=asked, headers={"X-Request-Timeout": "0.1"})
        assert error_of(response, 503, "overloaded")["expected"] == "at most 0.1 s"
        for wrong in ("soon", "0", "-1", "nan", "inf", ""):
            response = await client.post("/predict", json=asked, headers={"X-Request-Timeout": wrong})
            assert "X-Request-Timeout" in error_of(response, 422, "invalid_input")["message"]
        hold.set()
        assert (await slow).status_code == 200
        assert (await client.get("/mice", headers={"X-Request-Timeout": "1e9"})).status_code == 200
        got = samples((await client.get("/metrics")).text)
        assert got["v1t_batch_images_sum", frozenset()] == 1


async def test_concurrent_requests_of_one_caller_are_limited(
    twin: TinyTwin, rng: np.random.Generator, hold: threading.Event
) -> None:
    keys = {name: f"{name}-0123456789abcdef" for name in "ab"}
    settings = Settings(bundles=(twin.folder,), provider="cpu", max_concurrent=2, api_keys=tuple(keys.values()))
    async with serving(settings, until_loaded=False) as client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
        asked = question("A", twin.draw("A", rng))

        async def ask(name: str) -> httpx.Response:
            return await client.post("/predict", json=asked, headers={"Authorization": f"Bearer {keys[name]}"})

        tasks = [asyncio.create_task(ask(name)) for name in "aaabb"]
        await asyncio.sleep(0.1)
        assert (await client.get("/livez")).status_code == 200
        hold.set()
        responses = await asyncio.gather(*tasks)
        assert [response.status_code for response in responses] == [200, 200, 429, 200, 200]
        assert error_of(responses[2], 429, "busy")["expected"] == "at most 2"
        assert responses[2].headers["retry-after"] == "1"
        assert (await ask("a")).status_code == 200


async def test_a_request_whose_client_disconnects_is_not_computed(
    twin: TinyTwin, rng: np.random.Generator, hold: threading.Event
) -> None:
    settings = Settings(bundles=(twin.folder,), provider="cpu", max_batch=1)
    body = json.dumps(question("A", twin.draw("A", rng))).encode()

    async def hang_up(app: Any) -> int:
        messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
        sent: list[Any] = []

        async def receive() -> Any:
            if len(messages) == 1:
                await asyncio.sleep(0.05)
            return messages.pop(0) if len(messages) > 1 else messages[0]

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}
        await app({**scope, "http_version": "1.1", "scheme": "http", "server": ("twin", 80)}, receive, send)
        return int(sent[0]["status"])

    async with serving(settings) as client:
        transport = client._transport
        assert isinstance(transport, httpx.ASGITransport)
        assert await asyncio.gather(*(hang_up(transport.app) for _ in range(4))) == [499] * 4
        hold.set()
        assert (await client.post("/predict", content=body, headers={"Content-Type": "application/json"})).is_success
        got = samples((await client.get("/metrics")).text)
        assert got["v1t_batch_images_sum", frozenset()] == 2  # the first had begun; the last was answered
        gone = {"route": "/predict", "mouse": "A", "status": "499"}
        assert got["v1t_requests_total", frozenset(gone.items())] == 4


async def test_an_error_of_the_engine_is_answered_500_without_details(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(self: Engine, stimuli: Any) -> Any:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(Engine, "predict_many", explode)
    response = await client.post("/predict", json=question("A", twin.draw("A", rng)))
    error_of(response, 500, "error")
    assert "secret" not in response.text
    monkeypatch.undo()
    assert (await client.post("/predict", json=question("A", twin.draw("A", rng)))).status_code == 200


# Readiness


async def test_the_server_is_alive_but_not_ready_until_bundles_are_loaded(
    twin: TinyTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(Engine, "warm_up", lambda self: gate.wait(30))
    async with serving(Settings(bundles=(twin.folder,), provider="cpu"), until_loaded=False) as client:
        assert (await client.get("/livez")).status_code == 200
        for response in [
            await client.get("/readyz"),
            await client.get("/mice"),
            await client.get("/mice/A"),
            await client.post("/predict", json={}),
        ]:
            error_of(response, 503, "not_ready")
            assert response.headers["retry-after"] == "1"
        assert (await client.get("/")).status_code == 200  # the explorer, which shows why
        gate.set()
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
        assert (await client.get("/mice")).status_code == 200


async def test_a_bad_bundle_keeps_the_service_unready_and_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    good = write_tiny_bundle(tmp_path / "good", name="good")
    holed = write_tiny_bundle(tmp_path / "holed", name="holed", mice=("C",))
    (holed.folder / holed.manifest.cores[0].path).unlink()
    async with serving(Settings(bundles=(tmp_path,), provider="cpu")) as client:
        for response in [
            await client.get("/readyz"),
            await client.post("/predict", json=question("A", good.draw("A", rng))),
        ]:
            hint = error_of(response, 503, "not_ready")["hint"]
            assert "holed" in hint
            assert holed.manifest.cores[0].path in hint


# Settings and imports


def test_settings_are_read_from_the_environment() -> None:
    settings = Settings.from_environment({"V1T_BUNDLES": "one:two", "V1T_MAX_BATCH": "16", "V1T_THREADS": ""})
    assert settings.bundles == (Path("one"), Path("two"))
    assert settings.max_batch == 16
    assert settings.threads is None
    assert "V1T_MAX_BATCH=16" in settings.describe()


def test_wrong_settings_are_named_with_their_values() -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment({"V1T_MAX_BATCH": "many", "V1T_PROVIDER": "tpu", "V1T_TIMEOUT": "-1"})
    text = str(refused.value)
    for words in ("V1T_MAX_BATCH is 'many'", "V1T_PROVIDER is 'tpu'", "V1T_TIMEOUT is '-1'"):
        assert words in text
    with pytest.raises(SettingsError, match="V1T_MAX_IMAGES is 10, more than V1T_MAX_QUEUE"):
        Settings.from_environment({"V1T_MAX_IMAGES": "10", "V1T_MAX_QUEUE": "5"})


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("V1T_MAXBATCH", "V1T_MAX_BATCH"),
        ("V1T_BUNDLE", "V1T_BUNDLES"),
        ("V1T_ADMIN_KEY", "V1T_ADMIN_KEYS"),
        ("V1T_TIMOUT", "V1T_TIMEOUT"),
        ("v1t_api_keys", "V1T_API_KEYS"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_name_of_the_setting(variable: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable} is not a setting; did you mean {meant}\\?$"):
        Settings.from_environment({variable: "1", "V1T_MAX_BATCH": "1"})


def test_variables_of_other_programs_are_allowed_and_strange_ones_are_listed() -> None:
    # The programs of this project, and what Kubernetes sets in a pod beside a Service called v1t.
    ours = dict.fromkeys(("V1T_URL", "V1T_API_KEY", "V1T_CACHE", "V1T_HOME"), "x")
    strange = dict.fromkeys(("V1T_PORT", "V1T_PORT_80_TCP_ADDR", "V1T_SERVICE_HOST", "V1T_SERVICE_PORT"), "x")
    assert Settings.from_environment({**ours, **strange}) == Settings()
    assert Settings.unknown({**ours, **strange}, resembling=False) == dict.fromkeys(strange, "")
    read = {
        name
        for folder in ("clients", "training")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"\bV1T_[A-Z_]+\b", path.read_text())
    }
    assert Settings.unknown(dict.fromkeys(read, "x"), resembling=True) == {}


def test_the_bento_installs_what_the_requirements_say() -> None:
    lines = [
        line
        for name in ("requirements.txt", "requirements-cpu.txt")
        for line in (ROOT / "server" / name).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"] == lines


def test_importing_the_service_loads_no_torch_and_nothing_else_that_is_slow() -> None:
    code = (
        "import sys, server.service, server.inference.engine; "
        "print([name for name in ('torch', 'pandas', 'scipy', 'matplotlib', 'onnx') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


async def test_no_path_in_a_request_is_ever_opened(client: httpx.AsyncClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret-of-the-lab.npy"
    np.save(secret, np.zeros((8, 12)))
    opened: list[str] = []
    watching = True

    def audit(event: str, arguments: tuple[Any, ...]) -> None:  # a hook cannot be removed
        if watching and event in ("open", "os.listdir", "os.scandir", "socket.getaddrinfo", "socket.connect"):
            opened.append(str(arguments))

    sys.addaudithook(audit)
    try:
        for path in (str(secret), f"file://{secret}", "http://secret-of-the-lab.invalid/x.npy", f"../..{secret}"):
            for asked in (
                {"mouse": "A", "image": path},
                {"mouse": "A", "image": {"base64": base64.b64encode(path.encode()).decode()}},
                {"mouse": "A", "image": {"path": path}},
                {"mouse": path, "image": [[0]]},
                {"mouse": "A", "image": [[0]], "model": path},
                {"mouse": "A", "image": [[0]], "pupil_dilation": path},
            ):
                assert 400 <= (await client.post("/predict", json=asked)).status_code < 500
            form = {"mouse": "A"}
            assert (await client.post("/predict", data={**form, "image": path})).status_code in (400, 415, 422)
            files = {"image": (path, b"no image", "image/png")}
            assert (await client.post("/predict", data=form, files=files)).status_code == 422
            for url in ("/mice/{}", "/mice/A?model={}", "/mice/A/neurons?score={}", "/v2/models/{}", "/{}"):
                assert (await client.get(url.format(path))).status_code in (404, 422)
    finally:
        watching = False
    assert not [one for one in opened if "secret-of-the-lab" in one]


async def test_a_mouse_says_what_part_of_the_image_its_core_sees(tmp_path: Path) -> None:
    for crop in (1.0, 0.8):
        twin = write_tiny_bundle(tmp_path / str(crop), crop=crop)
        async with serving(Settings(bundles=(twin.folder,))) as client:
            assert (await client.get("/mice/A")).json()["crop"] == {"fraction": crop, "follows_gaze": False}


def test_the_crop_of_members_that_differ_is_not_known(twin: TinyTwin) -> None:
    shifted = {"cropper": {"crop": 0.8, "shifter": "pupil_center"}}
    plain = {"cropper": {"crop": 0.8, "shifter": "none"}}
    for configs, expected in (
        ([shifted] * 2, Crop(fraction=0.8, follows_gaze=True)),
        ([shifted, plain], None),
        ([plain, {}], None),
        ([{"cropper": 3}] * 2, None),
        ([{"cropper": {"crop": 7, "shifter": "none"}}] * 2, None),
    ):
        assert twin.manifest.model_copy(update={"configs": configs}).crop == expected


async def test_a_bulk_request_is_answered_after_interactive_ones(
    twin: TinyTwin, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, inside = threading.Event(), threading.Event()
    order: list[int] = []
    compute = Engine.predict_many

    def recorded(self: Engine, stimuli: Any) -> Any:
        inside.set()
        assert go_on.wait(30)
        order.append(sum(len(one.image) for one in stimuli))
        return compute(self, stimuli)

    async with serving(cpu_settings(twin.folder, max_batch=8)) as client:
        monkeypatch.setattr(Engine, "predict_many", recorded)

        def ask(n_images: int, route: str = "/predict", **headers: str) -> asyncio.Task[httpx.Response]:
            image = twin.draw("A", rng, n_images)[0]
            body: dict[str, Any] = {"mouse": "A", "image": image.tolist()}
            if route != "/predict":
                tensor = {"name": "image", "datatype": "FP32", "shape": image.shape, "data": image.ravel().tolist()}
                body = {"inputs": [tensor], "parameters": {"priority": 2}}
            return asyncio.create_task(client.post(route, json=body, headers=headers))

        asked = [ask(1)]
        await asyncio.to_thread(inside.wait, 30)
        asked += [ask(2, **{"V1T-Priority": "bulk"}), ask(3, "/v2/models/tiny.A/infer"), ask(4), ask(4)]
        while "v1t_queue_images 13.0" not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.005)
        go_on.set()
        assert [response.status_code for response in await asyncio.gather(*asked)] == [200] * 5
        refused = await ask(1, **{"V1T-Priority": "soon"})
    assert order[:2] == [1, 8]
    assert sum(order[2:]) == 5
    assert refused.status_code == 422
    assert refused.json()["error"]["expected"] == "interactive or bulk"
