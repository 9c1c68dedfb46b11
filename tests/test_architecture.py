"""docs/architecture.md and CONTRIBUTING.md: the files and functions that they name exist."""

from __future__ import annotations

import ast
import re

import pytest
from support.checkout import ROOT

ROW = re.compile(r"^\| [^|]+ \| `([\w/.]+\.py)` ((?:`[\w.]+`(?:, )?)+) \|", re.MULTILINE)


def defined_names(path: str) -> set[str]:
    """Functions and classes of a module, and `Class.method`."""
    names = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names


def test_every_function_of_the_architecture_page_exists() -> None:
    rows = ROW.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert len(rows) > 25
    for path, functions in rows:
        assert set(re.findall(r"`([\w.]+)`", functions)) <= defined_names(path), path


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "README.md"])
def test_every_path_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:server|training|clients|tests|docs|exported_models)/[\w/.-]*)`", text)
    paths += [path for path in re.findall(r"\]\(([\w/.-]+)(?:#[\w-]*)?\)", text) if not path.startswith("http")]
    folder = (ROOT / page).parent
    assert paths
    assert [path for path in paths if not (ROOT / path).exists() and not (folder / path).exists()] == []
