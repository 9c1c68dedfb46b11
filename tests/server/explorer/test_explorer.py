"""The explorer in a real browser: what a reader does with it, and that its numbers are the API's."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from support.browser import Explorer
from support.checkout import ROOT

pytestmark = pytest.mark.slow

LEAVES = (ROOT / "docs" / "images" / "leaves.png").read_bytes()


def ask(page: Explorer, image: bytes = LEAVES, route: str = "predict", **fields: Any) -> dict[str, Any]:
    """The API's own answer, from the picture file or .npy."""
    form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    reply = httpx.post(f"{page.url}/{route}", data={"mouse": "SIM1", **form}, files={"image": image})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def agree(page: Explorer, answer: dict[str, Any]) -> None:
    """Whether the page's most active neurons are the API's, to the last digit."""
    responses = dict(zip(answer["neuron_ids"], answer["responses"][0], strict=True))
    best = sorted(responses.values(), reverse=True)[:8]
    top = page.top()
    np.testing.assert_allclose(list(top.values()), best, rtol=1e-5)
    np.testing.assert_allclose([responses[neuron] for neuron in top], list(top.values()), rtol=1e-5)


def npy(page: Explorer) -> bytes:
    """The image that the page shows, as it offers it."""
    page.js("document.querySelector('[data-save=npy]').click()")
    return page.saved("stimulus.npy")


def pick(page: Explorer, x: float, y: float, *more: tuple[float, float], shift: bool = False) -> None:
    """Presses on the map at a share of its size, moves along further points, and lets go."""
    page.js("document.querySelector('#cortex').scrollIntoView({ block: 'center' })")
    left, top, width, height = page.js(
        "const box = document.querySelector('#cortex').getBoundingClientRect();"
        "return [box.left, box.top, box.width, box.height]"
    )
    points = [(left + width * a, top + height * b) for a, b in ((x, y), *more)]

    def mouse(kind: str, at: tuple[float, float]) -> None:
        event = {"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1, "modifiers": 8 * shift}
        page.chrome.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    mouse("mousePressed", points[0])
    for point in points[1:]:
        mouse("mouseMoved", point)
    mouse("mouseReleased", points[-1])


def test_it_shows_an_answer_at_once_and_says_what_is_simulated(explorer: Explorer) -> None:
    explorer.open()
    assert "simulated" in explorer.text("header")
    assert "150 neurons" in explorer.text("header")
    assert len(explorer.top()) == 8
    agree(explorer, ask(explorer, npy(explorer)))
    assert "filled in (median)" in explorer.text(".behavior")


def test_a_picture_that_is_dropped_pasted_or_picked_is_answered_like_the_file_itself(explorer: Explorer) -> None:
    answer = ask(explorer)
    for event in ("drop", "paste"):
        explorer.open()
        explorer.give(event, "leaves.png", "image/png", LEAVES)
        explorer.wait("return document.querySelector('.stimulus').innerText.includes('leaves.png')")
        explorer.settle()
        agree(explorer, answer)
    explorer.open()
    explorer.click("Example")
    explorer.wait("return document.querySelector('.stimulus').innerText.includes('leaves.png')")
    explorer.settle()
    agree(explorer, answer)
    np.testing.assert_array_equal(
        np.load(io.BytesIO(npy(explorer)))[0, 0], np.asarray(Image.open(io.BytesIO(LEAVES)).convert("L"))
    )


def test_sliders_of_a_grating_change_what_is_asked(explorer: Explorer) -> None:
    explorer.open()
    explorer.click("Grating")
    for orientation, contrast in ((0, 1.0), (90, 0.5)):
        explorer.slide("Orientation", orientation)
        explorer.slide("Contrast", contrast)
        explorer.settle()
        image = np.load(io.BytesIO(npy(explorer)))
        assert image.shape == (1, 1, 144, 256)
        varies_along = (image[0, 0].std(0).max(), image[0, 0].std(1).max())  # down, across
        assert (varies_along[0] > 1) == (orientation == 0)  # horizontal bars change from row to row
        assert (varies_along[1] > 1) == (orientation == 90)
        assert abs(int(image.max()) - (128 + 127 * contrast)) <= 1
        agree(explorer, ask(explorer, npy(explorer)))


def test_behaviour_that_is_set_is_sent_and_the_rest_is_left_to_the_state(explorer: Explorer) -> None:
    explorer.open()
    explorer.click("Example")
    explorer.slide("Running speed", 20)
    explorer.slide("Gaze, across", 340)
    explorer.settle()
    detail = httpx.get(f"{explorer.url}/mice/SIM1").json()
    y = detail["pupil_center"][1]["median"]
    agree(explorer, ask(explorer, running_speed=20, pupil_center=[340, y]))
    explorer.click("Mean")
    explorer.settle()
    agree(explorer, ask(explorer, state="mean"))
    assert "filled in (mean)" in explorer.text(".behavior")
    for state in detail["states"]:
        explorer.click(state["name"].capitalize())
        explorer.settle()
        agree(explorer, ask(explorer, state=state["name"]))


def test_notes_about_the_input_are_shown_in_the_servers_words(explorer: Explorer) -> None:
    explorer.open()
    explorer.click("Example")
    explorer.slide("Running speed", 60)
    explorer.settle()
    (note,) = ask(explorer, running_speed=60)["notes"]
    assert note["message"] in explorer.text(".behavior")


def test_a_click_selects_a_neuron_and_its_gradient_is_the_apis(explorer: Explorer) -> None:
    explorer.open()
    explorer.click("Example")
    explorer.settle()
    neuron = next(iter(explorer.top()))
    explorer.click(str(neuron), ".most button")
    explorer.wait("return document.querySelector('#neuron h2').innerText.startsWith('Neuron ')")
    assert f"Neuron {neuron}" in explorer.text("#neuron h2")
    explorer.click("What would make it respond more")
    explorer.wait("return !document.querySelector('.layer').classList.contains('hidden')")
    answer = ask(explorer, route="gradient", neuron_ids=[neuron], weights=[1])
    gradient = np.asarray(answer["gradient"]["image"])[0, 0]
    row, column = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
    r, _, b, alpha = explorer.js(
        "const [x, y] = arguments;"
        "return [...document.querySelector('.layer').getContext('2d').getImageData(x, y, 1, 1).data]",
        int(column),
        int(row),
    )
    assert alpha == 255  # the largest derivative is the most opaque
    assert (r > b) == (gradient[row, column] > 0)  # orange above zero, blue below
    image, layer = explorer.js(
        "return ['#screen', '.screen .layer'].map((one) => document.querySelector(one).getBoundingClientRect())"
        ".map(({ x, y, width, height }) => [x, y, width, height])"
    )
    assert layer == pytest.approx(image, abs=0.5)  # it lies on the image
    pick(explorer, 0.03, 0.5)  # where no neuron is
    explorer.wait("return document.querySelector('#neuron h2').innerText === 'One neuron'")


def test_where_a_neuron_looks_is_marked_on_the_image_and_colours_the_map(explorer: Explorer) -> None:
    explorer.open()
    table = httpx.get(f"{explorer.url}/mice/SIM1/neurons").json()
    neuron = next(iter(explorer.top()))
    explorer.click(str(neuron), ".most button")
    x, y = table["readout_position_px"][table["neuron_ids"].index(neuron)]
    left, top, width, height = explorer.wait(
        "const cross = document.querySelector('.looks .dot')?.getBoundingClientRect();"
        "const image = document.querySelector('#screen').getBoundingClientRect();"
        "return cross && [cross.left + cross.width / 2 - image.left, cross.top + cross.height / 2 - image.top,"
        " image.width, image.height]"
    )
    assert (left, top) == (
        pytest.approx((x + 0.5) / 256 * width, abs=1),
        pytest.approx((y + 0.5) / 144 * height, abs=1),
    )
    assert f"{x:.3g}, {y:.3g} px of the image" in explorer.text(".facts")
    for label, k in (("where it looks, across", 0), ("where it looks, down", 1)):
        explorer.choose("Colour", label)
        explorer.wait("return document.querySelector('.legend').innerText.includes('screen [px]')")
        column = [position[k] for position in table["readout_position_px"]]
        assert explorer.text(".legend").split()[:2] == [f"{min(column):.3g}", f"{max(column):.3g}"]


def test_the_score_stands_beside_its_noise_ceiling(explorer: Explorer) -> None:
    explorer.open()
    table = httpx.get(f"{explorer.url}/mice/SIM1/neurons").json()
    neuron = next(iter(explorer.top()))
    explorer.click(str(neuron), ".most button")
    explorer.wait("return document.querySelector('[data-ceiling]')")
    row = table["neuron_ids"].index(neuron)
    fev, feve, score = (table["scores"][name][row] for name in ("fev", "feve", "single_trial_correlation"))
    words = explorer.text("[data-ceiling]")
    assert f"correlate at {np.sqrt(fev):.3g} with single trials" in words
    assert f"the twin's correlate at {score:.3g}" in words
    assert f"explains {100 * feve:.3g} %" in words
    assert ("exceed the ceiling" in words) == (score > np.sqrt(fev) or feve > 1)


def test_the_map_is_used_by_mouse_lasso_and_keyboard(explorer: Explorer) -> None:
    explorer.open()
    pick(explorer, 0.01, 0.01, (0.99, 0.01), (0.99, 0.5), (0.99, 0.99), (0.01, 0.99), (0.01, 0.5), shift=True)
    explorer.wait("return document.querySelector('#neuron h2').innerText === '150 neurons'")
    explorer.click("Lasso")
    pick(explorer, 0.01, 0.01, (0.5, 0.01), (0.5, 0.5), (0.5, 0.99), (0.01, 0.99), (0.01, 0.5))
    explorer.wait("return /^\\d+ neurons$/.test(document.querySelector('#neuron h2').innerText)")
    half = int(explorer.text("#neuron h2").split()[0])
    assert 30 < half < 120
    explorer.js("document.querySelector('#cortex').focus()")
    for key in ("Escape", "ArrowRight", "ArrowRight", "ArrowDown"):
        for kind in ("keyDown", "keyUp"):
            explorer.chrome.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key, "code": key})
    explorer.wait("return document.querySelector('#neuron h2').innerText.startsWith('Neuron ')")


def test_experiments_on_a_neuron_agree_with_the_api(explorer: Explorer) -> None:
    explorer.open()
    explorer.click("Example")
    explorer.settle()
    neuron = next(iter(explorer.top()))
    explorer.click(str(neuron), ".most button")
    explorer.click("Measure with 48 gratings")
    preferred = float(explorer.wait("return document.querySelector('[data-preferred]')?.dataset.preferred", seconds=60))
    explorer.choose("Colour", "preferred orientation")
    explorer.click("Grating")
    curve = []
    for orientation in range(0, 180, 15):
        explorer.slide("Orientation", orientation)
        responses = []
        for phase in (0, 90, 180, 270):
            explorer.slide("Phase", phase)
            explorer.settle()
            responses.append(ask(explorer, npy(explorer), neuron_ids=[neuron])["responses"][0][0])
        curve.append(np.mean(responses))
    angles = np.deg2rad(2 * np.arange(0, 180, 15))
    level = np.asarray(curve) - min(0, *curve)
    expected = np.rad2deg(np.angle((level * np.exp(1j * angles)).sum())) / 2 % 180
    assert abs((preferred - expected + 90) % 180 - 90) < 0.1
    explorer.click("Example")
    explorer.settle()
    explorer.behavior_curves()
    explorer.click("Map with")
    explorer.wait("return document.querySelector('.field-map')", seconds=90)
    explorer.choose("Colour", "receptive field, across")
    explorer.click("Attention")
    explorer.wait("return !document.querySelector('.layer').classList.contains('hidden')")


def test_a_and_b_differ_as_the_apis_answers_do(explorer: Explorer) -> None:
    explorer.open()
    explorer.click("Example")
    explorer.settle()
    explorer.js("document.querySelector('#pin').click()")
    explorer.slide("Running speed", 25)
    explorer.settle()
    shown = float(
        explorer.wait(
            "const difference = document.querySelector('[data-mean-difference]')?.dataset.meanDifference;"
            "return Math.abs(difference) > 0 && difference"
        )
    )
    a, b = (np.asarray(ask(explorer, **more)["responses"]) for more in ({"running_speed": 25}, {}))
    assert shown == pytest.approx(float((a - b).mean()), rel=1e-4)
    explorer.choose("Show the same to", "SIM2")
    explorer.wait("return document.querySelector('.other')?.innerText.includes('SIM2')")
    other = np.mean(ask(explorer, mouse="SIM2", running_speed=25)["responses"])
    assert f"{other:.3g}" in explorer.text(".other")


def test_what_is_taken_along_says_the_same_as_the_page(explorer: Explorer) -> None:
    explorer.open()
    explorer.click("Example")
    explorer.slide("Running speed", 12.4)
    explorer.settle()
    answer = ask(explorer, running_speed=12.4)
    curl = subprocess.run(["bash", "-c", explorer.copied("curl")], capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(json.loads(curl)["responses"], answer["responses"], rtol=1e-5)
    code = explorer.copied("Python")
    python = subprocess.run(
        [sys.executable, "-c", code + "print(prediction.responses.tolist())"],
        capture_output=True,
        text=True,
        check=True,
    )
    np.testing.assert_allclose(json.loads(python.stdout.splitlines()[-1]), answer["responses"], rtol=1e-5)
    assert "webwrite" in explorer.copied("MATLAB")

    explorer.click("Data, CSV")
    lines = explorer.saved("twin-SIM1-picture.csv").decode().splitlines()
    facts = "\n".join(line for line in lines if line.startswith("#"))
    for fact in ("Simulated", "SIM1", "demo", answer["model"]["hash"], "median", "running_speed 12.4"):
        assert fact in facts
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [int(row["neuron_id"]) for row in rows] == answer["neuron_ids"]
    np.testing.assert_allclose([float(row["response"]) for row in rows], answer["responses"][0], rtol=1e-5)
    looks = httpx.get(f"{explorer.url}/mice/SIM1/neurons").json()["readout_position_px"]
    np.testing.assert_allclose([[float(row[f"readout_{axis}_px"]) for axis in "xy"] for row in rows], looks, rtol=1e-5)

    explorer.click("Figure, SVG")
    svg = explorer.saved("twin-SIM1-picture.svg").decode()
    assert len(re.findall(r"M[\d.]+ [\d.]+h0", svg)) == 150  # a disc each
    assert answer["model"]["hash"] in svg
    assert "Simulated" in svg
    explorer.click("Figure, PNG")
    assert Image.open(io.BytesIO(explorer.saved("twin-SIM1-picture.png"))).width == 1740

    top, link = explorer.top(), explorer.copied("link")
    explorer.chrome.get("about:blank")
    explorer.chrome.get(link)
    explorer.settle()
    explorer.wait("return document.querySelector('.stimulus').innerText.includes('leaves.png')")
    explorer.settle()
    assert explorer.top() == top


def test_a_column_of_the_reader_colours_the_map(explorer: Explorer) -> None:
    explorer.open()
    ids = ask(explorer)["neuron_ids"]
    content = "neuron_id,depth of tuning\n" + "\n".join(f"{neuron},{i / 10}" for i, neuron in enumerate(ids[:40]))
    set_file = (
        "const [selector, text] = arguments; const transfer = new DataTransfer();"
        "transfer.items.add(new File([text], 'mine.csv')); const input = document.querySelector(selector);"
        "input.files = transfer.files; input.dispatchEvent(new Event('change', { bubbles: true }))"
    )
    explorer.js(set_file, ".coloring input", content)
    explorer.wait("return document.querySelector('.legend').innerText.includes('depth of tuning')")
    explorer.js(set_file, ".coloring input", "this,is\nno,table")
    explorer.wait("return document.querySelector('.coloring').innerText.includes('no row')")


def test_the_tour_has_three_steps_and_ends(explorer: Explorer) -> None:
    explorer.open()
    explorer.click("Tour")
    for step in ("1 of 3", "2 of 3", "3 of 3"):
        explorer.wait("return document.querySelector('.tour')?.innerText.includes(arguments[0])", step)
        explorer.click("Done" if step == "3 of 3" else "Next")
    explorer.wait("return document.querySelector('.tour') === null")
