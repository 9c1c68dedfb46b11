"""Files: a failure leaves what was there, and nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from training import files
from training.errors import CheckpointError
from training.files import check_output, write_files


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
