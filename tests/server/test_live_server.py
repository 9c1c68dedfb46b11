"""`bentoml serve` as an operator runs it, in its own process, with requests from httpx and curl; and as a bento."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from support.live_server import BENTOML, PATIENCE, ROOT, Server, serving
from support.tiny_bundle import TinyTwin, write_tiny_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def server(twin: TinyTwin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(twin.folder.parent, tmp_path_factory.mktemp("home")) as server:
        server.wait_for("/readyz", 200)
        yield server


def curl(*arguments: str) -> str:
    return subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, check=True).stdout


async def test_two_hundred_concurrent_requests_each_get_their_own_answer_in_batches(
    server: Server, twin: TinyTwin
) -> None:
    rng = np.random.default_rng(0)
    asked = [("AB"[i % 2], twin.draw("AB"[i % 2], rng)) for i in range(200)]
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=PATIENCE) as client:
        responses = await asyncio.gather(
            *(
                client.post(
                    "/predict",
                    json={
                        "mouse": mouse_id,
                        "image": image.tolist(),
                        "pupil_dilation": float(behavior[0, 0]),
                        "pupil_dilation_derivative": float(behavior[0, 1]),
                        "running_speed": float(behavior[0, 2]),
                        "pupil_center": pupil_center[0].tolist(),
                    },
                )
                for mouse_id, (image, behavior, pupil_center) in asked
            )
        )
        metrics = (await client.get("/metrics")).text
    for (mouse_id, arrays), response in zip(asked, responses, strict=True):
        assert response.status_code == 200, response.text
        assert response.json()["mouse"] == mouse_id
        np.testing.assert_allclose(response.json()["responses"], twin.answer(mouse_id, *arrays), atol=1e-5)
    value = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if not sample.labels
    }
    assert value["v1t_batch_images_sum"] >= 200
    assert value["v1t_batch_images_sum"] / value["v1t_batch_images_count"] > 1


def test_curl_sends_a_picture_as_a_form(server: Server, twin: TinyTwin, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 12), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    words = f"-F mouse=A -F image=@{shlex.quote(str(tmp_path / 'picture.png'))} -F pupil_dilation=41 -F running_speed=3"
    reply = json.loads(curl(f"{server.url}/predict", *shlex.split(words)))
    expected = twin.answer("A", pixels[None, None], np.array([[41, 0.5, 3.0]]), np.array([[250, 180]]))
    np.testing.assert_allclose(reply["responses"], expected, atol=1e-5)
    assert [text.split(" left out")[0] for text in reply["assumed"]] == ["pupil_dilation_derivative", "pupil_center"]


@pytest.mark.parametrize("how", [[], ["-H", "Transfer-Encoding: chunked"]])
def test_a_body_over_the_limit_is_answered_413_while_it_is_sent(server: Server, tmp_path: Path, how: list[str]) -> None:
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(64 * 1024**2 + 1)
    words = [*how, "-H", "Content-Type: application/json", "-H", "Expect:", "--data-binary", f"@{tmp_path / 'large'}"]
    reply = json.loads(curl(f"{server.url}/predict", *words))
    assert reply["error"]["code"] == "too_large"
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_it_listens_on_loopback_only(server: Server) -> None:
    assert "listening on http://127.0.0.1:" in server.log.read_text()
    port = int(server.url.rpartition(":")[2])
    listening = Path("/proc/net/tcp").read_text() if Path("/proc/net/tcp").exists() else ""
    local = [line.split()[1] for line in listening.splitlines()[1:] if line.split()[3] == "0A"]
    assert {address for address in local if address.endswith(f":{port:04X}")} <= {f"0100007F:{port:04X}"}


def test_bad_bundles_are_refused_by_name_and_nothing_is_served(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    flipped = write_tiny_bundle(bundles / "flipped", name="flipped", mice=("A",))
    graph = flipped.folder / flipped.manifest.cores[1].path
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(bytes(content))
    holed = write_tiny_bundle(bundles / "holed", name="holed", mice=("B",))
    (holed.folder / holed.manifest.mice["B"].stems[0].path).unlink()
    future = write_tiny_bundle(bundles / "future", name="future", mice=("C",))
    manifest = json.loads((future.folder / "manifest.json").read_text())
    (future.folder / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 7}))
    with serving(bundles, tmp_path) as server:
        named = (
            "flipped",
            graph.name,
            "holed",
            holed.manifest.mice["B"].stems[0].path,
            "future",
            "schema_version",
        )
        for words in named:  # each when that bundle has been tried; until then the hint says that it is loading
            hint = server.wait_for("/readyz", 503, words).json()["error"]["hint"]
        for words in named:
            assert words in hint
        response = httpx.post(f"{server.url}/predict", json={"mouse": "A", "image": [[0]]})
        assert response.status_code == 503
        assert response.json()["error"]["hint"] == hint
        assert response.headers["retry-after"]
        assert httpx.get(f"{server.url}/livez").status_code == 200
    assert "refused: " in server.log.read_text()


def test_a_wrong_setting_stops_the_start_and_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "V1T_MAX_BATCH": "none", "BENTOML_HOME": str(tmp_path)}
    result = subprocess.run(
        [*BENTOML, "serve", "--port", "0"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode != 0
    assert "V1T_MAX_BATCH is 'none'" in result.stderr


def test_a_built_bento_serves_from_another_folder(twin: TinyTwin, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    built = subprocess.run(
        [*BENTOML, "build", "--output", "tag"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert built.returncode == 0, built.stderr
    tag = re.findall(r"twin_server:\w+", built.stdout)[-1]
    (bento,) = (tmp_path / "bentoml" / "bentos" / "twin_server").glob("*/src")
    files = {path.relative_to(bento) for path in bento.rglob("*") if path.is_file()}
    assert {path.relative_to(ROOT) for path in (ROOT / "server").rglob("*.py")} <= files
    assert not {path.parts[0] for path in files} & {"training", "tests", "clients", ".venv", ".git"}
    requirements = (bento.parent / "env" / "python" / "requirements.txt").read_text()
    for package in ("onnxruntime", "numpy", "pillow", "orjson"):
        assert package in requirements
    with serving(twin.folder, tmp_path, tag, cwd=elsewhere) as server:
        server.wait_for("/readyz", 200)
        reply = httpx.get(f"{server.url}/mice").json()
        assert [mouse["mouse"] for mouse in reply["mice"]] == ["A", "B"]
