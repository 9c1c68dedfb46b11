"""Scripts that no other test runs, in docs/ and tests/perf: what they import exists."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
from support.checkout import ROOT

SCRIPTS = sorted([*(ROOT / "docs").glob("*.py"), *(ROOT / "tests" / "perf").rglob("*.py")])
OURS = ("server", "training", "v1t_client", "support")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's, in its own imports
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_names_that_a_script_imports_exist(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    embedded = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    programs = [ast.parse(text) for text in embedded if text.lstrip().startswith("import ") and "\n" in text]
    for node in (node for program in (tree, *programs) for node in ast.walk(program)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS:
            module = importlib.import_module(str(node.module))
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")  # a module of the package, or an error
