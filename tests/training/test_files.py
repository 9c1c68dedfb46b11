"""Files: a failure leaves what was there, and nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from training import files
from training.errors import CheckpointError
from training.files import check_output, replacing, write_files


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "fsync", full)


@pytest.mark.usefixtures("full_disk")
def test_tables_on_a_full_disk_leave_no_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No space left"):
        write_files(tmp_path / "scores", {"scores.md": "x"})
    assert not (tmp_path / "scores").exists()
    (tmp_path / "kept").mkdir()
    with pytest.raises(CheckpointError, match="No space left"):
        write_files(tmp_path / "kept", {"scores.md": "x"})
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for i in range(2):
        with replacing(output) as folder:
            (folder / f"{i}.txt").write_text("x")
        assert [path.name for path in output.iterdir()] == [f"{i}.txt"]
    link = tmp_path / "link"
    link.symlink_to(output)
    with replacing(link) as folder:
        (folder / "linked.txt").write_text("x")
    assert link.is_symlink()
    assert [path.name for path in output.iterdir()] == ["linked.txt"]

    def interrupted() -> None:
        with replacing(output) as folder:
            (folder / "half.txt").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in output.iterdir()] == ["linked.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rename = tmp_path / "out", Path.rename
    with replacing(output) as folder:
        (folder / "old.txt").write_text("x")

    def fails(path: Path, target: Path) -> Path:
        return full() if path.name.endswith(".new") else rename(path, target)  # type: ignore[func-returns-value]

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(CheckpointError, match="No space left"), replacing(output) as folder:
        (folder / "new.txt").write_text("x")
    assert [path.name for path in output.iterdir()] == ["old.txt"]
    assert list(tmp_path.iterdir()) == [output]


def test_an_output_that_exists_needs_force_and_a_marker(tmp_path: Path) -> None:
    output = tmp_path / "out"
    check_output(output, force=False)
    output.mkdir()
    check_output(output, force=False)
    (output / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="--force to replace it"):
        check_output(output, force=False)
    check_output(output, force=True)
    with pytest.raises(CheckpointError, match=r"a folder of something else; expected a folder with config\.json"):
        check_output(output, force=True, markers=("config.json",))
    (output / "config.json").write_text("{}")
    check_output(output, force=True, markers=("config.json",))
