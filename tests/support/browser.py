"""A headless Chromium, and the explorer in it as a reader uses it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from support.live_server import PATIENCE

__all__ = ["AXE", "Explorer", "browser"]

AXE = Path(__file__).parent / "vendor" / "axe.min.js"

_BY_TEXT = """
const [text, selector] = arguments;
const label = (one) => (one.innerText || one.textContent).trim();
const all = [...document.querySelectorAll(selector)];
return all.find((one) => label(one) === text) ?? all.find((one) => label(one).startsWith(text)) ?? null;
"""
_SLIDE = """
const [label, value] = arguments;
const sliders = [...document.querySelectorAll(".slider")];
const input = sliders.find((one) => one.querySelector(".name").textContent === label).querySelector("input");
Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, value);
input.dispatchEvent(new Event("input", { bubbles: true }));
"""
_GIVE = """
const [selector, event, name, type, bytes] = arguments;
const content = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([content], name, { type }));
const target = document.querySelector(selector);
if (event === "paste") dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer }));
else target.dispatchEvent(new DragEvent(event, { dataTransfer: transfer, bubbles: true, cancelable: true }));
"""


@contextmanager
def browser(downloads: Path, *, traces: bool = False) -> Iterator[webdriver.Chrome]:
    """A Chromium that keeps a log of its console and of its requests, and with `traces` of the tasks of its threads.

    Skips the test where there is none.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        message = "no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if traces:
        options.add_experimental_option("perfLoggingPrefs", {"traceCategories": "toplevel"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        chrome.set_script_timeout(PATIENCE)
        chrome.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        yield chrome
    finally:
        chrome.quit()


class Explorer:
    """The page, by what a reader sees on it."""

    def __init__(self, chrome: webdriver.Chrome, url: str, downloads: Path) -> None:
        self.chrome, self.url, self.downloads = chrome, url.rstrip("/"), downloads
        self.expected_errors: tuple[str, ...] = ()

    def open(self, address: str = "", *, settle: bool = True, width: int = 1440, height: int = 1000) -> None:
        self.size(width, height)
        self.media()
        self.chrome.get("about:blank")  # a new # alone would not load the page again
        self.chrome.get(f"{self.url}/{address}")
        if settle:
            self.settle()

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def media(self, *, scheme: str = "light", calm: bool = False) -> None:
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
        ]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def js(self, script: str, *values: Any) -> Any:
        return self.chrome.execute_script(script, *values)

    def wait(self, script: str, *values: Any, seconds: float = 30) -> Any:
        """Waits until a script returns something true, and returns it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := self.js(script, *values):
                return found
            time.sleep(0.02)
        shown = self.js("return document.body.innerText")
        raise AssertionError(f"never true: {script}\nthe page says:\n{shown}\nconsole: {self.console()}")

    def behavior_curves(self) -> None:
        """Waits for the curves over five behaviour variables; where answers are slow, they do not come unasked."""
        self.wait(
            "[...document.querySelectorAll('.card.wide .run:enabled')].forEach((one) => one.click());"
            "return document.querySelectorAll('.curves:not(.stale) .chart').length === 5",
            seconds=60,
        )

    def settle(self) -> None:
        """Waits until the answer to what is shown now has come."""
        time.sleep(0.05)
        self.wait(
            "const map = document.querySelector('.map:not(.waiting) #cortex');"
            "return document.querySelector('.map.waiting') === null && map?.dataset.answer"
        )

    def click(self, text: str, selector: str = "button") -> None:
        self.js("arguments[0].click()", self.wait(_BY_TEXT, text, selector))

    def slide(self, label: str, value: float) -> None:
        self.js(_SLIDE, label, value)

    def choose(self, label: str, value: str) -> None:
        """Chooses an option of a select by the start of its text."""
        self.wait(
            "const [label, value] = arguments;"
            "const field = [...document.querySelectorAll('label.field')].find((one) => one.firstElementChild.innerText"
            " === label)?.querySelector('select');"
            "const option = [...(field?.options ?? [])].find((one) => one.text.trim().startsWith(value));"
            "if (!option || option.disabled) return false;"
            "field.value = option.value; field.dispatchEvent(new Event('change', { bubbles: true })); return true;",
            label,
            value,
        )

    def give(self, event: str, name: str, kind: str, content: bytes, selector: str = ".stimulus") -> None:
        """Drops or pastes a file."""
        self.js(_GIVE, selector, event, name, kind, base64.b64encode(content).decode())

    def top(self) -> dict[int, float]:
        """The most active neurons as the page shows them, in full precision."""
        rows = self.js(
            "return [...document.querySelectorAll('.most tbody tr')].map((row) =>"
            " [row.querySelector('button').textContent, row.querySelector('[data-response]').dataset.response])"
        )
        return {int(neuron): float(response) for neuron, response in rows}

    def text(self, selector: str = "body") -> str:
        return str(self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def saved(self, name: str) -> bytes:
        """The content of a file that the page offered."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            # Chromium makes an empty file of that name first.
            if (
                (path := self.downloads / name).is_file()
                and path.stat().st_size
                and not any(self.downloads.glob("*.crdownload"))
            ):
                content = path.read_bytes()
                path.unlink()
                return content
            time.sleep(0.02)
        raise AssertionError(f"no {name} among {sorted(path.name for path in self.downloads.iterdir())}")

    def copied(self, name: str) -> str:
        """What a button of "Take it along" copies."""
        self.chrome.execute_cdp_cmd(
            "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        )
        self.js(
            "window.copiedText = null; navigator.clipboard.writeText = async (text) => { window.copiedText = text }"
        )
        self.js("document.querySelector(`[data-copy='${arguments[0]}']`).click()", name)
        return str(self.wait("return window.copiedText"))

    def console(self) -> list[str]:
        """Errors and warnings of the console since the last call, without those that a test expects."""
        messages = [entry["message"] for entry in self.chrome.get_log("browser") if entry["level"] != "INFO"]
        return [text for text in messages if not any(expected in text for expected in self.expected_errors)]

    def hosts(self) -> set[str]:
        """The hosts of all requests since the last call."""
        urls = []
        for entry in self.chrome.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
        return {urlsplit(url).netloc for url in urls if url.startswith(("http:", "https:", "ws:", "wss:"))}

    def main_thread_milliseconds(self) -> list[float]:
        """CPU time of each task of the pages' main threads, of a browser that traces. Leaves the page."""
        self.chrome.get("about:blank")  # the log has a trace once its page is left
        messages = [json.loads(entry["message"])["message"] for entry in self.chrome.get_log("performance")]
        events = [message["params"] for message in messages if message["method"] == "Tracing.dataCollected"]
        main = {
            (event["pid"], event["tid"])
            for event in events
            if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
        }
        tasks = [event for event in events if event["name"] == "ThreadControllerImpl::RunTask"]
        return [task.get("tdur", 0) / 1000 for task in tasks if (task["pid"], task["tid"]) in main]

    def problems(self) -> list[str]:
        """What axe finds serious or critical."""
        self.js(AXE.read_text(encoding="utf-8"))
        found = self.chrome.execute_async_script(
            "const done = arguments[arguments.length - 1]; axe.run().then((result) => done(result.violations))"
        )
        return [
            f"{one['id']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]
