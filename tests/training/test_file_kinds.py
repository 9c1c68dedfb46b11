"""Kinds of files: recognised by what is in them, whatever they are called."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from training.file_kinds import HEAD, broken_link, head_of, kind_of


def _of(write: object, *arguments: object) -> bytes:
    stream = io.BytesIO()
    write(stream, *arguments)  # type: ignore[operator]
    return stream.getvalue()


def _tar(stream: io.BytesIO) -> None:
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))


def _zip(stream: io.BytesIO) -> None:
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x", "x")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
        (b"/annex/objects/MD5-s1234567-d41d8cd98f00b204e9800998ecf8427e\n", "a git-annex pointer"),
        (b"../../.git/annex/objects/x/y/z", "a git-annex pointer"),
        (b"\n\n<!doctype HTML>\n<html>", "an HTML page"),
        (b"<!-- saved -->\n<html lang=en>", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML document"),
        (json.dumps({"message": "Not Found"}).encode(), "a JSON document"),
        (b"", "empty"),
        (_of(np.save, np.arange(3)), "a .npy array"),
        (_of(_zip), "a zip file"),
        (_of(lambda stream: torch.save({"x": torch.ones(2)}, stream)), "a zip file"),
        (pickle.dumps({"x": 1}), "a Python pickle"),
        (gzip.compress(b"x"), "a gzip file"),
        (_of(_tar), "a tar file"),
        (save({"x": torch.ones(2)}), "a safetensors file"),
        (b"\x89HDF\r\n\x1a\n...", "an HDF5 file"),
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "a MATLAB file"),
    ],
    ids=range(17),  # not the bytes: some hold the time, and differ between the processes of a run
)
def test_files_are_named_by_their_first_bytes(content: bytes, name: str) -> None:
    kind = kind_of(content[:HEAD])
    assert kind is not None
    assert kind.name.startswith(name)


@pytest.mark.parametrize("content", [b"version 2\n", b"hello", bytes(600), np.arange(200.0).tobytes()], ids=range(4))
def test_other_bytes_are_not_guessed(content: bytes) -> None:
    assert kind_of(content[:HEAD]) is None


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    for target, name in (("/mnt/lab/x", "a link to /mnt/lab/x, which"), (".git/annex/objects/x", "a git-annex link")):
        os.symlink(target, tmp_path / "link")
        kind = broken_link(tmp_path / "link")
        assert kind is not None
        assert kind.name.startswith(name)
        (tmp_path / "link").unlink()
    os.symlink(tmp_path / "file", tmp_path / "link")
    assert broken_link(tmp_path / "link") is None
    assert broken_link(tmp_path / "none") is None
    assert head_of(tmp_path / "link") == b"x" * HEAD
