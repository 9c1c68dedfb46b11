"""A folder that is replaced is the old one or the new one, whole, whatever happens in between."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training import replacing as module
from training.replacing import replacing


def write(folder: Path, content: str) -> None:
    with replacing(folder) as new:
        (new / "inside").mkdir()
        (new / "inside" / "file").write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    write(path, "old")
    return path


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_replaced_and_nothing_is_left(folder: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swaps:
        monkeypatch.setattr(module, "_swap", lambda one, other: False)
    (folder / "other").write_text("removed with the old folder")
    write(folder, "new")
    assert contents(folder) == {"inside/file": "new"}
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    assert folder.stat().st_mode & 0o500 == 0o500


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other calls")
def test_the_folder_is_there_at_every_moment(folder: Path) -> None:
    before = folder.stat().st_ino
    other = folder.with_name("other")
    other.mkdir()
    assert module._swap(other, folder)
    assert other.stat().st_ino == before
    with pytest.raises(FileNotFoundError):
        module._swap(other, folder.with_name("missing"))


@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("fails", ["in the block", "flush", "rename"])
def test_an_error_leaves_the_old_folder(folder: Path, fails: str, swaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if not swaps:
        monkeypatch.setattr(module, "_swap", lambda one, other: False)
    if fails == "flush":
        monkeypatch.setattr(module, "_flush", full)
    if fails == "rename":
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda a, b: full() if a.suffix == ".new" else rename(a, b))
        if swaps:
            monkeypatch.setattr(module, "_swap", full)
    if fails == "in the block":
        monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write(folder, "new")
    assert contents(folder) == {"inside/file": "old"}
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_leftovers_of_dead_processes_are_removed_and_those_of_others_stay(folder: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    prefix = module._prefix(folder)
    left = [folder.with_name(f"{prefix}{dead.pid}.{kind}") for kind in ("new", "old")]
    others = [
        folder.with_name(f"{prefix}{os.getppid()}.new"),  # of a process that runs
        folder.with_name(f".bundle.another-machine-{dead.pid}.new"),
        folder.with_name(f".bundle2.{dead.pid}.new"),
        folder.with_name(f"{prefix}{dead.pid}.notes"),
    ]
    for path in (*left, *others):
        path.mkdir()
        (path / "file").write_text("...")
    write(folder, "new")
    assert sorted(folder.parent.iterdir()) == sorted([folder, *others])


def test_a_kill_between_two_renames_is_repaired(folder: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder.rename(folder.with_name(f"{module._prefix(folder)}{dead.pid}.old"))
    with pytest.raises(KeyboardInterrupt), replacing(folder):
        raise KeyboardInterrupt
    assert contents(folder) == {"inside/file": "old"}


def test_a_link_stays_and_what_it_leads_to_is_replaced(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    write(link, "new")
    assert link.is_symlink()
    assert contents(folder) == {"inside/file": "new"}
    shutil.rmtree(folder)
    write(link, "again")  # a link to nothing yet
    assert contents(folder) == {"inside/file": "again"}
