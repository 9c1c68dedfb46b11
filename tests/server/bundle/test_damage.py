"""Damaged bundles: each is refused by name, in bounded time and memory."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.damaged_bundle import damage
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.errors import BundleError
from server.inference.engine import Engine

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="makes pipes and links")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    return write_tiny_bundle(tmp_path_factory.mktemp("whole") / "whole")


def refuse(whole: TinyTwin, folder: Path, seed: int) -> None:
    shutil.copytree(whole.folder, folder)
    twin = TinyTwin(folder, whole.manifest, whole.mice, whole.core_weights, whole.core_behavior)
    done = damage(twin, np.random.default_rng(seed))
    start = time.monotonic()
    try:
        with pytest.raises(BundleError) as refused:
            Engine.load(folder, provider="cpu", threads=1).warm_up()
    except BaseException:
        print(f"seed {seed}: {done}")
        raise
    assert time.monotonic() - start < 5, done
    assert done.split(":")[0] in str(refused.value), (done, str(refused.value))
    shutil.rmtree(folder)


def refuse_all(whole: TinyTwin, folder: Path, seeds: range) -> None:
    before = psutil.Process().memory_info().rss
    for seed in seeds:
        refuse(whole, folder / str(seed), seed)
    assert psutil.Process().memory_info().rss - before < 200e6


def test_damaged_bundles_are_refused_by_name(whole: TinyTwin, tmp_path: Path) -> None:
    refuse_all(whole, tmp_path, range(300))


@pytest.mark.slow
def test_thousands_of_damaged_bundles_are_refused_by_name(whole: TinyTwin, tmp_path: Path) -> None:
    refuse_all(whole, tmp_path, range(1000, 3000))
