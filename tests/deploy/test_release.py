"""deploy/release.py and CITATION.cff: one version, the same bytes each time, and a bento that serves the demo."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
import yaml
from support.checkout import ROOT
from support.live_server import BENTOML, serving
from v1t_client import __version__

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def release(folder: Path, *, umask: str) -> dict[str, str]:
    """The files of a release, by name, and their hashes."""
    command = f"umask {umask} && exec {sys.executable} {ROOT}/deploy/release.py --output {folder}"
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    return {name: sha256 for sha256, name in (line.split("  ") for line in lines)}


def test_the_citation_has_the_version_of_the_client() -> None:
    assert CITATION["version"] == __version__
    assert CITATION["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)
    paper = CITATION["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Li", "Cornacchia", "Rochefort", "Onken"]


@pytest.mark.slow
def test_a_release_is_the_same_every_time_and_its_bento_serves_the_demo(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    hashes = release(first, umask="022")
    names = [f"v1t_client-{__version__}-py3-none-any.whl", f"v1t_twins-{__version__}-py3-none-any.whl"]
    bento = f"twin_server-{__version__}.bento"
    assert list(hashes) == [*names, bento]
    assert release(second, umask="077") == hashes
    for name, member in zip(names, ("v1t_client/py.typed", "server/explorer/index.html"), strict=True):
        with zipfile.ZipFile(first / name) as wheel:
            assert member in wheel.namelist()
            assert any(one.endswith("LICENSE") for one in wheel.namelist())

    home = tmp_path / "bentoml"  # where `serving` looks
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    subprocess.run([*BENTOML, "import", first / bento], env=environment, check=True, stdout=subprocess.DEVNULL)
    (dockerfile,) = home.glob("bentos/*/*/env/docker/Dockerfile")  # that `bentoml containerize` builds
    lines = dockerfile.read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER bentoml"]
    assert "ARG BENTO_USER_UID=1034" in lines  # the user of deploy/kubernetes
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with serving(Path(), tmp_path, f"twin_server:{__version__}", cwd=elsewhere, V1T_BUNDLES="") as server:
        server.wait_for("/readyz", 200)
        mice = httpx.get(f"{server.url}/mice").json()["mice"]
        assert {mouse["mouse"] for mouse in mice} == {"SIM1", "SIM2"}
        assert str(home) in server.log.read_text()  # V1T_BUNDLES of the log: the bento's own
