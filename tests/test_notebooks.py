"""The notebooks of the documentation run from start to end, and show answers and figures."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from support.checkout import ROOT

PICTURES = {"tutorial": 4, "new_mouse": 1}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq", "ignore::DeprecationWarning:jupyter_client")
@pytest.mark.parametrize("name", list(PICTURES))
def test_a_notebook_runs_from_start_to_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'clients' / 'python'}")
    notebook = nbformat.read(ROOT / "docs" / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [text(output) for output in outputs if output.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[name]
    tables = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert tables
    assert all("No animal was recorded" in table for table in tables)


def text(output: Any) -> str:
    return str(output["text"])
