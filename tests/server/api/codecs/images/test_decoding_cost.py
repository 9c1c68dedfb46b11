"""The memory reserved for images is at least what decoding them takes, as measured; too much work is refused."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from support.in_process import serving
from support.tiny_bundle import TinyTwin

from server.api.codecs.images.decoding_cost import image_cost
from server.api.codecs.images.reader import ImageReader
from server.bundle.manifest import MouseRecord
from server.errors import TooLarge
from server.inference.engine import Engine
from server.settings import Settings

SETTINGS = Settings()
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def record(twin: TinyTwin) -> MouseRecord:
    return Engine.load(twin.folder, provider="cpu", threads=1).manifest.mice["A"]


def peak(function: Callable[[], Any]) -> int:
    """Bytes that Python and numpy had allocated at most during the call."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        result = function()
        _, most = tracemalloc.get_traced_memory()
        del result
        return most - before
    finally:
        tracemalloc.stop()


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(stream, "PNG")
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


SHAPES = {
    "npy of float32": ([npy(RNG.normal(size=(30, 1, 8, 12)).astype(np.float32))], None),
    "npy of bytes": ([npy(RNG.integers(0, 256, (200, 1, 8, 12), dtype=np.uint8))], None),
    "npy of float64 in files": ([npy(RNG.normal(size=(8, 12)))] * 40, None),
    "npy, made larger": ([npy(np.ones((500, 1, 1, 1), np.uint8))], "fill"),
    "npy, made smaller": ([npy(RNG.integers(0, 256, (2, 1, 300, 400), dtype=np.uint8))], "fit"),
    "PNGs": ([png(RNG.integers(0, 256, (8, 12), dtype=np.uint8))] * 40, None),
    "large PNG": ([png(RNG.integers(0, 256, (900, 1200), dtype=np.uint8))], "fit"),
    "colour": ([png(RNG.integers(0, 256, (900, 1200, 3), dtype=np.uint8))], "fill"),
    "one bit": ([png(np.zeros((900, 1200), np.uint8), "1")], "fill"),
}


@pytest.mark.parametrize(("files", "resize"), SHAPES.values(), ids=SHAPES)
def test_the_memory_of_files_is_at_least_what_decoding_takes(
    record: MouseRecord, files: list[bytes], resize: Any
) -> None:
    cost = image_cost(files, [record], resize is not None, SETTINGS)
    assert peak(lambda: ImageReader(record, resize, SETTINGS, []).read(files)) <= cost.memory + 200_000
    assert image_cost(files, [record] * 3, resize is not None, SETTINGS).memory > 2 * cost.memory * (resize is None)


def test_pictures_are_counted_over_the_whole_request(record: MouseRecord) -> None:
    bomb = png(np.zeros((4096, 4096), np.uint8), "1")
    assert image_cost([bomb] * 16, [record], True, SETTINGS).work == 16 * 4096 * 4096
    with pytest.raises(TooLarge, match="too many pixels in all"):
        image_cost([bomb] * 17, [record], True, SETTINGS)
    # Without resize they are refused by their headers, one by one.
    assert image_cost([bomb] * 512, [record], False, SETTINGS).work == 512 * 8 * 12


def test_the_scans_of_jpegs_count() -> None:
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(stream, "JPEG", progressive=True)
    progressive = stream.getvalue()
    position = progressive.rindex(b"\xff\xda")
    many = progressive[:position] + progressive[position:-2] * 90 + progressive[position:]
    settings = Settings(max_pixels=64 * 64)
    record: Any = type("Record", (), {"image_shape": (1, 8, 12)})
    assert image_cost([progressive] * 4, [record], True, settings).work <= 4 * 4 * 64 * 64
    with pytest.raises(TooLarge, match="in all"):
        image_cost([many], [record], True, settings)


async def test_work_out_of_proportion_is_refused_over_http(twin: TinyTwin) -> None:
    bomb = png(np.zeros((4096, 4096), np.uint8), "1")
    async with serving(Settings(bundles=(twin.folder,), provider="cpu", threads=1)) as client:
        files = [("image", ("x.png", bomb)) for _ in range(100)]
        refused = await client.post("/predict", data={"mouse": "A", "resize": "fit"}, files=files)
        assert refused.status_code == 413
        assert "in all" in refused.text
        lists = b'{"mouse": "A", "image": [' + b"[]," * 300_000 + b"[]]}"
        refused = await client.post("/predict", content=lists, headers={"Content-Type": "application/json"})
        assert refused.status_code == 413


async def test_a_body_that_does_not_fit_the_memory_is_refused_before_it_is_read(twin: TinyTwin) -> None:
    read = 0

    async def body() -> Any:
        nonlocal read
        for _ in range(40):
            read += 1
            yield b" " * 1024**2

    settings = Settings(bundles=(twin.folder,), provider="cpu", threads=1, memory=16 * 1024**2)
    headers = {"Content-Type": "application/json"}
    async with serving(settings) as client:
        refused = await client.post(
            "/predict", content=body(), headers={**headers, "Content-Length": str(40 * 1024**2)}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")
        assert "V1T_MEMORY" in refused.text
        assert read == 0
        chunked = await client.post("/predict", content=body(), headers=headers)
        assert chunked.status_code == 413
        assert read < 10
        memory = await metric(client, "v1t_memory_bytes")
        assert memory <= 16 * 1024  # of this request


async def metric(client: httpx.AsyncClient, name: str) -> float:
    text = (await client.get("/metrics")).text
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])
