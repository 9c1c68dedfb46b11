"""The private copy that a bundle is served from."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from support.tiny_bundle import write_tiny_bundle

from server.bundle import snapshot
from server.bundle.snapshot import Snapshot, remove_abandoned
from server.errors import BundleError
from server.inference.engine import Engine

_HOLD = """
import sys, time
from pathlib import Path
from server.bundle.manifest import load_manifest
from server.bundle.snapshot import Snapshot
bundle = Path(sys.argv[1])
held = Snapshot(bundle, load_manifest(bundle))
print(held.folder, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_writing_into_a_served_bundle_does_not_change_its_answers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    twin = write_tiny_bundle(tmp_path / "tiny")
    engine = Engine.load(twin.folder, provider="cpu")
    question = twin.draw("A", rng, B=3)
    expected = engine.predict("A", *question)
    for file in twin.manifest.files():
        (twin.folder / file.path).write_bytes(bytes(file.bytes))
        np.testing.assert_array_equal(engine.predict("A", *question), expected)
    np.testing.assert_allclose(expected, twin.answer("A", *question), atol=1e-5)


def test_the_copy_is_private_and_goes_with_the_engine(tmp_path: Path, temporary: Path) -> None:
    twin = write_tiny_bundle(tmp_path / "tiny")
    engine = Engine.load(twin.folder, provider="cpu")
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        file.path for file in twin.manifest.files()
    }
    del engine
    assert not list(temporary.iterdir())


def test_an_engine_that_is_closed_removes_its_copy(tmp_path: Path, temporary: Path) -> None:
    twin = write_tiny_bundle(tmp_path / "tiny")
    kept, closed = (Engine.load(twin.folder, provider="cpu") for _ in range(2))
    closed.close()
    (folder,) = temporary.iterdir()
    del kept
    assert not folder.exists()


def test_a_refused_bundle_leaves_no_copy(tmp_path: Path, temporary: Path) -> None:
    twin = write_tiny_bundle(tmp_path / "tiny")
    (twin.folder / twin.manifest.cores[1].path).write_bytes(b"other")
    with pytest.raises(BundleError, match=r"'tiny': core\.1\.onnx is not the file"):
        Snapshot(twin.folder, twin.manifest)
    assert not list(temporary.iterdir())


def test_a_full_disk_is_named(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = write_tiny_bundle(tmp_path / "tiny")
    original = Path.open

    def full(path: Path, mode: str = "r", **more: object) -> object:
        if "x" in mode:
            raise OSError(28, "No space left on device", str(path))
        return original(path, mode, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(BundleError, match=r"'tiny' cannot be copied into .*: No space left on device.*TMPDIR"):
        Snapshot(twin.folder, twin.manifest)
    assert not list(temporary.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="has no file locks of this kind")
def test_the_copies_of_killed_processes_are_removed_and_those_in_use_kept(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = write_tiny_bundle(tmp_path / "tiny")
    command = [sys.executable, "-c", _HOLD, str(twin.folder)]
    holders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    try:
        folders = [Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout]
        holders[0].kill()
        holders[0].wait()
        old = time.time() - 2 * snapshot._YOUNG
        for folder in folders:
            assert folder.is_dir()
            os.utime(folder, (old, old))
        remove_abandoned()
        assert not folders[0].exists()
        assert folders[1].is_dir()
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
            if holder.stdout:
                holder.stdout.close()
