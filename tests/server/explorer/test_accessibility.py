"""Who can use the explorer: axe in both themes, phone width, reduced motion; and the screenshots of the docs."""

from __future__ import annotations

import io
import os

import pytest
from PIL import Image
from support.browser import Explorer
from support.checkout import ROOT

pytestmark = pytest.mark.slow

IMAGES = ROOT / "docs" / "images"


def in_use(explorer: Explorer, **size: int) -> None:
    """The page with a neuron selected, B pinned, and its experiments done."""
    explorer.open(**size)
    explorer.media(calm=True)
    explorer.click("Grating")
    explorer.settle()
    explorer.js("document.querySelector('#pin').click()")
    explorer.click("Example")
    explorer.wait("return document.querySelector('.stimulus').innerText.includes('leaves.png')")
    explorer.slide("Running speed", 12)
    explorer.settle()
    explorer.choose("Colour", "response")
    explorer.click(str(next(iter(explorer.top()))), ".most button")
    explorer.click("Measure with 48 gratings")
    explorer.wait("return document.querySelector('[data-preferred]')", seconds=60)
    explorer.click("Map with")
    explorer.wait("return document.querySelector('.field-map')", seconds=90)
    explorer.click("Gradient")
    gradient = ".layer:not(.hidden)[aria-label^='What would make']"
    explorer.wait("return document.querySelector(arguments[0])", gradient)
    explorer.behavior_curves()
    explorer.settle()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(explorer: Explorer, scheme: str) -> None:
    in_use(explorer)
    explorer.media(scheme=scheme, calm=True)
    assert explorer.problems() == []
    explorer.js("document.querySelector('main').append(document.createElement('button'))")
    assert any("button-name" in problem for problem in explorer.problems())  # axe does look
    explorer.js("document.querySelector('main > button').remove()")
    explorer.click("Tour")
    explorer.wait("return document.querySelector('.tour')")
    assert explorer.problems() == []
    explorer.open("docs", settle=False)
    explorer.media(scheme=scheme)
    explorer.click("POST /predict", "summary")
    explorer.wait("return document.querySelector('#predict form')")
    assert explorer.problems() == []


@pytest.mark.parametrize("address", ["", "docs"])
def test_a_phone_needs_no_sideways_scrolling(explorer: Explorer, address: str) -> None:
    explorer.open(address, settle=not address, width=390, height=844)
    explorer.size(390, 844, mobile=True)
    explorer.wait("return document.querySelector('.panel, .operation')")
    if address:
        explorer.click("POST /predict", "summary")
    else:
        explorer.click(str(next(iter(explorer.top()))), ".most button")
        explorer.wait("return document.querySelector('.cards')")
        covered = explorer.js(
            "const [a, b] = ['.read', '.study'].map((one) => document.querySelector(one).getBoundingClientRect());"
            "return Math.min(a.right, b.right) > Math.max(a.left, b.left) && b.top < a.bottom"
        )
        assert not covered  # the neuron's label, by the button beside it
    width, content = explorer.js("return [innerWidth, document.documentElement.scrollWidth]")
    assert content <= width == 390


def test_every_control_can_be_reached_with_the_keyboard_and_has_a_name(explorer: Explorer) -> None:
    explorer.open()
    nameless = explorer.js(
        "return [...document.querySelectorAll('button, input, select, a, canvas, textarea')]"
        ".filter((one) => one.offsetParent && !(one.getAttribute('aria-label') || one.innerText?.trim()"
        " || one.closest('label')?.innerText.trim() || one.getAttribute('aria-hidden'))).map((one) => one.outerHTML)"
    )
    assert nameless == []
    seen = set()
    for _ in range(60):
        for kind in ("rawKeyDown", "keyUp"):
            event = {"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
            explorer.chrome.execute_cdp_cmd("Input.dispatchKeyEvent", event)
        seen.add(explorer.js("return document.activeElement.id || document.activeElement.innerText.trim()"))
    assert {"Skip to the twin", "Tour", "Grating", "cortex", "Lasso", "Mean", "pin", "curl"} <= seen


@pytest.mark.parametrize(
    ("name", "scheme", "width", "height"),
    [("light", "light", 1440, 1180), ("dark", "dark", 1440, 1000), ("phone", "light", 390, 844)],
)
def test_screenshots_for_the_docs(explorer: Explorer, name: str, scheme: str, width: int, height: int) -> None:
    in_use(explorer, width=width, height=height)
    explorer.media(scheme=scheme, calm=True)
    explorer.js("scrollTo(0, 0); document.activeElement.blur()")
    explorer.settle()
    for _ in range(2 if name == "dark" else 0):  # the whole page; the map grows with the window
        explorer.size(width, explorer.js("return document.documentElement.scrollHeight"))
    explorer.settle()
    picture = Image.open(io.BytesIO(explorer.chrome.get_screenshot_as_png())).convert("RGB")
    assert picture.width == width
    if os.environ.get("SCREENSHOTS"):  # `make screenshots`: a test leaves the checkout as it is otherwise
        picture.quantize(256, method=Image.Quantize.FASTOCTREE).save(IMAGES / f"explorer-{name}.png", optimize=True)
