"""Programs that some tests run and that pip does not install."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

__all__ = ["run", "tool"]


def tool(name: str, package: str) -> str:
    """The path of a program; without it the test is skipped, or fails in CI, which installs it."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {name}: apt-get install {package}")
    return path


def run(*command: str | os.PathLike[str]) -> str:
    """What a command prints; the test fails with all of it if the command does."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    return done.stdout
