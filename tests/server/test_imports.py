"""What importing a package loads: the server loads no torch, and no import does work."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.checkout import ROOT

SERVER = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "server").rglob("*.py")
    if path.stem not in ("__init__", "__main__")
)


def modules_after(code: str) -> set[str]:
    """Top-level packages that are loaded after some code, in a new interpreter."""
    listing = f"{code}\nimport sys; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


def test_whole_server_loads_without_torch_or_training() -> None:
    loaded = modules_after("".join(f"import {name}\n" for name in SERVER))
    assert "onnxruntime" in loaded  # proves that the server was loaded
    assert loaded.isdisjoint({"torch", "training", "onnx", "onnxscript", "v1t_client", "safetensors"})


@pytest.mark.parametrize("name", ["server.bundle.manifest", "server.inference.engine"])
def test_engine_loads_without_a_web_server(name: str) -> None:
    assert modules_after(f"import {name}").isdisjoint({"bentoml", "starlette", "torch", "PIL"})


def test_data_side_of_training_loads_without_torch() -> None:
    loaded = modules_after("import training.data.recordings, training.simulation.simulate, training.metrics")
    assert loaded.isdisjoint({"torch", "server", "onnxruntime"})
