"""The HTTP library stands in one file, and the client works on its successor as well."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import v1t_client
from support.checkout import ROOT

LIBRARIES = {"httpx", "httpcore", "httpx2", "httpcore2"}


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def test_only_one_file_imports_the_http_library() -> None:
    package = Path(v1t_client.__file__).parent
    importers = {str(file.relative_to(package)) for file in package.rglob("*.py") if imported(file) & LIBRARIES}
    assert importers == {"_http_library.py"}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("httpx2") is None, reason="httpx2 is not installed")
def test_client_works_on_httpx2() -> None:
    """All tests of requests, replies, retries and deadlines, with httpx2 in place of httpx."""
    files = ["test_client.py", "test_arrays.py", "protocol"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "support.httpx2_plugin", "-p", "no:cacheprovider"]
    paths = [str(ROOT / "tests" / "client" / file) for file in files]
    done = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:]
