"""What goes wrong around the explorer: strange files; a slow, busy, absent, reloading or locked server."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from support.awkward_proxy import AwkwardProxy, proxying
from support.browser import Explorer
from support.checkout import ROOT
from support.live_server import Server, free_port, serving
from support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef"
REFUSED = ("status of 429", "status of 503", "status of 401", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION", "favicon")


@pytest.fixture
def proxy(demo_server: Server) -> Iterator[AwkwardProxy]:
    with proxying(demo_server.url, free_port()) as running:
        yield running


@pytest.fixture
def awkward(chrome: webdriver.Chrome, proxy: AwkwardProxy, downloads: Path) -> Iterator[Explorer]:
    page = Explorer(chrome, proxy.url, downloads)
    page.expected_errors = REFUSED
    page.console()
    yield page
    assert page.console() == []


def encoded(image: Image.Image, kind: str, **more: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_photo_of_many_megabytes_is_shrunk_before_it_is_sent(explorer: Explorer, tmp_path: Path) -> None:
    explorer.open()
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encoded(noise(6600, 4400), "JPEG", quality=95))
    assert photo.stat().st_size > 30e6
    explorer.chrome.find_element("css selector", ".stimulus input[type=file]").send_keys(str(photo))
    explorer.wait("return document.querySelector('.stimulus').innerText.includes('6600 \\u00d7 4400')")
    explorer.settle()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("scan.tiff", "image/tiff", "scan.tiff is a TIFF file"),
        ("notes.txt", "text/plain", "notes.txt is text"),
        ("empty.png", "image/png", "empty.png is empty"),
        ("array.npy", "", "array.npy is a NumPy array file"),
        ("broken.png", "image/png", "broken.png is in no format that this browser reads"),
    ],
)
def test_a_file_that_is_no_picture_is_named_and_changes_nothing(
    explorer: Explorer, name: str, kind: str, words: str
) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros((2, 2)))
    content = {
        "scan.tiff": encoded(noise(20, 20), "TIFF"),
        "notes.txt": b"Nothing to see here.\n",
        "empty.png": b"",
        "array.npy": array.getvalue(),
        "broken.png": encoded(noise(20, 20), "PNG")[:200] + bytes(100),
    }[name]
    explorer.open()
    before = explorer.top()
    explorer.give("drop", name, kind, content)
    explorer.wait("return document.querySelector('.stimulus [role=alert]')?.innerText.includes(arguments[0])", words)
    assert explorer.top() == before
    explorer.click("Grating")
    explorer.wait("return !document.querySelector('.stimulus [role=alert]')")


def test_of_an_animated_gif_the_first_frame_is_shown(explorer: Explorer) -> None:
    frames = [Image.new("L", (256, 144), level) for level in (40, 200)]
    explorer.open()
    explorer.give("drop", "moving.gif", "image/gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    explorer.wait("return document.querySelector('.stimulus').innerText.includes('the first frame')")
    explorer.js("document.querySelector('[data-save=npy]').click()")
    assert set(np.load(io.BytesIO(explorer.saved("stimulus.npy"))).ravel()) == {40}


def test_stale_requests_of_a_slow_server_are_cancelled_and_the_last_position_wins(
    awkward: Explorer, proxy: AwkwardProxy
) -> None:
    awkward.open()
    awkward.click("Grating")
    awkward.settle()
    proxy.delay, proxy.asked = 0.3, 0
    start = time.monotonic()
    for orientation in range(0, 180, 5):
        awkward.slide("Orientation", orientation)
        time.sleep(0.04)
    moved = time.monotonic() - start
    awkward.settle()
    assert 0 < proxy.asked < 36  # positions in between were not asked, or were cancelled
    assert proxy.dropped > 0
    time.sleep(0.5)
    shown = awkward.top()
    proxy.delay = 0
    print(f"36 positions in {moved:.1f} s, engine 300 ms: {proxy.asked} requests, {proxy.dropped} cancelled")
    awkward.slide("Orientation", 90)
    awkward.settle()
    awkward.slide("Orientation", 175)
    awkward.settle()
    assert awkward.top() == shown


def test_a_busy_server_is_asked_again_when_it_says(awkward: Explorer, proxy: AwkwardProxy) -> None:
    awkward.open()
    before = awkward.top()
    proxy.refuse = (429, 1)
    awkward.click("Noise")
    assert "the queue is full" in awkward.wait("return document.querySelector('[data-status=busy]')?.innerText")
    awkward.settle()
    assert awkward.js("return document.querySelector('[data-status]')") is None
    assert awkward.top() != before


def test_a_server_that_goes_away_is_waited_for(awkward: Explorer, proxy: AwkwardProxy) -> None:
    awkward.open()
    proxy.away = True
    awkward.click("Gabor")
    awkward.wait("return document.querySelector('[data-status=away]')?.innerText.includes('does not answer')")
    awkward.click("Noise")  # the page stays usable
    proxy.away = False
    awkward.wait("return document.querySelector('[data-status]') === null")
    awkward.settle()
    shown = awkward.top()
    awkward.open()
    awkward.click("Noise")
    awkward.settle()
    assert awkward.top() == shown


def test_below_a_prefix_the_page_works_with_and_without_its_last_slash(
    chrome: webdriver.Chrome, tmp_path: Path, downloads: Path
) -> None:
    port = free_port()
    public = f"http://127.0.0.1:{port}/lab/twins"
    with serving(ROOT / "exported_models", tmp_path, V1T_THREADS="1", V1T_PUBLIC_URL=public) as server:
        server.wait_for("/readyz", 200)
        with proxying(server.url, port, "/lab/twins"):
            for opened in (f"{public}/", public, f"{public}/docs"):
                chrome.get("about:blank")
                page = Explorer(chrome, public, downloads)
                page.console()
                chrome.get(opened)
                if opened.endswith("docs"):
                    page.wait("return document.querySelectorAll('.operation').length > 10")
                else:
                    page.settle()
                    assert f"{public}/predict" in page.copied("curl")
                assert page.console() == []


def test_a_key_is_asked_for_and_kept_in_memory_only(chrome: webdriver.Chrome, tmp_path: Path, downloads: Path) -> None:
    with serving(ROOT / "exported_models", tmp_path, V1T_THREADS="1", V1T_API_KEYS=KEY) as server:
        server.wait_for("/readyz", 200)
        page = Explorer(chrome, server.url, downloads)
        page.expected_errors = REFUSED
        page.open(settle=False)
        page.wait("return document.querySelector('dialog')?.open")
        enter = (
            "const form = document.querySelector('dialog form'); form.key.value = arguments[0]; form.requestSubmit()"
        )
        page.js(enter, "wrong-key-0123456789")
        page.wait("return document.querySelector('dialog').open && document.querySelector('dialog').innerText")
        page.js(enter, KEY)
        page.settle()
        command = page.copied("curl")
        assert "Authorization: Bearer $V1T_API_KEY" in command
        kept = page.js(
            "return [location.href, document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage)]"
        )
        assert KEY not in "".join(kept) + command
        page.open(settle=False)
        page.wait("return document.querySelector('dialog')?.open")
        assert page.console() == []


def test_a_model_that_is_loaded_anew_is_told_and_shown(
    chrome: webdriver.Chrome, tmp_path: Path, downloads: Path
) -> None:
    bundles = tmp_path / "bundles"
    write_tiny_bundle(bundles / "tiny", shape=(1, 16, 24))
    next_one = write_tiny_bundle(tmp_path / "next", shape=(1, 16, 24), seed=5, n_neurons=9).folder
    with serving(bundles, tmp_path, V1T_THREADS="1", V1T_WATCH="0.2") as server:
        server.wait_for("/readyz", 200)
        page = Explorer(chrome, server.url, downloads)
        page.open()
        assert "7 neurons" in page.text("header")
        shutil.move(bundles / "tiny", tmp_path / "old")
        shutil.move(next_one, bundles / "tiny")
        seed = 1
        while "another version" not in page.text(".notices"):
            seed += 1
            assert seed < 200
            page.click("Another one")
            time.sleep(0.1)
        page.wait("return document.querySelector('header').innerText.includes('9 neurons')")
        page.settle()
        assert page.console() == []


def test_a_standardised_mouse_takes_patterns_and_says_why_no_pictures(
    chrome: webdriver.Chrome, tmp_path: Path, downloads: Path
) -> None:
    write_tiny_bundle(tmp_path / "bundles" / "bare", mice=("S",), standardized=True, shape=(1, 16, 24))
    with serving(tmp_path / "bundles", tmp_path, V1T_THREADS="1") as server:
        server.wait_for("/readyz", 200)
        page = Explorer(chrome, server.url, downloads)
        page.open()
        assert "takes standardised inputs and no pictures" in page.text(".notices")
        page.give("drop", "leaves.png", "image/png", (ROOT / "docs" / "images" / "leaves.png").read_bytes())
        page.wait("return document.querySelector('.stimulus [role=alert]')?.innerText.includes('takes no pictures')")
        for kind in ("Grating", "Gabor", "Noise", "Leaves"):
            page.click(kind)
            page.settle()
            page.js("document.querySelector('[data-save=npy]').click()")
            image = np.load(io.BytesIO(page.saved("stimulus.npy")))
            assert image.dtype == np.float32
            assert np.abs(image).max() <= 2
        page.click("Attention")
        page.wait("return document.querySelector('.stimulus').innerText.includes(`twin 'tiny' has no attention`)")
        page.expected_errors = ("status of 404",)
        assert page.console() == []


def test_the_part_of_the_screen_that_the_core_sees_is_marked(
    chrome: webdriver.Chrome, tmp_path: Path, downloads: Path
) -> None:
    write_tiny_bundle(tmp_path / "bundles" / "cropped", shape=(1, 16, 24), crop=0.8)
    with serving(tmp_path / "bundles", tmp_path, V1T_THREADS="1") as server:
        server.wait_for("/readyz", 200)
        page = Explorer(chrome, server.url, downloads)
        page.open()
        measure = (
            "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [r.x, r.y, r.width, r.height]"
        )
        x, y, width, height = chrome.execute_script(measure, "#screen")
        crop = chrome.execute_script(measure, ".screen .crop")
        expected = (x + 0.1 * width, y + 0.1 * height, 0.8 * width, 0.8 * height)
        np.testing.assert_allclose(crop, expected, atol=1.5)
        assert "80 %" in page.text(".stimulus")
        assert page.console() == []


def test_a_server_without_mice_says_so(chrome: webdriver.Chrome, tmp_path: Path, downloads: Path) -> None:
    (tmp_path / "bundles").mkdir()
    with serving(tmp_path / "bundles", tmp_path, V1T_THREADS="1") as server:
        server.wait_for("/livez", 200)
        page = Explorer(chrome, server.url, downloads)
        page.expected_errors = REFUSED
        page.open(settle=False)
        page.wait("return document.querySelector('.notices').innerText.length > 10")
        assert page.console() == []
