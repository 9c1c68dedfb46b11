"""Compressed bodies: what is read, the bound on what they hold, and replies that are compressed on request."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
from support.in_process import cpu_settings, serving
from support.tiny_bundle import TinyTwin

from server.api.codecs.parsing.compression import Encoding, decompressed
from server.errors import MalformedBody, TooLarge

LIMIT = 64 * 1024
COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.fixture
async def client(twin: TinyTwin) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(cpu_settings(twin.folder, max_body=LIMIT)) as client:
        yield client


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [0, 1, 5000, LIMIT])
def test_what_was_compressed_is_read(encoding: Encoding, size: int) -> None:
    content = np.random.default_rng(0).integers(0, 9, size, dtype=np.uint8).tobytes()
    assert decompressed(COMPRESS[encoding](content), encoding, LIMIT) == content


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_refused_while_it_is_decompressed(encoding: Encoding) -> None:
    body = COMPRESS[encoding](bytes(50_000_000))
    assert len(body) < LIMIT
    tracemalloc.start()
    with pytest.raises(TooLarge, match=f"more than {LIMIT} bytes, from {len(body)}"):
        decompressed(body, encoding, LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 10 * LIMIT
    tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda body: body[:-1], "ends too early"),
        (lambda body: body[: len(body) // 2], "ends too early"),
        (lambda body: b"", "ends too early"),
        (lambda body: body + b"x", "after its"),
        (lambda body: body + body, "after its"),
        (lambda body: b"x" + body, "is not"),
        (lambda body: body[:-6] + bytes(6), "is not"),
    ],
)
def test_damaged_bodies_are_refused(encoding: Encoding, damage: object, words: str) -> None:
    body = COMPRESS[encoding](np.random.default_rng(0).bytes(500))
    with pytest.raises(MalformedBody, match=words):
        decompressed(damage(body), encoding, LIMIT)  # type: ignore[operator]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "identity"])
async def test_every_question_may_be_compressed(client: httpx.AsyncClient, twin: TinyTwin, encoding: str) -> None:
    image, behavior, pupil_center = twin.draw("A", np.random.default_rng(0))
    names = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
    given = dict(zip(names, behavior[0].tolist(), strict=True)) | {"pupil_center": pupil_center[0].tolist()}
    asked = json.dumps({"mouse": "A", "image": image.tolist(), **given}).encode()
    content = COMPRESS.get(encoding.lower(), bytes)(asked)
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    reply = await client.post("/predict", content=content, headers=headers)
    np.testing.assert_allclose(reply.json()["responses"], twin.answer("A", image, behavior, pupil_center), atol=1e-5)
    assert "content-encoding" not in reply.headers  # httpx accepts gzip, among others


@pytest.mark.parametrize("path", ["/predict", "/gradient", "/receptive_fields", "/v2/models/tiny.A/infer"])
async def test_the_decompressed_size_counts_against_the_limit(client: httpx.AsyncClient, path: str) -> None:
    body = gzip.compress(b" " * (LIMIT + 1))
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert (await client.post(path, content=body, headers=headers)).status_code == 413
    assert (await client.post(path, content=body[:-9], headers=headers)).status_code in (400, 413)
    refused = await client.post(path, content=body, headers={**headers, "Content-Encoding": "br"})
    assert refused.status_code == 415
    assert "gzip, deflate" in refused.text


@pytest.mark.parametrize(
    ("accepted", "encoding"), [("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate", None), ("br", None)]
)
async def test_a_reply_is_compressed_where_that_alone_is_accepted(
    client: httpx.AsyncClient, twin: TinyTwin, accepted: str, encoding: str | None
) -> None:
    image = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 12], "data": [100.0] * 96}
    for in_binary in (False, True):
        asked = {"inputs": [image], "parameters": {"binary_data_output": in_binary}}
        replies = [
            await client.post("/v2/models/tiny.A/infer", json=asked, headers={"Accept-Encoding": one})
            for one in (accepted, "identity")
        ]
        assert [reply.headers.get("content-encoding") for reply in replies] == [encoding, None]
        assert replies[0].content == replies[1].content  # httpx decompresses it
        for name in ("content-type", "inference-header-content-length"):
            assert replies[0].headers.get(name) == replies[1].headers.get(name)
