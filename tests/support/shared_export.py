"""Bundles of the reference's weights, each exported once per test session, whatever the number of workers."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

__all__ = ["built_once"]


def built_once(folder: Path, build: Callable[[Path], object]) -> Path:
    """The folder, built by the first process that needs it while the others wait.

    Args:
        build: fills the folder, which does not exist before.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = folder.with_name(f"{folder.name}.done")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            build(folder)
            done.touch()
    return folder
