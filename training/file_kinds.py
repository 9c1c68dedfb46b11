"""What a file is, from its first bytes: so that an error names what was found in place of an array or of weights."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HEAD", "Kind", "broken_link", "head_of", "kind_of"]

HEAD = 512  # bytes that are enough for `kind_of`


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: such as "a Git LFS pointer".
        hint: what to do if another kind was expected.
    """

    name: str
    hint: str | None = None


_LFS = Kind(
    "a Git LFS pointer, not the file itself",
    "Run `git lfs pull` in its repository: it downloads the file.",
)
_ANNEX = Kind(
    "a git-annex pointer, not the file itself",
    "Run `git annex get` (or `datalad get`) on it: it downloads the file.",
)
_PAGE = Kind(
    "an HTML page, not the file itself",
    "A server sent a page, such as a login, in place of the file: log in and download the file again.",
)
# Checked in this order. The first bytes of each kind, after white space for those that are text.
_KINDS: list[tuple[re.Pattern[bytes], Kind]] = [
    (re.compile(rb"version https://(git-lfs\.github\.com|hawser\.github\.com)/spec/"), _LFS),
    (re.compile(rb"/annex/objects/|(\.\./)*\.git/annex/objects/"), _ANNEX),
    (re.compile(rb"\s*(<!--.{0,400}?-->\s*)?<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL), _PAGE),
    (re.compile(rb"\s*<\?xml\b"), Kind("an XML document", "If a server sent it, it says why there is no file.")),
    (re.compile(rb'\s*\{\s*("|\})'), Kind("a JSON document", "If a server sent it, it says why there is no file.")),
    (re.compile(rb"\Z"), Kind("empty", "Copy or download it again.")),
    (re.compile(rb"\x93NUMPY"), Kind("a .npy array")),
    (re.compile(rb"PK\x03\x04|PK\x05\x06"), Kind("a zip file", "Unpack it first.")),
    (re.compile(rb"\x80[\x02-\x05]"), Kind("a Python pickle")),
    (re.compile(rb"\x1f\x8b"), Kind("a gzip file", "Unpack it with gunzip or tar first.")),
    (re.compile(rb"BZh|\xfd7zXZ\x00|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!"), Kind("an archive", "Unpack it first.")),
    (re.compile(rb".{257}ustar", re.DOTALL), Kind("a tar file", "Unpack it with tar first.")),
    (re.compile(rb"\x89HDF\r\n\x1a\n"), Kind("an HDF5 file")),
    (re.compile(rb"MATLAB 5\.0"), Kind("a MATLAB file", "Save it as .npy with scipy.io.loadmat and numpy.save.")),
    (re.compile(rb".{6}\x00\x00\{\"", re.DOTALL), Kind("a safetensors file")),
]


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file whose first bytes (`HEAD` of them, or all) are given; None if it is not recognised."""
    return next((kind for pattern, kind in _KINDS if pattern.match(head)), None)


def head_of(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(HEAD)


def broken_link(path: Path) -> Kind | None:
    """What a symbolic link is that leads to no file; None for any other path."""
    if not path.is_symlink() or path.exists():
        return None
    target = os.readlink(path)
    if re.search(r"(^|[/\\])annex[/\\]objects[/\\]", target):
        return Kind("a git-annex link without its content", _ANNEX.hint)
    return Kind(f"a link to {target}, which does not exist", "Copy the file, or mount the disk that it is on.")
