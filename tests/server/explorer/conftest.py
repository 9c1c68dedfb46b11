"""The explorer in a browser, on the demo twin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from support.browser import Explorer, browser
from support.live_server import Server


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chrome(downloads: Path) -> Iterator[webdriver.Chrome]:
    with browser(downloads) as driver:
        yield driver


@pytest.fixture
def explorer(chrome: webdriver.Chrome, demo_server: Server, downloads: Path) -> Iterator[Explorer]:
    """The page on the demo twin. Afterwards: nothing in the console, and no request to another host."""
    page = Explorer(chrome, demo_server.url, downloads)
    page.console()
    page.hosts()
    yield page
    assert page.console() == []
    assert page.hosts() <= {demo_server.url.removeprefix("http://")}
