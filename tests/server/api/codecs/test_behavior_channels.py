"""Twins with other behaviour channels than Sensorium's, asked over every route."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.in_process import cpu_settings, serving
from support.tiny_bundle import BEHAVIOR, TinyTwin, write_tiny_bundle

from server.bundle.manifest import MANIFEST, load_manifest
from server.errors import BundleError

CHANNELS = (("whisking", "std"), ("running_speed", "cm/s"), ("arousal", "1"), ("lick_rate", "1/s"))
LISTED = "whisking [std], running_speed [cm/s], arousal [1], lick_rate [1/s]"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    return write_tiny_bundle(tmp_path_factory.mktemp("four") / "four", name="four", behavior=CHANNELS, ranges=True)


@pytest.fixture
async def asked(tiny: TinyTwin) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(cpu_settings(tiny.folder)) as client:
        yield client


def fields(tiny: TinyTwin, B: int = 2) -> tuple[dict[str, Any], np.ndarray]:
    """A question without behaviour, and its behaviour (B, 4)."""
    image, behavior, pupil_center = tiny.draw("A", np.random.default_rng(0), B)
    return {"mouse": "A", "image": image.tolist(), "pupil_center": pupil_center.tolist()}, behavior


async def test_channels_are_given_by_name_in_json_form_and_v2(asked: httpx.AsyncClient, tiny: TinyTwin) -> None:
    question, behavior = fields(tiny)
    image, pupil_center = np.array(question["image"], np.float32), np.array(question["pupil_center"], np.float32)
    expected = tiny.answer("A", image, behavior, pupil_center)
    named = {name: behavior[:, i].tolist() for i, (name, _) in enumerate(CHANNELS)}
    reversed_ = dict(reversed(named.items()))
    speed = named["running_speed"]
    others = {name: value for name, value in named.items() if name != "running_speed"}
    for more in ({"behavior": reversed_}, {"behavior": others, "running_speed": speed}):
        reply = (await asked.post("/predict", json=question | more)).json()
        np.testing.assert_allclose(reply["responses"], expected, atol=1e-5)
        assert reply["assumed"] == []
    np.save(file := tiny.folder.parent / "image.npy", image)
    form = {"mouse": "A", "behavior": json.dumps(named), "pupil_center": json.dumps(question["pupil_center"])}
    reply = (await asked.post("/predict", data=form, files={"image": file.read_bytes()})).json()
    np.testing.assert_allclose(reply["responses"], expected, atol=1e-5)
    tensors = (("image", image), ("behavior", behavior), ("pupil_center", pupil_center))
    inputs = [
        {"name": name, "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
        for name, values in tensors
    ]
    reply = (await asked.post("/v2/models/four.A/infer", json={"inputs": inputs})).json()
    np.testing.assert_allclose(np.reshape(reply["outputs"][0]["data"], expected.shape), expected, atol=1e-5)
    inputs = (await asked.get("/v2/models/four.A")).json()["inputs"]
    assert inputs[1] == {
        "name": "behavior",
        "datatype": "FP32",
        "shape": [-1, 4],
        "parameters": {"optional": True, "channels": LISTED},
    }


async def test_what_is_left_out_is_filled_in_channel_by_channel(asked: httpx.AsyncClient, tiny: TinyTwin) -> None:
    question = fields(tiny, 1)[0]
    record = tiny.manifest.mice["A"]
    for state in ("median", "mean", "running"):
        reply = (await asked.post("/predict", json=question | {"behavior": {"arousal": 39.0}, "state": state})).json()
        values = [getattr(channel, state, None) for channel in record.behavior]
        if state == "running":
            values = list(record.states[1].behavior)
        values[2] = 39.0
        image, gaze = np.array(question["image"]), np.array(question["pupil_center"])
        np.testing.assert_allclose(reply["responses"], tiny.answer("A", image, np.array([values]), gaze), atol=1e-4)
        assert [line.split(" ")[0] for line in reply["assumed"]] == ["whisking", "running_speed", "lick_rate"]


@pytest.mark.parametrize(
    ("more", "message", "expected"),
    [
        ({"behavior": {"licking": 1}}, "mouse 'A' has no behaviour channel 'licking'", LISTED),
        ({"pupil_dilation": 40}, "mouse 'A' has no behaviour channel 'pupil_dilation'", LISTED),
        ({"behavior": {"running_speed": 1}, "running_speed": 1}, "running_speed is given twice", "one value"),
        ({"behavior": [1, 2, 3, 4]}, "behavior is not an object", "channels and their values"),
        ({"behavior": {"arousal": [1, 2, 3]}}, "arousal does not fit the images", "a list of 2"),
        ({"behavior": {"arousal": 1e39}}, "arousal", None),
    ],
)
async def test_wrong_behaviour_is_refused(
    asked: httpx.AsyncClient, tiny: TinyTwin, more: dict[str, Any], message: str, expected: str | None
) -> None:
    reply = await asked.post("/predict", json=fields(tiny)[0] | more)
    assert reply.status_code == 422
    assert message in reply.json()["error"]["message"]
    assert expected is None or expected in reply.json()["error"]["expected"]


async def test_what_is_not_json_in_a_form_is_refused(asked: httpx.AsyncClient, tiny: TinyTwin) -> None:
    np.save(file := tiny.folder.parent / "image.npy", np.array(fields(tiny)[0]["image"]))
    for behavior in ('{"arousal": NaN}', "arousal=1", '{"arousal": 1'):
        form = {"mouse": "A", "behavior": behavior}
        error = (await asked.post("/predict", data=form, files={"image": file.read_bytes()})).json()["error"]
        assert error["message"] == "behavior cannot be read"
        assert error["expected"].startswith("channels and their values")


async def test_outside_values_are_noted_by_the_channels_name(asked: httpx.AsyncClient, tiny: TinyTwin) -> None:
    reply = (await asked.post("/predict", json=fields(tiny, 1)[0] | {"behavior": {"lick_rate": 900}})).json()
    (note,) = [note for note in reply["notes"] if note["input"] == "lick_rate"]
    assert "1/s" in note["message"]


async def test_receptive_fields_are_mapped_in_such_a_state(asked: httpx.AsyncClient) -> None:
    noise = {"mouse": "A", "seed": 1, "n_images": 4, "grid": [4, 6], "luminance": 120, "contrast": 20}
    reply = await asked.post("/receptive_fields", json=noise | {"behavior": {"arousal": 1.5, "running_speed": 3}})
    assert reply.status_code == 200
    assumed = json.loads(reply.headers["V1T-Reply"])["assumed"]
    assert [line.split(" ")[0] for line in assumed] == ["whisking", "lick_rate", "pupil_center"]
    for wrong in ({"licking": 1.0}, {"arousal": "high"}, {"arousal": [1, 2]}):
        assert (await asked.post("/receptive_fields", json=noise | {"behavior": wrong})).status_code == 422


async def test_a_channel_without_statistics_has_to_be_given(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "bare", name="bare", behavior=CHANNELS, standardized=True)
    async with serving(cpu_settings(tiny.folder)) as client:
        given = {name: 0.5 for name, _ in CHANNELS if name != "arousal"}
        question = {"mouse": "A", "image": np.zeros((8, 12)).tolist(), "pupil_center": [0, 0]}
        reply = await client.post("/predict", json=question | {"behavior": given})
    assert "arousal is missing" in reply.json()["error"]["message"]


def test_older_servers_refuse_such_a_bundle_and_a_name_twice_is_refused(tiny: TinyTwin, tmp_path: Path) -> None:
    sensorium = write_tiny_bundle(tmp_path / "three", behavior=BEHAVIOR)
    content = json.loads((sensorium.folder / MANIFEST).read_text())
    assert (content["schema_version"], tiny.manifest.schema_version) == (1, 2)  # older servers know 1
    del content["schema_version"]
    assert type(sensorium.manifest).model_validate(content).hash == sensorium.manifest.hash
    content["schema_version"] = 1
    content["mice"]["A"]["behavior"][0]["name"] = "running_speed"
    (sensorium.folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"name is given twice: .*running_speed, .*running_speed"):
        load_manifest(sensorium.folder)
