"""The explorer on a mouse whose images have two channels, as those of Franke et al. 2022 (UV and green)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from selenium import webdriver
from support.browser import Explorer
from support.checkout import ROOT
from support.live_server import serving
from support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.slow

SHAPE = (2, 32, 48)


@pytest.fixture(scope="module")
def page(chrome: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Explorer]:
    folder = tmp_path_factory.mktemp("two")
    write_tiny_bundle(folder / "bundles" / "franke", mice=("F1",), shape=SHAPE, n_neurons=12)
    with serving(folder / "bundles", folder, V1T_THREADS="1") as server:
        server.wait_for("/readyz", 200)
        explorer = Explorer(chrome, server.url, downloads)
        explorer.expected_errors = ("willReadFrequently",)  # of the test's own reading
        yield explorer


def image(page: Explorer) -> np.ndarray:
    """(2, H, W) as the page offers it."""
    page.js("document.querySelector('[data-save=npy]').click()")
    array: np.ndarray = np.load(io.BytesIO(page.saved("stimulus.npy")))
    assert array.shape == (1, *SHAPE)
    return array[0]


def drawn(page: Explorer) -> np.ndarray:
    """(2, H, W) what the two screens show."""
    read = (
        "return [...document.querySelectorAll('.screen .image')].map((one) =>"
        " [...one.getContext('2d').getImageData(0, 0, one.width, one.height).data].filter((_, k) => k % 4 === 0))"
    )
    return np.asarray(page.js(read)).reshape(SHAPE)


def agree(page: Explorer, shown: np.ndarray, **fields: Any) -> None:
    file = io.BytesIO()
    np.save(file, shown[None])
    form = {name: json.dumps(value) for name, value in fields.items()}
    answer = httpx.post(f"{page.url}/predict", data={"mouse": "F1", **form}, files={"image": file.getvalue()}).json()
    expected = dict(zip(answer["neuron_ids"], answer["responses"][0], strict=True))
    top = page.top()
    assert len(top) == 8
    np.testing.assert_allclose([expected[neuron] for neuron in top], list(top.values()), rtol=1e-5)


def test_both_channels_are_drawn_and_answered(page: Explorer) -> None:
    page.open()
    for kind, slider, value in (("Grating", "Orientation", 90), ("Gabor", "Contrast", 0.5), ("Noise", "Squares", 4)):
        page.click(kind)
        page.slide(slider, value)
        page.settle()
        shown = image(page)
        np.testing.assert_array_equal(shown[0], shown[1])
        np.testing.assert_array_equal(drawn(page), shown)
        agree(page, shown)
    page.slide("Running speed", 2)
    page.settle()
    agree(page, image(page), running_speed=2)
    page.give("drop", "leaves.png", "image/png", (ROOT / "docs" / "images" / "leaves.png").read_bytes())
    page.wait("return document.querySelector('.stimulus').innerText.includes('leaves.png')")
    page.settle()
    agree(page, image(page), running_speed=2)
    assert page.console() == []


def test_one_channel_can_show_the_image_alone_and_a_link_keeps_it(page: Explorer) -> None:
    page.open()
    page.click("Grating")
    page.settle()
    both = image(page)
    for only in (0, 1):
        page.click(f"image {only} only")
        page.settle()
        shown = image(page)
        np.testing.assert_array_equal(shown[only], both[only])
        assert len(np.unique(shown[1 - only])) == 1  # grey
        np.testing.assert_array_equal(drawn(page), shown)
        agree(page, shown)
    page.slide("Orientation", 120)
    page.settle()
    top, shown, link = page.top(), image(page), page.copied("link")
    page.chrome.get("about:blank")
    page.chrome.get(link)
    page.settle()
    assert page.top() == top
    np.testing.assert_array_equal(image(page), shown)
    page.click("both")
    page.settle()
    assert page.top() != top
    assert page.console() == []


def test_the_rest_of_the_page_takes_two_channels(page: Explorer) -> None:
    page.open()
    page.click(str(next(iter(page.top()))), ".most button")
    page.wait("return document.querySelectorAll('.looks').length === 2")
    assert "holds no noise ceiling" in page.text("[data-ceiling]")
    page.click("Measure with 48 gratings")
    page.wait("return document.querySelector('[data-preferred]')", seconds=60)
    page.behavior_curves()
    page.click("Map with")
    page.wait("return document.querySelector('.field-map')", seconds=60)
    page.click("Figure, SVG")
    assert page.saved("twin-F1-leaves.svg").decode().count("<image") == 2
    assert "stimulus.npy" in page.copied("curl")
    assert page.problems() == []
    width, content = page.js("return [innerWidth, document.documentElement.scrollWidth]")
    assert content <= width
    assert page.console() == []
