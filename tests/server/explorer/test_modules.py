"""The explorer's pure parts, imported in the browser and compared with numpy."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from v1t_client.insilico.stimuli.noise import block_size

pytestmark = pytest.mark.slow

_RUN = """
const [path, code, values] = arguments;
const done = arguments[arguments.length - 1];
import(path).then((m) => Function("m", "values", `return (async () => { ${code} })()`)(m, values)).then(
  (result) => done(ArrayBuffer.isView(result) ? [...result] : result), (error) => done(`failed: ${error}`));
"""


@pytest.fixture(scope="module")
def page(chrome: webdriver.Chrome, demo_server: Any) -> webdriver.Chrome:
    """A page without a content security policy of its own, which would not let a test run code."""
    chrome.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    chrome.get(f"{demo_server.url}/docs")
    return chrome


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def run(page: webdriver.Chrome, module: str, code: str, *values: Any) -> Any:
    path = page.execute_script("return new URL(arguments[0], document.baseURI).href", f"explorer/{module}")
    result = page.execute_async_script(_RUN, path, code, list(values))
    assert not str(result).startswith("failed"), result
    return result


def test_npy_is_what_numpy_reads_and_writes(page: webdriver.Chrome, rng: np.random.Generator) -> None:
    array = rng.normal(size=(2, 3, 4)).astype(np.float32)
    encode = "return [...m.encodeNpy(Float32Array.from(values[0]), values[1])]"
    got = np.load(io.BytesIO(bytes(run(page, "api/npy.js", encode, array.ravel().tolist(), list(array.shape)))))
    np.testing.assert_array_equal(got, array)
    stream = io.BytesIO()
    for one in (array, array[0].astype(np.float64)):
        np.save(stream, one)
    decode = (
        "const bytes = Uint8Array.from(atob(values[0]), (c) => c.charCodeAt(0));"
        "return m.decodeNpy(bytes.buffer).map(({ data, shape }) => [[...data], shape])"
    )
    first, second = run(page, "api/npy.js", decode, base64.b64encode(stream.getvalue()).decode())
    np.testing.assert_array_equal(np.reshape(first[0], first[1]), array)
    np.testing.assert_array_equal(np.reshape(second[0], second[1]), array[0].astype(np.float64))


def test_a_picture_survives_as_png(page: webdriver.Chrome, rng: np.random.Generator) -> None:
    plane = rng.integers(0, 256, (13, 21))
    code = "return [...await m.encodePng(Uint8Array.from(values[0]), 13, 21)]"
    got = np.asarray(Image.open(io.BytesIO(bytes(run(page, "stimuli/png.js", code, plane.ravel().tolist())))))
    np.testing.assert_array_equal(got, plane)


@pytest.mark.parametrize("window", ["disc", "gaussian"])
def test_a_grating_has_the_orientation_frequency_and_place_that_were_asked(page: webdriver.Chrome, window: str) -> None:
    H, W, orientation, frequency, size = 36, 64, 30.0, 6.0, 0.5
    wave = {"orientation": orientation, "frequency": frequency, "phase": 90, "size": size, "x": 0.25, "y": 0.5}
    code = "return m.grating(values[0], 36, 64, values[1])"
    got = np.reshape(run(page, "stimuli/patterns.js", code, wave, window), (H, W))
    rows, columns = np.mgrid[:H, :W] + 0.5
    dx, dy = columns - 0.25 * W, rows - 0.5 * H
    along = dx * np.sin(np.deg2rad(orientation)) + dy * np.cos(np.deg2rad(orientation))
    expected = np.cos(2 * np.pi * frequency * along / W + np.pi / 2)
    distance, radius = np.hypot(dx, dy), size * W / 2
    envelope = np.clip(radius - distance + 0.5, 0, 1) if window == "disc" else np.exp(-2 * (distance / radius) ** 2)
    np.testing.assert_allclose(got, expected * envelope, atol=1e-5)


def test_noise_and_leaves_depend_on_their_seed_alone(page: webdriver.Chrome) -> None:
    for kind, more in (("whiteNoise", {"square": 4}), ("deadLeaves", {})):
        code = f"return m.{kind}(values[0], 36, 64)"
        one, same, other = (run(page, "stimuli/patterns.js", code, {"seed": seed, **more}) for seed in (1, 1, 2))
        assert one == same != other
        assert -1 <= min(one) < -0.5 < 0.5 < max(one) <= 1
    code = "return m.whiteNoise({ seed: 3, square: 4 }, 36, 64)"
    squares = np.reshape(run(page, "stimuli/patterns.js", code), (9, 4, 16, 4))
    assert (squares == squares[:, :1, :, :1]).all()


def test_summaries_are_numpys(page: webdriver.Chrome, rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 101)).round(3)
    values = [a.tolist(), b.tolist()]
    module = "statistics/summaries.js"
    assert run(page, module, "return m.correlation(...values)", *values) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert run(page, module, "return m.quantile(values[0], 0.3)", *values) == pytest.approx(np.quantile(a, 0.3))
    assert run(page, module, "return m.largest(values[0], 5)", *values) == np.argsort(-a)[:5].tolist()
    counts = run(page, module, "return m.histogram(values[0], -2, 2, 8)", *values)
    assert counts == np.histogram(np.clip(a, -2, 2), 8, (-2, 2))[0].tolist()
    assert run(page, module, "return m.grouped(1234567)") == "1,234,567"


def test_a_receptive_field_is_the_covariance_of_response_and_noise(
    page: webdriver.Chrome, rng: np.random.Generator
) -> None:
    h, w, images = 9, 16, 400
    noise = rng.uniform(-np.sqrt(3), np.sqrt(3), (images, h * w))
    field = np.zeros((h, w))
    field[3, 5] = 2
    responses = noise @ field.ravel() + 1 + 0.1 * rng.normal(size=images)
    sums = {
        "maps": (responses @ noise).tolist(),
        "noise": noise.sum(0).tolist(),
        "total": [float(responses.sum())],
        "images": images,
        "grid": [h, w],
    }
    map_ = run(page, "statistics/receptive_field.js", "return m.fieldOf(values[0], [0])", sums)
    np.testing.assert_allclose(map_, np.cov(responses, noise.T, bias=True)[0, 1:], atol=1e-5)
    center = run(
        page, "statistics/receptive_field.js", "return m.centerOf(Float32Array.from(values[0]), [9, 16])", map_
    )
    assert (center["x"], center["y"]) == (pytest.approx(5.5 / w, abs=0.02), pytest.approx(3.5 / h, abs=0.02))
    assert center["strength"] > 5
    for (H, W), grid in (((144, 256), [18, 32]), ((36, 64), [18, 32]), ((16, 24), [16, 24]), ((35, 63), [5, 9])):
        assert run(page, "statistics/receptive_field.js", f"return m.gridFor({H}, {W})") == grid
        shown = run(page, "statistics/receptive_field.js", f"return m.noiseImages({grid})")
        block = block_size("balanced", (grid[0], grid[1]))
        assert shown % block == 0
        assert shown == block or abs(shown - 2000) <= block / 2


def test_preferred_orientation_of_a_cosine(page: webdriver.Chrome) -> None:
    angles = np.arange(0, 180, 15)
    for preferred in (0, 40, 175):
        curve = (1 + 0.5 * np.cos(2 * np.deg2rad(angles - preferred))).tolist()
        got = run(page, "statistics/orientation.js", "return m.preferredOrientation(values[0])", curve)
        assert abs((got["degrees"] - preferred + 90) % 180 - 90) < 1e-6
        assert got["selectivity"] == pytest.approx(0.25)


def test_events_of_a_stream_are_read_however_they_are_cut(page: webdriver.Chrome) -> None:
    body = b'{"event":"progress","done":1}\n{"event":"part","bytes":5}\n\n{"x"{"event":"end"}\n'
    for size in (1, 3, 7, 100):
        chunks = [list(body[i : i + size]) for i in range(0, len(body), size)]
        code = (
            "const start = (c) => { values[0].forEach((one) => c.enqueue(Uint8Array.from(one))); c.close() };"
            "const stream = new ReadableStream({ start });"
            "const found = []; for await (const { line, bytes } of m.readEvents(stream))"
            " found.push([line.event, [...new Uint8Array(bytes)]]); return found"
        )
        got = run(page, "api/stream.js", code, chunks)
        assert got == [["progress", []], ["part", list(b'\n{"x"')], ["end", []]]
