"""One stimulus, several mice: one request, one bundle, and one pass of the core where their inputs are equal."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.contract_server import SHAPE, ContractServer
from support.in_process import cpu_settings, serving
from support.tiny_bundle import TinyTwin, write_tiny_bundle
from v1t_client import AsyncClient, Client, InvalidArgument, InvalidRequest, NotFound
from v1t_client._cli import main

from server.api.codecs import schemas
from server.inference import core_inputs

MICE = ("P", "Q", "R")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "alike", name="alike", mice=MICE, alike=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def asked(mouse: Any, arrays: tuple[np.ndarray, np.ndarray, np.ndarray], **more: Any) -> dict[str, Any]:
    image, behavior, pupil_center = arrays
    return {
        "mouse": mouse,
        "image": image.tolist(),
        "pupil_dilation": behavior[:, 0].tolist(),
        "pupil_dilation_derivative": behavior[:, 1].tolist(),
        "running_speed": behavior[:, 2].tolist(),
        "pupil_center": pupil_center.tolist(),
        **more,
    }


@pytest.fixture
def core_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of distinct images in each pass of a core, from now on."""
    passes: list[int] = []
    original = core_inputs._groups

    def counted(tensors: Any) -> Any:
        where, first = original(tensors)
        passes.append(len(first))
        return where, first

    monkeypatch.setattr(core_inputs, "_groups", counted)
    return passes


@pytest.mark.parametrize("mouse", [["R", "P"], "*", ["Q"]])
async def test_each_mouse_answers_as_if_it_were_asked_alone(
    twin: TinyTwin, rng: np.random.Generator, mouse: Any
) -> None:
    arrays = twin.draw("Q", rng, 5)
    async with serving(cpu_settings(twin.folder)) as client:
        response = await client.post("/predict", json=asked(mouse, arrays, spread=True))
    assert response.status_code == 200, response.text
    reply = response.json()
    schemas.PredictMiceReply.model_validate(reply)
    assert [one["mouse"] for one in reply["mice"]] == (list(MICE) if mouse == "*" else mouse)
    assert reply["model"]["hash"] == twin.manifest.hash
    for one in reply["mice"]:
        members = twin.member_responses(one["mouse"], *arrays)
        np.testing.assert_allclose(one["responses"], members.mean(0), atol=1e-5)
        np.testing.assert_allclose(one["spread"], members.std(0), atol=1e-5)
        assert one["neuron_ids"] == twin.mice[one["mouse"]].neurons.ids.tolist()


@pytest.mark.parametrize("spread", [False, True])
async def test_npy_is_one_array_for_each_mouse(twin: TinyTwin, rng: np.random.Generator, spread: bool) -> None:
    arrays = twin.draw("Q", rng, 4)
    form = {"mouse": '["R", "Q"]', "running_speed": "3", "spread": json.dumps(spread)}
    image = io.BytesIO()
    np.save(image, arrays[0])
    async with serving(cpu_settings(twin.folder)) as client:
        response = await client.post(
            "/predict", data=form, files={"image": image.getvalue()}, headers={"Accept": "application/x-npy"}
        )
    assert response.status_code == 200, response.text
    head, stream = json.loads(response.headers["v1t-reply"]), io.BytesIO(response.content)
    for one, mouse_id in zip(head["mice"], ("R", "Q"), strict=True):
        assert one["mouse"] == mouse_id
        mouse = twin.mice[mouse_id]
        behavior = np.tile(mouse.behavior_mean, (4, 1))
        behavior[:, 2] = 3
        members = twin.member_responses(mouse_id, arrays[0], behavior, np.tile(mouse.pupil_mean, (4, 1)))
        array = np.load(stream)
        np.testing.assert_allclose(array[0] if spread else array, members.mean(0), atol=1e-5)
        assert any("pupil_dilation left out" in line and mouse_id in line for line in one["assumed"])
    assert stream.read() == b""


async def test_mice_whose_inputs_are_equal_share_a_pass_of_the_core(
    twin: TinyTwin, rng: np.random.Generator, core_images: list[int]
) -> None:
    arrays = twin.draw("Q", rng, 6)
    async with serving(cpu_settings(twin.folder, max_batch=7)) as client:
        core_images.clear()  # those of the warm-up
        assert (await client.post("/predict", json=asked("*", arrays))).status_code == 200
    assert sum(core_images) == 6  # not 3 mice times 6 images, and not once more for each member
    assert max(core_images) == 2  # in runs of 2 images for 3 mice, which fit into 7


async def test_several_mice_and_a_small_request_take_turns(twin: TinyTwin, rng: np.random.Generator) -> None:
    async with serving(cpu_settings(twin.folder, max_batch=3)) as client:
        order: list[str] = []

        async def ask(name: str, body: dict[str, Any]) -> None:
            assert (await client.post("/predict", json=body)).status_code == 200
            order.append(name)

        large = asyncio.create_task(ask("all mice", asked("*", twin.draw("Q", rng, 100))))
        await asyncio.sleep(0.01)
        await asyncio.gather(large, ask("small", asked("P", twin.draw("P", rng, 1))))
    assert order == ["small", "all mice"]


@pytest.mark.parametrize(
    ("mouse", "more", "status", "words"),
    [
        ([], {}, 422, "mouse is not"),
        (["P", "P"], {}, 422, "mouse is not"),
        (["P", 3], {}, 422, "mouse[1] is not valid"),
        (["P", "Z"], {}, 404, "no such mouse"),
        (["P", "Q"], {"neuron_ids": [1]}, 422, "those of one mouse"),
        (["P", "Q"], {"model": "other"}, 404, "no such model"),
        ("*", {"units": "raw"}, 422, "response std"),
        ("*", {"running_speed": [1, 2]}, 422, "does not fit the images"),
    ],
)
async def test_invalid_questions_to_several_mice_are_refused(
    twin: TinyTwin, rng: np.random.Generator, mouse: Any, more: dict[str, Any], status: int, words: str
) -> None:
    async with serving(cpu_settings(twin.folder)) as client:
        response = await client.post("/predict", json=asked(mouse, twin.draw("Q", rng, 3), **more))
    assert response.status_code == status, response.text
    assert words in response.text


async def test_limits_count_an_image_once_for_each_mouse(twin: TinyTwin, rng: np.random.Generator) -> None:
    async with serving(cpu_settings(twin.folder, max_images=10)) as client:
        assert (await client.post("/predict", json=asked("*", twin.draw("Q", rng, 3)))).status_code == 200
        refused = await client.post("/predict", json=asked("*", twin.draw("Q", rng, 4)))
    assert refused.status_code == 413
    assert "4 for 3 mice each" in refused.text


async def test_one_bundle_answers_for_all_of_them(twin: TinyTwin, rng: np.random.Generator, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other", name="other", seed=1, mice=("Q", "S"), alike=True)
    arrays = twin.draw("Q", rng, 2)
    async with serving(cpu_settings(twin.folder, other.folder)) as client:
        for mouse, words in (("*", "several models hold these mice"), (["P", "S"], "no model holds all of these")):
            response = await client.post("/predict", json=asked(mouse, arrays))
            assert response.status_code == 422
            assert words in response.text
        ambiguous = await client.post("/predict", json=asked(["Q"], arrays))
        assert "several models" in ambiguous.text
        for mouse, more, right in (("*", {"model": "other"}, other), (["P", "Q"], {}, twin)):
            reply = (await client.post("/predict", json=asked(mouse, arrays, **more))).json()
            assert reply["model"]["hash"] == right.manifest.hash
            for one in reply["mice"]:
                np.testing.assert_allclose(one["responses"], right.answer(one["mouse"], *arrays), atol=1e-5)


async def test_only_predictions_accept_several_mice(twin: TinyTwin, rng: np.random.Generator) -> None:
    async with serving(cpu_settings(twin.folder)) as client:
        response = await client.post("/gradient", json=asked(["P", "Q"], twin.draw("Q", rng, 1), weights=[1.0] * 5))
        assert response.status_code == 422
        text = (await client.get("/metrics")).text
    assert "mouse is not valid" in response.text
    assert 'mouse="unknown"' in text


# The client


@pytest.mark.parametrize("mice", [["R", "P"], "*"])
@pytest.mark.parametrize("spread", [False, True])
async def test_the_client_gets_a_prediction_of_each_mouse(
    twin: TinyTwin, rng: np.random.Generator, mice: Any, spread: bool
) -> None:
    image, behavior, pupil_center = twin.draw("Q", rng, 3)
    async with serving(cpu_settings(twin.folder)) as http:
        client = AsyncClient("http://localhost", transport=http._transport)
        predictions = await client.predict_mice(
            mice,
            image,
            pupil_dilation=behavior[:, 0],
            pupil_dilation_derivative=behavior[:, 1],
            running_speed=behavior[:, 2],
            pupil_center=pupil_center,
            spread=spread,
        )
        with pytest.raises(NotFound, match="no such mouse"):
            await client.predict_mice(["P", "Z"], image)
        with pytest.raises(InvalidRequest, match="those of one mouse"):
            await client.predict_mice(["P", "Q"], image, neuron_ids=[1])
    assert list(predictions) == (list(MICE) if mice == "*" else mice)
    for mouse, prediction in predictions.items():
        members = twin.member_responses(mouse, image, behavior, pupil_center)
        np.testing.assert_allclose(prediction.responses, members.mean(0), atol=1e-5)
        assert prediction.mouse == mouse
        np.testing.assert_array_equal(prediction.neuron_ids, twin.mice[mouse].neurons.ids)
        if spread:
            assert prediction.spread is not None
            np.testing.assert_allclose(prediction.spread, members.std(0), atol=1e-5)


@pytest.mark.parametrize("mice", [["B", "A"], "*"])
def test_an_older_server_is_asked_for_each_mouse_by_itself(mice: Any, rng: np.random.Generator) -> None:
    older = ContractServer()  # without support for several mice
    images = rng.integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    with Client(transport=older.transport()) as client:
        predictions = client.predict_mice(mice, images, running_speed=4)
        assert list(predictions) == (["A", "B"] if mice == "*" else mice)
        for mouse, prediction in predictions.items():
            right = older.responses(images, np.full(2, 4.0), older.neuron_ids[mouse])
            np.testing.assert_array_equal(prediction.responses, right)
        with pytest.raises(NotFound, match="no such mouse"):
            client.predict_mice(["A", "Z"], images)


def test_impossible_names_of_mice_are_refused_before_a_request_is_sent() -> None:
    server = ContractServer()
    with Client(transport=server.transport()) as client:
        for mice, words in (("A", "mice is one name"), ([], "holds no mouse"), (["A", "A"], "one twice"), ([""], "id")):
            with pytest.raises(InvalidArgument, match=words):
                client.predict_mice(mice, np.zeros(SHAPE))
        with pytest.raises(InvalidArgument, match="predict_mice asks several"):
            client.predict(["A", "B"], np.zeros(SHAPE))  # type: ignore[arg-type]
    assert not server.seen


def test_the_command_asks_several_mice(tmp_path: Path, rng: np.random.Generator, capsys: Any) -> None:
    server = ContractServer()
    images = rng.integers(0, 256, (70, *SHAPE), dtype=np.uint8)
    np.save(tmp_path / "few.npy", images[:2])
    np.save(tmp_path / "many.npy", images)
    with server.listening() as url:
        for mice, file, output in (
            (["--mouse", "A", "--mouse", "B"], "few", "x.npy"),
            (["--mouse", "*"], "few", "y.csv"),
            (["--mouse", "*"], "many", "z.npy"),
        ):
            command = ["predict", str(tmp_path / f"{file}.npy"), *mice, "--running-speed", "4", "--url", url]
            assert main([*command, "--output", str(tmp_path / output)]) == 0
            assert main([*command, "--output", str(tmp_path / output)]) == 2, "it is there already"
    assert "mouse A, model demo" in capsys.readouterr().out
    for mouse in ("A", "B"):
        right = server.responses(images, np.full(70, 4.0), server.neuron_ids[mouse])
        np.testing.assert_array_equal(np.load(tmp_path / f"x.{mouse}.npy"), right[:2])
        np.testing.assert_array_equal(np.load(tmp_path / f"z.{mouse}.npy"), right)
        assert (tmp_path / f"y.{mouse}.csv").exists()
