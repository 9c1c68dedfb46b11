"""POST /gradient and POST /attention: replies are those of the engine, and bad requests are refused."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.in_process import cpu_settings, serving
from support.live_server import ROOT
from support.tiny_bundle import write_tiny_bundle

from server.api.codecs import schemas
from server.inference.engine import Engine

DEMO = ROOT / "exported_models" / "demo"  # exporting a twin with gradients takes a minute
MOUSE = "SIM1"
NPY = {"Accept": "application/x-npy"}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(DEMO, provider="cpu", threads=1)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(cpu_settings(DEMO, max_batch=4)) as client:
        yield client


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def draw(engine: Engine, rng: np.random.Generator, B: int) -> list[np.ndarray]:
    """Image, behaviour and pupil centre near the training means of the mouse."""
    mouse = engine.manifest.mice[MOUSE]
    image = rng.uniform(0, 255, (B, *mouse.image_shape))
    means = [np.array([channel.mean for channel in channels]) for channels in (mouse.behavior, mouse.pupil_center)]
    return [
        array.astype(np.float32) for array in (image, *(mean * rng.uniform(0.9, 1.1, (B, len(mean))) for mean in means))
    ]


def question(arrays: list[np.ndarray], **more: Any) -> dict[str, Any]:
    image, behavior, pupil_center = arrays
    return {
        "mouse": MOUSE,
        "image": image.tolist(),
        "pupil_dilation": behavior[:, 0].tolist(),
        "pupil_dilation_derivative": behavior[:, 1].tolist(),
        "running_speed": behavior[:, 2].tolist(),
        "pupil_center": pupil_center.tolist(),
        **more,
    }


def arrays_of(response: httpx.Response) -> list[np.ndarray]:
    assert response.status_code == 200, response.text
    stream = io.BytesIO(response.content)
    arrays = []
    while stream.tell() < len(response.content):
        arrays.append(np.load(stream))
    return arrays


@pytest.mark.parametrize("per_image", [False, True])
async def test_the_gradient_is_the_engine_s(
    client: httpx.AsyncClient, engine: Engine, rng: np.random.Generator, per_image: bool
) -> None:
    asked = draw(engine, rng, 3)
    weights = rng.normal(size=(3, 2) if per_image else 2).astype(np.float32)
    ids = engine.neurons[MOUSE].ids[[3, 1]].tolist()
    expected = engine.gradient(MOUSE, *asked, weights, [3, 1])
    body = question(asked, weights=weights.tolist(), neuron_ids=ids)
    reply = (await client.post("/gradient", json=body)).json()
    schemas.GradientReply.model_validate(reply)
    assert reply["neuron_ids"] == ids
    in_json = [
        reply["gradient"]["image"],
        reply["responses"],
        *(reply["gradient"][k] for k in ("behavior", "pupil_center")),
    ]
    response = await client.post("/gradient", json=body, headers=NPY)
    head = json.loads(response.headers["v1t-reply"])
    assert head["model"]["hash"] == engine.hash
    for got in (in_json, arrays_of(response)):
        for one, array in zip(got, (expected.image, expected.response, *expected[2:]), strict=True):
            np.testing.assert_allclose(one, array, rtol=1e-4, atol=1e-6 * np.abs(array).max())
    assert np.abs(expected.image).max() > 0


async def test_in_raw_units_the_gradient_is_that_of_raw_responses(
    client: httpx.AsyncClient, engine: Engine, rng: np.random.Generator
) -> None:
    asked = draw(engine, rng, 1)
    std = engine.neurons[MOUSE].response_std
    weights = rng.normal(size=len(std))
    expected = engine.gradient(MOUSE, *asked, weights * std)
    body = question(asked, weights=weights.tolist(), units="raw")
    image, responses, _, _ = arrays_of(await client.post("/gradient", json=body, headers=NPY))
    np.testing.assert_allclose(image, expected.image, rtol=1e-4, atol=1e-6 * np.abs(expected.image).max())
    np.testing.assert_allclose(responses, expected.response * std, rtol=1e-5)


async def test_a_form_can_ask_for_a_gradient(
    client: httpx.AsyncClient, engine: Engine, rng: np.random.Generator
) -> None:
    image, behavior, pupil_center = draw(engine, rng, 2)
    n = len(engine.neurons[MOUSE])
    weights = rng.normal(size=n).astype(np.float32)
    stream = io.BytesIO()
    np.save(stream, image)
    form = question([image, behavior, pupil_center], weights=weights.tolist())
    del form["image"]
    data = {name: value if name == "mouse" else json.dumps(value) for name, value in form.items()}
    response = await client.post("/gradient", data=data, files={"image": stream.getvalue()}, headers=NPY)
    expected = engine.gradient(MOUSE, image, behavior, pupil_center, weights)
    np.testing.assert_allclose(
        arrays_of(response)[0], expected.image, rtol=1e-4, atol=1e-6 * np.abs(expected.image).max()
    )


async def test_attention_is_the_engine_s(client: httpx.AsyncClient, engine: Engine, rng: np.random.Generator) -> None:
    asked = draw(engine, rng, 6)  # more than one piece
    expected = engine.attention_rollout(MOUSE, *asked).swapaxes(0, 1)  # (B, M, h, w)
    reply = (await client.post("/attention", json=question(asked))).json()
    schemas.AttentionReply.model_validate(reply)
    (maps,) = arrays_of(await client.post("/attention", json=question(asked), headers=NPY))
    assert maps.shape[:2] == (6, engine.manifest.members)
    for got in (reply["attention"], maps):
        np.testing.assert_allclose(got, expected, atol=1e-5)


async def test_concurrent_predictions_and_gradients_each_get_their_own_answer(
    client: httpx.AsyncClient, engine: Engine, rng: np.random.Generator
) -> None:
    asked = [draw(engine, rng, 2) for _ in range(6)]
    n = len(engine.neurons[MOUSE])
    responses = await asyncio.gather(
        *(
            client.post("/gradient", json=question(one, weights=[1.0] * n), headers=NPY)
            if i % 3 == 0
            else client.post("/predict", json=question(one), headers=NPY)
            for i, one in enumerate(asked)
        )
    )
    for i, (one, response) in enumerate(zip(asked, responses, strict=True)):
        got = arrays_of(response)[1 if i % 3 == 0 else 0]
        np.testing.assert_allclose(got, engine.predict(MOUSE, *one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"weights": None}, 422),
        ({"weights": []}, 422),
        ({"weights": [1.0]}, 422),
        ({"weights": ["1"] * 5, "first": 5}, 422),
        ({"weights": [[1.0]] * 3, "first": 1}, 422),
        ({"weights": [1e300], "first": 1}, 422),
        ({"weights": 1.0}, 422),
        ({"weights": [1.0], "neuron_ids": [-7]}, 404),
        ({"weights": [1.0], "first": 1, "spread": True}, 422),
        ({"weights": [1.0], "first": 1, "mouse": "Z"}, 404),
    ],
)
async def test_bad_weights_are_refused(
    client: httpx.AsyncClient, engine: Engine, rng: np.random.Generator, changes: dict[str, Any], status: int
) -> None:
    body = question(draw(engine, rng, 2), **changes)
    if first := body.pop("first", None):
        body["neuron_ids"] = engine.neurons[MOUSE].ids[:first].tolist()
    response = await client.post("/gradient", json=body)
    assert response.status_code == status, response.text
    if status == 422:
        assert "weights" in response.text or "spread" in response.text


async def test_attention_takes_no_neurons(client: httpx.AsyncClient, engine: Engine, rng: np.random.Generator) -> None:
    response = await client.post("/attention", json=question(draw(engine, rng, 1), neuron_ids=[1]))
    assert response.status_code == 422


async def test_a_twin_without_gradients_or_attention_is_an_error_that_names_it(tmp_path: Path) -> None:
    twin = write_tiny_bundle(tmp_path / "plain", name="plain")
    asked = {"mouse": "A", "image": np.zeros(twin.mice["A"].image_shape).tolist()}
    async with serving(cpu_settings(tmp_path, max_batch=4)) as client:
        for path, body in (("/gradient", {**asked, "weights": [1.0] * 7}), ("/attention", asked)):
            response = await client.post(path, json=body)
            assert response.status_code == 404
            assert "plain" in response.json()["error"]["message"]
        assert (await client.post("/predict", json=asked)).status_code == 200
