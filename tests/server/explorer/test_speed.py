"""How fast the explorer is with the 7,538 neurons of a real twin. Measures and prints; asserts no time."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from support.browser import Explorer, browser
from support.live_server import serving

pytestmark = pytest.mark.slow

POSITIONS = 40
_SLIDE = """
const done = arguments[arguments.length - 1];
const positions = arguments[0];
(async () => {
  const slider = [...document.querySelectorAll(".slider")].find((one) => one.innerText.startsWith("Orientation"));
  const input = slider.querySelector("input");
  const frame = () => new Promise(requestAnimationFrame);
  const drawn = () => performance.getEntriesByName("map drawn")[0]?.startTime ?? 0;
  const times = [];
  for (let k = 0; k < positions; k += 1) {
    const answer = document.querySelector("#cortex").dataset.answer;
    const start = performance.now();
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, 5 * (k % 36));
    input.dispatchEvent(new Event("input", { bubbles: true }));
    while (document.querySelector("#cortex").dataset.answer === answer) await frame();
    const answered = performance.now();
    while (drawn() < start) await frame();
    times.push(Math.max(drawn(), answered) - start);
  }
  done(times);
})();
"""
_FRAMES = """
const done = arguments[arguments.length - 1];
(async () => {
  const canvas = document.querySelector("#cortex");
  const times = [];
  let last = await new Promise(requestAnimationFrame);
  for (let k = 0; k < 120; k += 1) {
    canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: k < 60 ? -12 : 12, cancelable: true, bubbles: true }));
    const now = await new Promise(requestAnimationFrame);
    times.push(now - last);
    last = now;
  }
  done(times);
})();
"""
_LONG = """
window.longTasks = [];
new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map(({ duration }) => duration)))
  .observe({ type: "longtask", buffered: true });
"""


class LongTasks:
    """Tasks of the main thread over 50 ms, by what was done meanwhile."""

    def __init__(self, page: Explorer) -> None:
        self.page = page
        self.lines: list[str] = []

    def after(self, what: str) -> None:
        time.sleep(0.3)
        found = self.page.js("const found = window.longTasks; window.longTasks = []; return found")
        longest = f", the longest {max(found):.0f} ms" if found else ""
        self.lines.append(f"main thread, {what}: {len(found)} tasks over 50 ms{longest}")


def select_all(page: Explorer) -> None:
    """A lasso around all neurons."""
    page.js("document.querySelector('#cortex').scrollIntoView({ block: 'center' })")
    left, top, width, height = page.js(
        "const box = document.querySelector('#cortex').getBoundingClientRect();"
        "return [box.left, box.top, box.width, box.height]"
    )
    around = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.5), (0.99, 0.99), (0.5, 0.99), (0.01, 0.99), (0.01, 0.5)]
    kinds = ["mousePressed", *["mouseMoved"] * 5, "mouseReleased"]
    for kind, (x, y) in zip(kinds, around, strict=True):
        event = {"type": kind, "x": left + width * x, "y": top + height * y, "button": "left", "clickCount": 1}
        page.chrome.execute_cdp_cmd("Input.dispatchMouseEvent", {**event, "modifiers": 8})
    page.wait("return document.querySelector('#neuron h2').innerText === '7538 neurons'")


def model_seconds(url: str) -> tuple[float, float]:
    """Sum of the engine's time, and the number of its runs."""
    text = httpx.get(f"{url}/metrics").text
    total, count = (re.findall(rf"^v1t_compute_seconds_{name}\S* (\S+)$", text, re.M) for name in ("sum", "count"))
    return sum(map(float, total)), sum(map(float, count))


def test_speed_with_thousands_of_neurons(
    reference_bundle: Callable[[str], Path], tmp_path: Path, downloads: Path
) -> None:
    bundle = reference_bundle("sensorium_p_sota_model")
    with browser(downloads, traces=True) as chrome, serving(bundle, tmp_path, V1T_THREADS="1") as server:
        server.wait_for("/readyz", 200)
        page = Explorer(chrome, server.url, downloads)
        chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _LONG})
        chrome.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
        page.open()
        paint = page.js("return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN")
        first = page.js("return performance.getEntriesByName('map drawn')[0].startTime")
        assert "7,538" in page.text("header")
        tasks = LongTasks(page)
        tasks.after("opening the page")
        page.click("Grating")
        page.settle()
        before = model_seconds(server.url)
        times = sorted(chrome.execute_async_script(_SLIDE, POSITIONS))
        after = model_seconds(server.url)
        model = 1000 * (after[0] - before[0]) / (after[1] - before[1])
        frames = sorted(chrome.execute_async_script(_FRAMES))
        tasks.after("40 positions of a slider, and zooming")
        page.click(str(next(iter(page.top()))), ".most button")
        page.settle()
        tasks.after("one neuron")
        page.js("document.querySelector('#pin').click()")
        page.slide("Orientation", 50)
        page.settle()
        tasks.after("the difference to B")
        page.click("Measure with 48 gratings")
        page.wait("return document.querySelector('[data-preferred]')", seconds=120)
        page.choose("Colour", "preferred orientation")
        tasks.after("orientation tuning of all neurons")
        page.click("Map with")
        page.wait("return document.querySelector('.field-map')", seconds=300)
        page.choose("Colour", "receptive field, across")
        tasks.after("receptive fields of all neurons")
        select_all(page)
        page.settle()
        tasks.after("a lasso around all neurons")
        for words, name in (("Data, CSV", "csv"), ("Figure, SVG", "svg"), ("Figure, PNG", "png")):
            page.click(words)
            page.saved(f"twin-S1-grating.{name}")
            tasks.after(f"a {name.upper()} file")
        cpu = sorted(page.main_thread_milliseconds())
    median = statistics.median(times)
    print(f"first paint {paint:.0f} ms, first map drawn {first:.0f} ms")
    print(f"slider to picture: median {median:.0f} ms, 95% {times[int(0.95 * len(times))]:.0f} ms")
    print(f"the model {model:.0f} ms a run; over the model's own time: {median - model:.0f} ms")
    print(f"zooming: median {statistics.median(frames):.1f} ms a frame, 95% {frames[int(0.95 * len(frames))]:.1f} ms")
    print("\n".join(tasks.lines))
    long = sum(one > 50 for one in cpu)
    print(f"main thread, CPU time alone: {long} of {len(cpu)} tasks over 50 ms, the longest {cpu[-1]:.0f} ms")
