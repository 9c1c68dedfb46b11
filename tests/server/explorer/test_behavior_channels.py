"""The explorer on a mouse that was recorded with other behaviour channels than those of Sensorium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from selenium import webdriver
from support.browser import Explorer
from support.live_server import serving
from support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.slow

CHANNELS = (("whisking", "std"), ("running_speed", "cm/s"), ("arousal_index", "1"), ("lick_rate", "1/s"))


@pytest.fixture(scope="module")
def page(chrome: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Explorer]:
    folder = tmp_path_factory.mktemp("channels")
    write_tiny_bundle(
        folder / "bundles" / "four",
        mice=("W1",),
        shape=(1, 32, 48),
        n_neurons=12,
        behavior=CHANNELS,
        ranges=True,
    )
    with serving(folder / "bundles", folder, V1T_THREADS="1") as server:
        server.wait_for("/readyz", 200)
        yield Explorer(chrome, server.url, downloads)


def test_each_channel_has_a_slider_with_its_unit_and_changes_the_answer(page: Explorer) -> None:
    page.open()
    for name, unit in (("Whisking", "std"), ("Running speed", "cm/s"), ("Arousal index", ""), ("Lick rate", "1/s")):
        assert name in page.text(".behavior")
        assert unit in page.text(".behavior")
    page.slide("Arousal index", 5)
    assert "5 1" not in page.text(".behavior")
    page.slide("Running speed", 2)
    page.settle()
    page.js("document.querySelector('[data-save=npy]').click()")
    image = page.saved("stimulus.npy")
    form = {"mouse": "W1", "behavior": json.dumps({"arousal_index": 5, "running_speed": 2})}
    answer = httpx.post(f"{page.url}/predict", data=form, files={"image": image}).json()
    expected = dict(zip(answer["neuron_ids"], answer["responses"][0], strict=True))
    top = page.top()
    np.testing.assert_allclose([expected[neuron] for neuron in top], list(top.values()), rtol=1e-5)
    assert '"arousal_index":5' in page.copied("curl")
    assert '"arousal_index":5' in page.copied("Python")
    assert "question.behavior.arousal_index = 5;" in page.copied("MATLAB")
