"""deploy/container: the image's file as text, its locked versions, and its steps in a plain folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.requirements import Requirement
from support.checkout import ROOT
from support.live_server import PATIENCE, free_port

FOLDER = ROOT / "deploy" / "container"
TEXT = (FOLDER / "Containerfile").read_text().replace("\\\n", "")
STEPS = [tuple(line.split(None, 1)) for line in TEXT.splitlines() if line.strip() and line[0] != "#"]
IMAGE = STEPS[max(i for i, (verb, _) in enumerate(STEPS) if verb == "FROM") :]
PYTHON = "/usr/bin/python3.11"  # Debian's, of the image's version, which every user can run
REQUIREMENTS = re.compile(r"^([\w.-]+(?:\[\S+\])?)==(\S+) \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M)


def values(verb: str) -> list[str]:
    return [rest for one, rest in IMAGE if one == verb]


def locked(runtime: str) -> dict[str, str]:
    """name -> version; every line of the file belongs to a version or to its hashes."""
    text = (FOLDER / f"requirements-{runtime}.txt").read_text()
    assert REQUIREMENTS.sub("", text).strip() == ""
    return {name.partition("[")[0]: version for name, version, _ in REQUIREMENTS.findall(text)}


@pytest.mark.parametrize("runtime", ["cpu", "gpu"])
def test_what_is_locked_fits_what_the_server_needs(runtime: str) -> None:
    versions = locked(runtime)
    lines = "".join(
        (ROOT / "server" / name).read_text() for name in ("requirements.txt", f"requirements-{runtime}.txt")
    )
    needed = [Requirement(line) for line in lines.splitlines() if line and line[0] != "#"]
    assert len(needed) >= 15
    for requirement in needed:
        assert requirement.specifier.contains(versions[requirement.name]), requirement


def test_both_images_have_the_same_versions_but_for_the_runtime() -> None:
    cpu, gpu = locked("cpu"), locked("gpu")
    assert {name for name in cpu if gpu.get(name) != cpu[name]} == {"onnxruntime"}
    assert "onnxruntime-gpu" in gpu


def test_the_image_runs_as_the_user_of_the_deployment_and_says_how_it_is() -> None:
    pod = yaml.safe_load((ROOT / "deploy/kubernetes/base/deployment.yaml").read_text())["spec"]["template"]["spec"]
    user = pod["securityContext"]["runAsUser"]
    assert values("USER") == [f"{user}:{pod['securityContext']['runAsGroup']}"]
    assert "/readyz" in values("HEALTHCHECK")[0]
    environment = dict(one.split("=", 1) for one in values("ENV"))
    of_pod = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    for name in ("TMPDIR", "BENTOML_HOME", "BENTOML_HOST"):
        assert environment[name] == of_pod[name]
    install = next(rest for verb, rest in STEPS if verb == "RUN" and "pip install" in rest)
    assert "--require-hashes" in install


def test_the_image_gets_what_the_bento_gets() -> None:
    included = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]
    copied = {source for one in values("COPY") if "--from" not in one for source in one.split()[:-1]}
    assert {f"/{source}" for source in copied} == {one.removesuffix("/**") for one in included} - {"/README.md"}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied | {"deploy/container"} == kept


@pytest.fixture
def root() -> Iterator[Path]:
    """The image's root folder, which other users can read; pytest's own folders are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="v1t-image-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def owner(path: Path) -> int | None:
    """The user id of its owner; None if another test has just removed it."""
    try:
        return path.lstat().st_uid
    except FileNotFoundError:
        return None


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become the image's user")
@pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"needs {PYTHON}")
def test_its_steps_make_a_server_that_writes_only_into_its_scratch_folder(root: Path) -> None:
    def inside(text: str) -> str:
        """With the image's paths below this root."""
        return re.sub(r"(?<![\w.])/(?=(?:app|opt|scratch)\b)", f"{root}/", text)

    subprocess.run([PYTHON, "-m", "venv", "--without-pip", root / "opt" / "venv"], check=True)
    install = next(rest for verb, rest in STEPS if verb == "RUN" and "pip install" in rest).split(" install ")[1]
    arguments = install.replace("/tmp/requirements.txt", str(FOLDER / "requirements-cpu.txt")).split()
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "--python", root / "opt/venv/bin/python", "install", *arguments], check=True)
    for step in values("COPY"):
        *sources, target = inside(step).split()
        for source in sources if "--from" not in step else []:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, target)
    (scratch,) = [inside(rest) for rest in values("RUN")]
    subprocess.run(scratch.split(), check=True)
    before = sorted(root.rglob("*"))

    user, group = (int(one) for one in values("USER")[0].split(":"))
    port = free_port()
    environment = {"PATH": os.environ["PATH"], "BENTOML_PORT": str(port), "V1T_API_KEYS": "k" * 32}
    for one in values("ENV"):
        name, value = inside(one).split("=", 1)
        environment[name] = value.replace("$PATH", environment["PATH"])
    programs = root / "opt" / "venv" / "bin"
    command, *arguments = json.loads(values("CMD")[0])
    check = json.loads(inside(values("HEALTHCHECK")[0]).split("CMD ")[1].replace("3000", str(port)))
    options = {"env": environment, "user": user, "group": group, "extra_groups": [], "cwd": root / "app"}
    with (root.parent / f"{root.name}.log").open("w+b") as log:
        server = subprocess.Popen([programs / command, *arguments], stdout=log, stderr=log, **options)
        try:
            deadline = time.monotonic() + PATIENCE
            while subprocess.run([programs / check[0], *check[1:]], stderr=subprocess.DEVNULL, **options).returncode:
                assert server.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.2)
            url = f"http://127.0.0.1:{port}/mice"
            assert httpx.get(url).status_code == 401
            reply = httpx.get(url, headers={"Authorization": f"Bearer {'k' * 32}"})
            assert [mouse["mouse"] for mouse in reply.json()["mice"]] == ["SIM1", "SIM2"]
        finally:
            server.terminate()
            code = server.wait(PATIENCE)
        assert code == 0, Path(log.name).read_text()
    Path(log.name).unlink()
    written = [path for path in sorted(root.rglob("*")) if path not in before]
    assert all(path.is_relative_to(root / "scratch") for path in written)
    assert not [path for path in Path("/tmp").iterdir() if path != root and owner(path) == user]
