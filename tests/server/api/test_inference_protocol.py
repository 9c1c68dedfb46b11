"""The Open Inference Protocol over HTTP: by hand in this process, and by an unmodified `tritonclient`."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.in_process import cpu_settings, serving
from support.live_server import Server
from support.live_server import serving as serving_live
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.api.endpoints.inference_protocol import model_name
from server.inference.engine import Engine

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # BentoML's and gevent's, in their own imports
    import tritonclient.http as triton


KEY = "a-key-of-the-lab-0123"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
async def client(twin: TinyTwin) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(cpu_settings(twin.folder, max_images=20)) as client:
        yield client


def inputs(arrays: tuple[np.ndarray, ...]) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
        for name, array in zip(("image", "behavior", "pupil_center"), arrays, strict=True)
    ]


def error_of(response: httpx.Response, *statuses: int) -> str:
    assert response.status_code in statuses, response.text
    assert response.json().keys() == {"error"}
    assert isinstance(response.json()["error"], str)
    assert response.headers["x-request-id"]
    return response.json()["error"]  # type: ignore[no-any-return]


async def test_json_gives_what_numpy_computes_and_names_the_bundle(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    for mouse_id, n in (("A", 7), ("B", 5)):
        arrays = twin.draw(mouse_id, rng, 11)
        response = await client.post(
            f"/v2/models/tiny.{mouse_id}/infer", json={"inputs": inputs(arrays), "id": "trial 7"}
        )
        assert response.headers["content-type"] == "application/json"
        reply = response.json()
        assert reply["id"] == "trial 7"
        assert (reply["model_name"], reply["model_version"]) == (f"tiny.{mouse_id}", "1")
        members = twin.member_responses(mouse_id, *arrays)
        for output, expected in zip(reply["outputs"], (members.mean(0), members.std(0)), strict=True):
            assert output["shape"] == [11, n]
            np.testing.assert_allclose(np.reshape(output["data"], (11, n)), expected, atol=1e-5)
        assert reply["parameters"]["hash"] == twin.manifest.hash
        assert reply["parameters"]["mouse"] == mouse_id


async def test_inputs_left_out_are_assumed_and_listed(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    image, behavior, pupil_center = twin.draw("A", rng, 2)
    ids = twin.mice["A"].neurons.ids[[4, 2]]
    asked = {
        "inputs": [
            *inputs((image, behavior, pupil_center))[:1],
            {"name": "neuron_ids", "datatype": "INT64", "shape": [2], "data": ids.tolist()},
        ],
        "outputs": [{"name": "responses"}],
        "parameters": {"units": "raw", "timeout": 10_000_000},
    }
    reply = (await client.post("/v2/models/tiny.A/versions/1/infer", json=asked)).json()
    expected = twin.answer("A", image, np.tile([40.0, 0.5, 3.0], (2, 1)), np.tile([250.0, 180.0], (2, 1)))
    expected = expected[:, [4, 2]] * twin.mice["A"].neurons.response_std[[4, 2]]
    np.testing.assert_allclose(np.reshape(reply["outputs"][0]["data"], (2, 2)), expected, rtol=1e-4)
    assert len(reply["outputs"]) == 1
    assert "id" not in reply
    assert reply["parameters"]["assumed"].count("training mean") == 4


async def test_models_are_listed_described_and_counted(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    assert (await client.get("/v2")).json()["extensions"] == [
        "binary_tensor_data",
        "statistics",
        "model_configuration",
    ]
    index = (await client.post("/v2/repository/index", json={})).json()
    assert [(model["name"], model["state"]) for model in index] == [("tiny.A", "READY"), ("tiny.B", "READY")]
    metadata = (await client.get("/v2/models/tiny.B")).json()
    assert metadata["versions"] == ["1"]
    assert {one["name"]: (one["datatype"], one["shape"]) for one in metadata["inputs"]} == {
        "image": ("FP32", [-1, 2, 4, 6]),
        "behavior": ("FP32", [-1, 3]),
        "pupil_center": ("FP32", [-1, 2]),
        "neuron_ids": ("INT64", [-1]),
    }
    assert [one["parameters"]["optional"] for one in metadata["inputs"]] == [False, True, True, True]
    for n_images in (3, 1, 1):
        asked = {"inputs": inputs(twin.draw("A", rng, n_images))}
        assert (await client.post("/v2/models/tiny.A/infer", json=asked)).status_code == 200
    of_a, of_b = (await client.get("/v2/models/stats")).json()["model_stats"]
    assert (of_a["name"], of_a["inference_count"], of_a["execution_count"]) == ("tiny.A", 5, 3)
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in of_a["batch_stats"]] == [(1, 2), (3, 1)]
    stats = of_a["inference_stats"]
    assert stats["success"]["count"] == stats["queue"]["count"] == 3
    parts = sum(stats[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < parts <= stats["success"]["ns"] + 10
    assert (of_b["inference_count"], of_b["last_inference"]) == (0, 0)
    assert (await client.get("/v2/models/tiny.A/versions/1/stats")).json()["model_stats"] == [of_a]


async def test_versions_follow_the_protocol(tmp_path: Path, rng: np.random.Generator) -> None:
    old, new = (write_tiny_bundle(tmp_path / "tiny" / version, seed=int(version)) for version in ("3", "12"))
    arrays = old.draw("A", rng, 2)
    async with serving(cpu_settings(tmp_path, max_images=20)) as client:
        index = (await client.post("/v2/repository/index", json={})).json()
        assert [(model["name"], model["version"]) for model in index] == [
            (f"tiny.{mouse}", version) for version in ("3", "12") for mouse in "AB"
        ]
        assert (await client.get("/v2/models/tiny.A")).json()["versions"] == ["3", "12"]
        for path, version, twin in (("", "12", new), ("/versions/3", "3", old), ("/versions/12", "12", new)):
            asked = {"inputs": inputs(arrays)}
            reply = (await client.post(f"/v2/models/tiny.A{path}/infer", json=asked)).json()
            assert (reply["model_version"], reply["parameters"]["hash"]) == (version, twin.manifest.hash)
            got = np.reshape(reply["outputs"][0]["data"], (2, 7))
            np.testing.assert_allclose(got, twin.answer("A", *arrays), atol=1e-5)
        stats = (await client.get("/v2/models/stats")).json()["model_stats"]
        counts = {(one["name"], one["version"]): one["inference_count"] for one in stats}
        assert (counts["tiny.A", "3"], counts["tiny.A", "12"]) == (2, 4)
        assert (await client.get("/v2/models/tiny.A/versions/3/ready")).json() == {"name": "tiny.A", "ready": True}
        error_of(await client.get("/v2/models/tiny.A/versions/1"), 404)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/tiny", 404),
        ("/v2/models/tiny.Z", 404),
        ("/v2/models/nobody.A/ready", 404),
        ("/v2/models/tiny.%2541", 404),  # tiny.%41: A, spelt otherwise
        ("/v2/models/tiny.A/versions/2", 404),
        ("/v2/models/tiny.A/versions/2/ready", 404),
        ("/v2/models/tiny.A/infer", 405),
        ("/v2/nowhere", 404),
    ],
)
async def test_unknown_models_and_routes_use_the_protocol_s_error(
    client: httpx.AsyncClient, path: str, status: int
) -> None:
    error_of(await client.get(path), status)


async def test_tensors_that_do_not_fit_the_mouse_are_refused_with_a_message(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    image, behavior, pupil_center = twin.draw("A", rng, 2)

    async def refusal(*arrays: np.ndarray, **more: Any) -> str:
        asked = {"inputs": inputs(arrays), **more}
        return error_of(await client.post("/v2/models/tiny.A/infer", json=asked), 400, 404, 413, 422)

    assert "(1, 8, 12)" in await refusal(image[:, :, :7], behavior, pupil_center)
    assert "(B, 1, 8, 12)" in await refusal(image[0], behavior, pupil_center)
    assert "(B, 3)" in await refusal(image, behavior[:, :2], pupil_center)
    assert "2" in await refusal(image, behavior[:1], pupil_center)
    assert "(B, 2)" in await refusal(image, behavior, pupil_center[0])
    assert "at most 20" in await refusal(*twin.draw("A", rng, 21))
    assert "finite" in await refusal(image, np.full_like(behavior, 3e38), pupil_center)
    assert "units" in await refusal(image, behavior, pupil_center, parameters={"units": "volts"})
    for timeout in (-1, 1.5, "1", True, 2**64):
        assert "timeout" in await refusal(image, behavior, pupil_center, parameters={"timeout": timeout})
    ids = {"name": "neuron_ids", "datatype": "INT64", "shape": [1], "data": [5]}
    asked = {"inputs": [*inputs((image, behavior, pupil_center)), ids]}
    assert "no such neurons" in error_of(await client.post("/v2/models/tiny.A/infer", json=asked), 404)


async def test_broken_bodies_are_never_answered_5xx(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator
) -> None:
    image = twin.draw("A", rng)[0]
    head = {
        "inputs": [
            {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 12], "parameters": {"binary_data_size": 384}}
        ]
    }
    text = json.dumps(head).encode()
    good = text + image.tobytes()
    nan = text + np.full_like(image, np.nan).tobytes()
    for content, headers in [
        (good[:-1], {"Inference-Header-Content-Length": str(len(text))}),
        (good + b"x", {"Inference-Header-Content-Length": str(len(text))}),
        (nan, {"Inference-Header-Content-Length": str(len(text))}),
        (good, {"Inference-Header-Content-Length": "9" * 400}),
        (good, {"Inference-Header-Content-Length": "-5"}),
        (good, {}),
        (b"", {}),
        (b"[" * 50_000, {}),
        (good, {"Inference-Header-Content-Length": str(len(text)), "Content-Encoding": "gzip"}),
    ]:
        error_of(await client.post("/v2/models/tiny.A/infer", content=content, headers=headers), 400, 415, 422)
    headers = {"Inference-Header-Content-Length": str(len(text))}
    assert (await client.post("/v2/models/tiny.A/infer", content=good, headers=headers)).status_code == 200


async def test_the_protocol_s_own_timeout_is_respected(
    client: httpx.AsyncClient, twin: TinyTwin, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    run = Engine.predict_many
    monkeypatch.setattr(Engine, "predict_many", lambda self, stimuli: (gate.wait(30), run(self, stimuli))[1])
    asked = {"inputs": inputs(twin.draw("A", rng)), "parameters": {"timeout": 50_000}}
    assert "time was up" in error_of(await client.post("/v2/models/tiny.A/infer", json=asked), 504)
    gate.set()
    (stats, _) = (await client.get("/v2/models/stats")).json()["model_stats"]
    assert stats["inference_stats"]["fail"]["count"] == 1


@pytest.mark.parametrize(
    ("bundle", "mouse_id", "expected"),
    [("demo", "SIM1", "demo.SIM1"), ("v1.2", "A", "v1.2.A"), ("a", "b.c", "a.b%2Ec"), ("a.b", "c/ü", "a.b.c%2F%C3%BC")],
)
def test_a_model_s_name_has_one_meaning_and_fits_a_url(bundle: str, mouse_id: str, expected: str) -> None:
    assert model_name(bundle, mouse_id) == expected
    assert httpx.URL("http://twin/").join(expected).path.count("/") == 1 or "%" in expected


# tritonclient


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    return write_tiny_bundle(tmp_path_factory.mktemp("odd") / "odd", name="odd.2", mice=("A 1.x", "B"), seed=3)


@pytest.fixture(scope="module")
def server(twin: TinyTwin, odd: TinyTwin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    workplace: Path = tmp_path_factory.mktemp("home")
    folders = f"{twin.folder}:{odd.folder}"
    with serving_live(Path(folders), workplace, V1T_API_KEYS=KEY) as server:
        server.wait_for("/v2/health/ready", 200)
        yield server


def triton_inputs(arrays: tuple[np.ndarray, ...], in_binary: bool) -> list[Any]:
    given = []
    for name, array in zip(("image", "behavior", "pupil_center"), arrays, strict=True):
        given.append(triton.InferInput(name, list(array.shape), "FP32"))
        given[-1].set_data_from_numpy(array, binary_data=in_binary)
    return given


@pytest.mark.slow
def test_tritonclient_works_unchanged(server: Server, twin: TinyTwin, odd: TinyTwin, rng: np.random.Generator) -> None:
    def headers() -> dict[str, str]:
        return {"Authorization": f"Bearer {KEY}"}  # a new one each time: the client writes its own into it

    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        with pytest.raises(triton.InferenceServerException, match="an API key is needed"):
            client.get_server_metadata()
        assert client.get_server_metadata(headers())["name"] == "v1t-twins"
        index = [model["name"] for model in client.get_model_repository_index(headers())]
        assert index == ["tiny.A", "tiny.B", "odd.2.A%201%2Ex", "odd.2.B"]
        for (one, mouse_id), name in zip([(twin, "A"), (twin, "B"), (odd, "A 1.x"), (odd, "B")], index, strict=True):
            assert client.is_model_ready(name, headers=headers())
            assert client.is_model_ready(name, "1", headers=headers())
            names = [given["name"] for given in client.get_model_metadata(name, headers=headers())["inputs"]]
            assert names == ["image", "behavior", "pupil_center", "neuron_ids"]
            arrays = one.draw(mouse_id, rng, 9)
            expected = one.member_responses(mouse_id, *arrays)
            for in_binary in (True, False):
                outputs = [triton.InferRequestedOutput(word, binary_data=in_binary) for word in ("spread", "responses")]
                for asked in (None, outputs):
                    result = client.infer(
                        name,
                        triton_inputs(arrays, in_binary),
                        request_id="42",
                        outputs=asked,
                        headers=headers(),
                        timeout=30_000_000,
                    )
                    assert result.get_response()["id"] == "42"
                    np.testing.assert_allclose(result.as_numpy("responses"), expected.mean(0), atol=1e-5)
                    np.testing.assert_allclose(result.as_numpy("spread"), expected.std(0), atol=1e-5)
            for algorithm in ("gzip", "deflate"):
                result = client.infer(
                    name,
                    triton_inputs(arrays, True),
                    headers=headers(),
                    priority=1,
                    timeout=30_000_000,
                    request_compression_algorithm=algorithm,
                    response_compression_algorithm=algorithm,
                    parameters={"state": "mean", "units": "standardized", "strict": True},
                )
                np.testing.assert_allclose(result.as_numpy("responses"), expected.mean(0), atol=1e-5)
                assert result.get_response()["parameters"]["state"] == "mean"
                assert json.loads(result.get_response()["parameters"]["notes"]) == []
            for version in ("", "1"):
                config = client.get_model_config(name, version, headers=headers())
                dims = {one["name"]: one["dims"] for one in config["input"]}
                assert (config["name"], config["max_batch_size"]) == (name, 0)
                assert dims["image"] == [-1, *one.mice[mouse_id].image_shape]
                assert [one["data_type"] for one in config["input"]] == ["TYPE_FP32"] * 3 + ["TYPE_INT64"]
            statistics = client.get_inference_statistics(name, headers=headers())["model_stats"]
            assert [model["inference_count"] for model in statistics] == [54]
        assert len(client.get_inference_statistics(headers=headers())["model_stats"]) == 4
        assert not client.is_model_ready("tiny.Z", headers=headers())
        with pytest.raises(triton.InferenceServerException, match="there is no such model") as refused:
            client.get_model_metadata("tiny.Z", headers=headers())
        assert refused.value.status() == "404"
        with pytest.raises(triton.InferenceServerException, match="has another shape"):
            client.infer("tiny.A", triton_inputs(twin.draw("B", rng), True), headers=headers())
        drawn = [twin.draw("A", rng) for _ in range(8)]
        pending = [client.async_infer("tiny.A", triton_inputs(arrays, True), headers=headers()) for arrays in drawn]
        for arrays, one in zip(drawn, pending, strict=True):
            np.testing.assert_allclose(one.get_result().as_numpy("responses"), twin.answer("A", *arrays), atol=1e-5)
