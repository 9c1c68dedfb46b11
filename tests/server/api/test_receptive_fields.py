"""POST /receptive_fields: the noise, the sums, and fairness to other requests."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from support.in_process import cpu_settings, serving
from support.tiny_bundle import TinyTwin
from v1t_client.insilico.stimuli import noise as client_noise

from server.inference.noise import enlarge, noise_images, white_noise

HEADERS = {"Accept": "application/x-v1t-stream"}


@pytest.fixture
async def client(twin: TinyTwin) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(cpu_settings(twin.folder, max_batch=4)) as client:
        yield client


def asked(twin: TinyTwin, **more: Any) -> dict[str, Any]:
    _, H, W = twin.manifest.mice["A"].image_shape
    return {
        "mouse": "A", "seed": 5, "n_images": 37, "grid": [H, W], "luminance": 100.0, "contrast": 30.0, **more,
    }  # fmt: skip


def events_of(response: httpx.Response) -> list[tuple[dict[str, Any], bytes]]:
    assert response.status_code == 200, response.text
    stream, events = io.BytesIO(response.content), []
    while line := stream.readline():
        event = json.loads(line)
        events.append((event, stream.read(event.get("bytes", 0))))
    return events


def sums_of(response: httpx.Response) -> list[np.ndarray]:
    ((_, body),) = [event for event in events_of(response) if event[0]["event"] == "part"]
    stream = io.BytesIO(body)
    arrays = [np.load(stream) for _ in range(4)]
    assert not stream.read()
    return arrays


def expected(twin: TinyTwin, fields: dict[str, Any], state: list[np.ndarray]) -> list[np.ndarray]:
    """The sums in float64, from the bundle's formula."""
    shape = twin.manifest.mice["A"].image_shape
    first, n = fields.get("first_image", 0), fields["n_images"]
    z = noise_images(fields.get("noise", "white"), fields["seed"], first, n, tuple(fields["grid"]))
    image = fields["luminance"] + fields["contrast"] * enlarge(z, shape).astype(np.float64)
    behavior, pupil_center = (np.repeat(row[None], len(z), axis=0) for row in state)
    r = twin.member_responses("A", image.astype(np.float32), behavior, pupil_center).mean(0).astype(np.float64)
    return [np.einsum("bn,bhw->nhw", r, z.astype(np.float64)), z.sum(0, dtype=np.float64), r.sum(0), (r**2).sum(0)]


def state_of(twin: TinyTwin) -> tuple[dict[str, Any], list[np.ndarray]]:
    _, behavior, pupil_center = twin.draw("A", np.random.default_rng(1), 1)
    names = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
    fields = dict(zip(names, behavior[0].tolist(), strict=True)) | {"pupil_center": pupil_center[0].tolist()}
    return fields, [behavior[0], pupil_center[0]]


# The noise


def philox(key: tuple[int, int], counter: int) -> list[int]:
    """Philox 4x64 with 10 rounds (Salmon et al. 2011), in Python integers."""
    mask, x, k = 2**64 - 1, [counter, 0, 0, 0], list(key)
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [(b >> 64) ^ x[1] ^ k[0], b & mask, (a >> 64) ^ x[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return x


def test_noise_is_philox_keyed_by_seed_and_image() -> None:
    seed, image, grid = 2**63 + 9, 123_456, (3, 5)
    words = [word for counter in range(1, 5) for word in philox((seed, image), counter)][:15]
    z = np.array([((word >> 40) / 2**24 - 0.5 + 2**-25) * 12**0.5 for word in words]).reshape(grid)
    np.testing.assert_allclose(white_noise(seed, image, 1, grid)[0], z, rtol=1e-6)


def test_client_and_server_make_the_same_noise_in_any_order() -> None:
    ours = white_noise(7, 10, 6, (9, 16))
    np.testing.assert_array_equal(ours, client_noise.white_noise(7, 10, 6, (9, 16)))
    np.testing.assert_array_equal(ours[4:], white_noise(7, 14, 2, (9, 16)))
    assert not np.array_equal(ours[0], white_noise(8, 10, 1, (9, 16))[0])
    larger = enlarge(ours, (1, 36, 64))
    np.testing.assert_array_equal(larger[:, 0], client_noise.enlarge(ours, (1, 36, 64)))
    np.testing.assert_array_equal(larger[2, 0, 8:12, 20:24], np.full((4, 4), ours[2, 2, 5]))


def test_orthogonal_noise_is_made_of_philox_words() -> None:
    seed, block, (h, w) = 2**64 - 1, 3, (3, 4)
    P, N = h * w, h * w + 1
    words = [word for counter in range(1, 12) for word in philox((seed, 2**63 + block), counter)]
    rows = sorted(range(N), key=lambda i: words[i])
    columns = sorted(range(P), key=lambda k: words[N + k])
    signs = [-1 if words[N + P + k] >= 2**63 else 1 for k in range(P)]
    image = 5  # of the block
    turns = [2 * math.pi * rows[image] * (1 + column) / N for column in columns]
    z = np.array([sign * (math.cos(x) + math.sin(x)) for sign, x in zip(signs, turns, strict=True)]).reshape(h, w)
    np.testing.assert_allclose(noise_images("orthogonal", seed, block * N + image, 1, (h, w))[0], z, atol=1e-6)
    for more, sign in ((0, 1), (1, -1)):
        (one,) = noise_images("balanced", seed, 2 * (block * N + image) + more, 1, (h, w))
        np.testing.assert_allclose(one, sign * z, atol=1e-6)


@pytest.mark.parametrize("kind", ["antithetic", "orthogonal", "balanced"])
def test_client_and_server_make_the_same_noise_of_every_kind(kind: Any) -> None:
    for first, n in ((0, 9), (140, 20), (289, 3)):
        ours = noise_images(kind, 7, first, n, (9, 16))
        np.testing.assert_array_equal(ours, client_noise.noise_images(kind, 7, first, n, (9, 16)))


def test_noise_is_uniform_with_mean_0_and_variance_1() -> None:
    z = white_noise(0, 0, 300, (36, 64)).astype(np.float64)
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 5 / np.sqrt(z.size)
    assert z.max() < np.sqrt(3)
    neighbours = np.corrcoef(z[:, :, :-1].ravel(), z[:, :, 1:].ravel())[0, 1]
    images = np.corrcoef(z[:-1].ravel(), z[1:].ravel())[0, 1]
    assert max(abs(neighbours), abs(images)) < 5 / np.sqrt(z.size)


# The sums


@pytest.mark.parametrize("noise", [{}, {"noise": "balanced"}])
async def test_sums_are_those_of_the_responses(
    client: httpx.AsyncClient, twin: TinyTwin, noise: dict[str, Any]
) -> None:
    state, arrays = state_of(twin)
    fields = asked(twin, first_image=11, **noise, **state)
    response = await client.post("/receptive_fields", json=fields, headers=HEADERS)
    for got, right in zip(sums_of(response), expected(twin, fields, arrays), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-3)
    names = [event["event"] for event, _ in events_of(response)]
    assert names[0] == "progress"
    assert names[-2:] == ["part", "end"]
    about = json.loads(response.headers["v1t-reply"])
    assert about["model"]["hash"] == twin.manifest.hash
    assert about["assumed"] == []


async def test_sums_over_parts_add_up_for_some_neurons_in_their_order(
    client: httpx.AsyncClient, twin: TinyTwin
) -> None:
    ids = twin.mice["A"].neurons.ids[[3, 0]].tolist()
    whole = sums_of(await client.post("/receptive_fields", json=asked(twin), headers=HEADERS))
    parts = [
        sums_of(
            await client.post(
                "/receptive_fields", json=asked(twin, first_image=a, n_images=n, neuron_ids=ids), headers=HEADERS
            )
        )
        for a, n in ((0, 20), (20, 17))
    ]
    maps, noise, total, squares = (a + b for a, b in zip(*parts, strict=True))
    np.testing.assert_allclose(maps, whole[0][[3, 0]], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(noise, whole[1], atol=1e-6)
    np.testing.assert_allclose(total, whole[2][[3, 0]], rtol=1e-5)
    np.testing.assert_allclose(squares, whole[3][[3, 0]], rtol=1e-5)


async def test_inputs_that_were_left_out_are_listed(client: httpx.AsyncClient, twin: TinyTwin) -> None:
    response = await client.post("/receptive_fields", json=asked(twin), headers=HEADERS)
    assert any("running_speed left out" in line for line in json.loads(response.headers["v1t-reply"])["assumed"])


# Refusals, turns and disconnects


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": None}, "seed"),
        ({"seed": -1}, "seed"),
        ({"n_images": 0}, "n_images"),
        ({"n_images": 10**9}, "n_images"),
        ({"n_images": True}, "n_images"),
        ({"grid": [5, 7]}, "grid"),
        ({"grid": None}, "grid"),
        ({"grid": [1, 1]}, "grid"),
        ({"contrast": -2}, "contrast"),
        ({"contrast": "much"}, "contrast"),
        ({"luminance": None}, "luminance"),
        ({"noisy": 3}, "unknown field"),
        ({"noise": "pink"}, "noise"),
        ({"running_speed": [1.0, 2.0]}, "running_speed"),
    ],
)
async def test_bad_fields_are_refused_by_name(
    client: httpx.AsyncClient, twin: TinyTwin, change: dict[str, Any], words: str
) -> None:
    response = await client.post("/receptive_fields", json=asked(twin, **change), headers=HEADERS)
    assert response.status_code == 422, response.text
    assert words in response.json()["error"]["message"]


async def test_other_types_and_unknown_mice_are_refused(client: httpx.AsyncClient, twin: TinyTwin) -> None:
    as_json = {**HEADERS, "Accept": "application/json"}
    assert (await client.post("/receptive_fields", json=asked(twin), headers=as_json)).status_code == 406
    assert (await client.post("/receptive_fields", data={"mouse": "A"}, headers=HEADERS)).status_code == 415
    unknown = await client.post("/receptive_fields", json=asked(twin, mouse="Z"), headers=HEADERS)
    assert unknown.status_code == 404


async def test_maps_that_would_not_fit_are_refused(twin: TinyTwin) -> None:
    mouse = twin.manifest.mice["A"]
    size = mouse.n_neurons * mouse.image_shape[1] * mouse.image_shape[2]
    async with serving(cpu_settings(twin.folder, max_batch=4, max_maps=size - 1)) as client:
        response = await client.post("/receptive_fields", json=asked(twin), headers=HEADERS)
        assert response.status_code == 413
    async with serving(cpu_settings(twin.folder, max_batch=4, max_maps=size)) as client:
        first = asyncio.create_task(client.post("/receptive_fields", json=asked(twin, n_images=4000), headers=HEADERS))
        await asyncio.sleep(0.05)
        second = await client.post("/receptive_fields", json=asked(twin), headers=HEADERS)
        assert second.status_code == 429
        assert int(second.headers["retry-after"]) > 0
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        for _ in range(200):  # a client that disconnects frees its place
            third = await client.post("/receptive_fields", json=asked(twin), headers=HEADERS)
            if third.status_code == 200:
                break
            await asyncio.sleep(0.02)
        assert third.status_code == 200


async def test_small_requests_take_turns_with_a_long_one(client: httpx.AsyncClient, twin: TinyTwin) -> None:
    long = asyncio.create_task(client.post("/receptive_fields", json=asked(twin, n_images=3000), headers=HEADERS))
    await asyncio.sleep(0.05)
    image, behavior, pupil_center = twin.draw("A", np.random.default_rng(0), 1)
    question = {
        "mouse": "A",
        "image": image.tolist(),
        "pupil_dilation": float(behavior[0, 0]),
        "pupil_dilation_derivative": float(behavior[0, 1]),
        "running_speed": float(behavior[0, 2]),
        "pupil_center": pupil_center[0].tolist(),
    }
    assert (await client.post("/predict", json=question)).status_code == 200
    assert not long.done()
    assert (await long).status_code == 200
