"""Exports that are killed or find the disk full: the old bundle or the new one, whole, and nothing left over."""

from __future__ import annotations

import builtins
import errno
import io
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_mouse

from server.bundle.manifest import load_manifest
from server.bundle.snapshot import Snapshot
from server.serving.discovery import find_bundles
from training.__main__ import main
from training.checkpoints.checkpoint import save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")]

KILLS = 30  # of exports that are still running; some end just before


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One mouse and few graphs: quick to export."""
    config = tiny_config({"kind": "cnn", "n_layers": 1}, behavior="none")
    return save_checkpoint(tmp_path / "checkpoint", tiny_checkpoint(config, [tiny_mouse("A")]))


@pytest.fixture
def bundle(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "served" / "twin"
    assert main(export_of(checkpoint, folder, "old")) == 0
    return folder


def export_of(checkpoint: Path, bundle: Path, name: str) -> list[str]:
    return ["export", str(checkpoint), "--output", str(bundle), "--name", name, "--no-gradients", "--force"]


def whole(bundle: Path) -> str:
    """The name of the bundle, after a check of every file. A server finds it, and nothing else."""
    assert find_bundles([bundle.parent]) == [bundle]
    manifest = load_manifest(bundle)
    Snapshot(bundle, manifest)  # verifies each file
    named = {file.path for file in manifest.files()} | {"manifest.json"}
    assert {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()} == named
    return manifest.name


def test_an_export_that_is_killed_leaves_the_old_bundle_or_the_new_one(checkpoint: Path, bundle: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.__main__", "training.export.bundle"])  # as torch takes seconds to import

    def start(name: str) -> Any:
        process = context.Process(target=main, args=(export_of(checkpoint, bundle, name),))
        process.start()
        return process

    start("warm").join()  # the server of forks is up
    started = time.monotonic()
    start("before").join()
    seconds = time.monotonic() - started
    rng = np.random.default_rng(0)
    killed = attempts = 0
    before = "before"
    while killed < KILLS:
        attempts += 1
        assert attempts <= 4 * KILLS, f"only {killed} exports of {attempts} were still running when they were killed"
        process = start(f"new-{attempts}")
        if attempts % 2:
            time.sleep(rng.uniform(0, seconds))
        else:  # when all but the last step is done
            while process.is_alive() and not list(bundle.parent.glob(f".*-{process.pid}.new/manifest.json")):
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        after = whole(bundle)
        assert after in (before, f"new-{attempts}")
        before = after
    assert main(export_of(checkpoint, bundle, "again")) == 0
    assert whole(bundle) == "again"
    assert [path.name for path in bundle.parent.iterdir()] == ["twin"]


def test_a_full_disk_leaves_the_old_bundle(checkpoint: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    for tenths in range(10):
        with full_after(size * tenths // 10, bundle.parent):
            assert main(export_of(checkpoint, bundle, "new")) == 1
        assert f"cannot write bundle {bundle}: No space left on device" in capsys.readouterr().err
        assert whole(bundle) == "old"
        assert [path.name for path in bundle.parent.iterdir()] == ["twin"]


@contextmanager
def full_after(n_bytes: int, folder: Path) -> Iterator[None]:
    """Files in the folder take this many bytes in all; then its disk is full."""
    left = n_bytes
    opened = builtins.open

    class Limited:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

        def __enter__(self) -> Limited:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def write(self, content: Any) -> int:
            nonlocal left
            left -= len(content)
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.stream.write(content))

    def limited(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = opened(path, mode, *args, **kwargs)
        inside = isinstance(path, str | Path) and Path(path).is_relative_to(folder)
        return Limited(stream) if inside and mode[0] in "wxa" else stream

    with pytest.MonkeyPatch.context() as patch:
        for module in (builtins, io):
            patch.setattr(module, "open", limited)
        yield
