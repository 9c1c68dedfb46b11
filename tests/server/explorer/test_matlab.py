"""The page's question as MATLAB, run in Octave.

Octave's `webwrite` sends no JSON, and without a screen it has no plots: `tests/support/webwrite.m` and an empty `plot`
stand in for MATLAB's.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from selenium import webdriver
from support.browser import Explorer
from support.checkout import ROOT
from support.live_server import serving
from support.tiny_bundle import write_tiny_bundle

OCTAVE = shutil.which("octave-cli")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(OCTAVE is None, reason="no octave-cli (Debian: apt-get install octave)"),
]

KEY = "0123456789abcdef"


def octave(code: str, folder: Path, **environment: str) -> np.ndarray:
    """(n,) the responses that a script leaves in `reply`."""
    assert OCTAVE is not None
    shutil.copy(ROOT / "tests" / "support" / "webwrite.m", folder)
    for name in ("plot", "xlabel", "ylabel"):
        (folder / f"{name}.m").write_text(f"function {name} (varargin)\nend\n")
    (folder / "question.m").write_text(f"{code}\nprintf ('%.9g\\n', reply.responses);\n")
    command = [OCTAVE, "--no-gui", "--quiet", "--norc", "--path", str(folder), "question.m"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return np.array(done.stdout.split(), float)


def test_a_picture_with_behaviour_is_answered_as_by_the_api(explorer: Explorer, tmp_path: Path) -> None:
    explorer.open()
    explorer.click("Example")
    explorer.slide("Running speed", 12.4)
    explorer.slide("Gaze, across", 340)
    explorer.click("Grating")
    explorer.settle()
    explorer.js("document.querySelector('[data-save=npy]').click()")
    image = explorer.saved("stimulus.npy")
    y = httpx.get(f"{explorer.url}/mice/SIM1").json()["pupil_center"][1]["median"]
    fields: dict[str, Any] = {"running_speed": 12.4, "pupil_center": [340, y]}
    form = {"mouse": "SIM1", **{name: json.dumps(value) for name, value in fields.items()}}
    expected = httpx.post(f"{explorer.url}/predict", data=form, files={"image": image}).json()["responses"][0]
    np.testing.assert_allclose(octave(explorer.copied("MATLAB"), tmp_path), expected, rtol=1e-5)


def test_an_array_is_read_from_its_file_and_the_key_is_sent(
    chrome: webdriver.Chrome, tmp_path: Path, downloads: Path
) -> None:
    twin = write_tiny_bundle(tmp_path / "bundles" / "tiny", shape=(1, 16, 24), standardized=True)
    with serving(tmp_path / "bundles", tmp_path, V1T_THREADS="1", V1T_API_KEYS=KEY) as server:
        server.wait_for("/readyz", 200)
        page = Explorer(chrome, server.url, downloads)
        page.open(settle=False)
        page.wait("return document.querySelector('dialog')?.open")
        page.js(
            "const form = document.querySelector('dialog form'); form.key.value = arguments[0]; form.requestSubmit()",
            KEY,
        )
        page.settle()
        page.click("Gabor")
        page.settle()
        page.js("document.querySelector('[data-save=npy]').click()")
        content = page.saved("stimulus.npy")
        (tmp_path / "stimulus.npy").write_bytes(content)
        code = page.copied("MATLAB")
        assert KEY not in code
        got = octave(code, tmp_path, V1T_API_KEY=KEY)
    image = np.load(io.BytesIO(content))
    np.testing.assert_allclose(got, twin.answer("A", image, np.zeros((1, 3)), np.zeros((1, 2)))[0], rtol=1e-4)
