"""Inputs outside of what was recorded, states that fill in what is left out, and mice that take standardised inputs."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from support.in_process import cpu_settings, serving
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.api.codecs.recorded_range import ImageRange
from server.bundle.manifest import MouseRecord
from server.inference.noise import white_noise

# Of mouse A, as `with_ranges` says: pixels 10 to 240, means 90 to 150, contrasts 20 to 80.
BEHAVIOR = {"pupil_dilation": 41.0, "pupil_dilation_derivative": 0.0, "running_speed": 3.5, "pupil_center": [250, 180]}
H, W = 8, 12


@pytest.fixture(scope="module")
def ranged(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    return write_tiny_bundle(tmp_path_factory.mktemp("ranged") / "tiny", ranges=True)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> TinyTwin:
    return write_tiny_bundle(tmp_path_factory.mktemp("imported") / "bare", name="bare", standardized=True)


@pytest.fixture
async def client(ranged: TinyTwin) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(cpu_settings(ranged.folder)) as client:
        yield client


@pytest.fixture
async def bare(imported: TinyTwin) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(cpu_settings(imported.folder)) as client:
        yield client


def grating(mean: float = 120.0, amplitude: float = 50.0) -> np.ndarray:
    """(H, W): half of its pixels the amplitude above the mean, half below: its contrast is the amplitude."""
    return mean + amplitude * np.where(np.indices((H, W)).sum(0) % 2, 1.0, -1.0)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


async def notes(client: httpx.AsyncClient, image: np.ndarray | None = None, **fields: Any) -> list[dict[str, Any]]:
    image = grating() if image is None else image
    response = await client.post("/predict", json={"mouse": "A", "image": image.tolist(), **BEHAVIOR, **fields})
    assert response.status_code == 200, response.text
    return response.json()["notes"]  # type: ignore[no-any-return]


# Outside of what was recorded


async def test_inputs_that_were_recorded_have_no_note(client: httpx.AsyncClient) -> None:
    assert await notes(client) == []
    assert await notes(client, grating(150, 80)) == []  # at the bounds themselves
    assert await notes(client, running_speed=18.0, pupil_dilation=16.0) == []
    assert await notes(client, running_speed=18.4) == []  # within a tenth of the std, 5, of the fastest trial
    assert len(await notes(client, running_speed=18.6)) == 1


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (grating() / 255, ["mean 0.4706", "grey levels are 0 to 255", "contrast 0.1961", "20 to 80"]),
        ((grating() - 120) / 50, ["darkest pixel -1", "10 to 240"]),
        (grating() * 1e3, ["brightest pixel 1.7e+05", "mean 1.2e+05", "contrast 5e+04"]),
        (grating(200, 30), ["mean 200", "90 to 150"]),
        (grating(120, 5), ["contrast 5;", "20 to 80"]),
        (grating(150, 95), ["brightest pixel 245", "contrast 95"]),
    ],
    ids=["divided by 255", "z-scored", "times 1000", "bright", "flat", "hard"],
)
async def test_images_outside_of_what_was_recorded_are_noted_with_the_test_that_failed(
    client: httpx.AsyncClient, image: np.ndarray, words: list[str]
) -> None:
    (note,) = await notes(client, image)
    assert (note["code"], note["input"]) == ("outside_recording", "image")
    for word in words:
        assert word in note["message"]
    assert ("0 to 255" in note["message"]) == ("0 to 255" in str(words))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (
            "pupil_dilation",
            4100,
            "pupil_dilation is outside of what was recorded: 4100; recorded: 16 to 64 eye-camera px",
        ),
        ("running_speed", -50, "running_speed is outside of what was recorded: -50; recorded: -12 to 18 cm/s"),
        ("pupil_dilation_derivative", 8, "8; recorded: -5.5 to 6.5"),
        ("pupil_center", [250, 99], "y 99; recorded: y 150 to 210 eye-camera px"),
        ("pupil_center", [400, 99], "x 400, y 99; recorded: x 205 to 295 eye-camera px, y 150 to 210"),
    ],
)
async def test_behavior_and_gaze_outside_of_what_was_recorded_are_noted(
    client: httpx.AsyncClient, field: str, value: Any, words: str
) -> None:
    (note,) = await notes(client, **{field: value})
    assert (note["code"], note["input"]) == ("outside_recording", field)
    assert words in note["message"]


async def test_a_note_counts_the_images_that_it_is_about(client: httpx.AsyncClient) -> None:
    images = np.stack([grating()] * 5)[:, None]
    images[[1, 3]] += 90
    image, speed = await notes(client, images, running_speed=[0, 1, 2, 3, 99])
    assert image["message"].startswith("2 of 5 images: image is outside of what was recorded: ")
    assert speed["message"].startswith("1 of 5 images: running_speed is outside of what was recorded: 99; ")


async def test_what_changes_no_response_is_not_checked(client: httpx.AsyncClient, ranged: TinyTwin) -> None:
    image = np.stack([grating()[:4, :6]] * 2).tolist()  # of mouse B, which ignores the pupil centre
    asked = {"mouse": "B", "image": image, **BEHAVIOR, "pupil_center": [9999, 0]}
    reply = (await client.post("/predict", json=asked)).json()
    assert reply["notes"] == []
    assert len(reply["assumed"]) == 1


async def test_a_bundle_without_ranges_has_no_notes(twin: TinyTwin) -> None:
    async with serving(cpu_settings(twin.folder)) as client:
        assert await notes(client, grating() / 255, pupil_dilation=4100, running_speed=-50) == []


def test_images_of_the_largest_numbers_are_compared_without_overflow(ranged: TinyTwin) -> None:
    shown = ImageRange(ranged.manifest.mice["A"])
    shown.add(np.float32(2e36) * grating().astype(np.float32)[None, None])
    (found,) = shown.found()
    assert "contrast 1e+38" in found.got


def test_the_checks_agree_with_float64_however_images_are_divided(ranged: TinyTwin) -> None:
    record = ranged.manifest.mice["B"]  # two channels
    rng = np.random.default_rng(0)
    mean, contrast = rng.uniform(100, 140, (60, 2, 1, 1)), rng.uniform(5, 60, (60, 2, 1, 1))
    images = (mean + contrast * rng.standard_normal((60, 2, 4, 6))).astype(np.float32)
    wide = images.astype(np.float64)
    values = {"pixel": (wide.min((2, 3)), wide.max((2, 3)), 10, 240)}
    values |= {"mean": (wide.mean((2, 3)),) * 2 + (90, 150), "contrast": (wide.std((2, 3)),) * 2 + (20, 80)}
    expected = np.any([((low < a) | (high > b)).any(1) for low, high, a, b in values.values()], axis=0)
    assert 10 < expected.sum() < 50
    for size in (60, 7, 1):
        shown = ImageRange(record)
        for start in range(0, 60, size):
            shown.add(images[start : start + size])
        (found,) = shown.found()
        assert found.which == f"{expected.sum()} of 60 images"


@pytest.mark.parametrize("path", ["/predict", "/gradient", "/attention"])
@pytest.mark.parametrize("as_form", [False, True])
async def test_a_strict_request_is_refused(client: httpx.AsyncClient, path: str, as_form: bool) -> None:
    fields: dict[str, Any] = {"mouse": "A", **BEHAVIOR, "pupil_dilation": 4100, "strict": True}
    if path == "/gradient":
        fields["weights"] = [1.0] * 7
    if as_form:
        data = {name: value if name == "mouse" else json.dumps(value) for name, value in fields.items()}
        response = await client.post(path, data=data, files={"image": npy(grating())})
    else:
        response = await client.post(path, json={**fields, "image": grating().tolist()})
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert error["code"] == "outside_recording"
    assert "pupil_dilation" in error["message"]
    assert (error["got"], error["expected"]) == ("4100", "16 to 64 eye-camera px")
    assert "strict" in error["hint"]


async def test_notes_are_counted_by_model_mouse_and_input(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await notes(client, grating() / 255, running_speed=-50)
    await notes(client)
    samples = [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families((await client.get("/metrics")).text)
        for sample in family.samples
        if sample.name == "v1t_outside_recording_total"
    ]
    labels = {"model": "tiny", "mouse": "A"}
    assert samples == [({**labels, "input": "image"}, 2), ({**labels, "input": "running_speed"}, 2)]


async def test_every_encoding_of_a_reply_has_the_notes(client: httpx.AsyncClient) -> None:
    fields = {"mouse": "A", "image": grating().tolist(), **BEHAVIOR, "running_speed": -50}
    (expected,) = await notes(client, running_speed=-50)
    header = (await client.post("/predict", json=fields, headers={"Accept": "application/x-npy"})).headers["v1t-reply"]
    assert json.loads(header)["notes"] == [expected]
    assert json.loads(header)["state"] == "median"
    speed = np.array([[41.0, 0.0, -50.0]])
    tensors = [("image", grating()[None, None]), ("behavior", speed), ("pupil_center", np.array([[250.0, 180.0]]))]
    inputs = [
        {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
        for name, array in tensors
    ]
    reply = (await client.post("/v2/models/tiny.A/infer", json={"inputs": inputs})).json()
    assert json.loads(reply["parameters"]["notes"]) == [expected]
    assert json.loads(reply["parameters"]["assumed"]) == []
    refused = await client.post("/v2/models/tiny.A/infer", json={"inputs": inputs, "parameters": {"strict": True}})
    assert refused.status_code == 422
    assert "running_speed is outside" in refused.json()["error"]


async def test_of_several_mice_each_has_its_own_notes(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny", mice=("A", "C"), alike=True, ranges=True)
    image = np.stack([grating()[:4, :6]] * 2)
    async with serving(cpu_settings(tmp_path)) as client:
        fields = {"mouse": "*", "image": image.tolist(), "running_speed": -50, "state": "rest"}
        reply = (await client.post("/predict", json=fields)).json()
        header = await client.post("/predict", json=fields, headers={"Accept": "application/x-npy"})
    for mice in (reply["mice"], json.loads(header.headers["v1t-reply"])["mice"]):
        assert [mouse["mouse"] for mouse in mice] == ["A", "C"]
        for mouse in mice:
            assert mouse["state"] == "rest"
            assert [note["input"] for note in mouse["notes"]] == ["running_speed"]
            assert all(f"of mouse {mouse['mouse']}" in assumed for assumed in mouse["assumed"])


# White noise


def noise(**more: Any) -> dict[str, Any]:
    fields = {"mouse": "A", "seed": 3, "n_images": 40, "grid": [4, 6], "luminance": 120, "contrast": 35}
    return {**fields, **BEHAVIOR, **more}


async def stream(client: httpx.AsyncClient, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the header and the part say."""
    response = await client.post("/receptive_fields", json=noise(**more))
    assert response.status_code == 200, response.text
    start = response.content.index(b'{"event":"part"')
    return json.loads(response.headers["v1t-reply"]), json.loads(response.content[start:].split(b"\n", 1)[0])


async def test_noise_is_checked_as_it_is_shown(client: httpx.AsyncClient) -> None:
    head, part = await stream(client)
    assert head["notes"] == part["notes"] == []
    head, part = await stream(client, luminance=148, running_speed=99)
    levels = 148 + 35.0 * white_noise(3, 0, 40, (4, 6)).astype(np.float64)
    mean, contrast = levels.mean((1, 2)), levels.std((1, 2))
    outside = (mean > 150) | (mean < 90) | (contrast > 80) | (contrast < 20) | (levels.max((1, 2)) > 240)
    assert outside[:8].any()
    assert [note["input"] for note in part["notes"]] == ["running_speed", "image"]
    assert part["notes"][1]["message"].startswith(f"{outside.sum()} of 40 images: ")
    assert f"{outside[:8].sum()} of 8 images: " in str(head["notes"])


async def test_strict_noise_is_refused_before_or_while_it_is_shown(client: httpx.AsyncClient) -> None:
    refused = await client.post("/receptive_fields", json=noise(luminance=0, contrast=0, strict=True))
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "outside_recording")
    mean = (120 + 60 * white_noise(3, 0, 400, (4, 6)).astype(np.float64)).mean((1, 2))
    outside = (mean < 90) | (mean > 150)
    assert not outside[:8].any()
    assert outside[8:].any()
    asked = noise(contrast=60, n_images=400, strict=True)
    response = await client.post("/receptive_fields", json=asked)
    assert (response.status_code, json.loads(response.headers["v1t-reply"])["notes"]) == (200, [])
    last = json.loads(response.content.splitlines()[-1])
    assert (last["event"], last["error"]["code"], last["status"]) == ("error", "outside_recording", 422)


# States


async def test_the_median_fills_in_what_is_left_out(client: httpx.AsyncClient, ranged: TinyTwin) -> None:
    image = grating().astype(np.float32)
    reply = (await client.post("/predict", json={"mouse": "A", "image": image.tolist()})).json()
    expected = ranged.answer("A", image[None, None], np.array([[36, -0.5, 0.5]]), np.array([[242.5, 175]]))
    np.testing.assert_allclose(reply["responses"], expected, atol=1e-5)
    assert reply["state"] == "median"
    values = {"pupil_dilation_derivative": "-0.5 eye-camera px/s", "running_speed": "0.5 cm/s"}
    values["pupil_center"] = "(242.5, 175) eye-camera px"
    assert reply["assumed"][-3:] == [
        f"{name} left out: the training median {value} of mouse A was used (state=median)"
        for name, value in values.items()
    ]


@pytest.mark.parametrize(
    ("state", "behavior", "pupil_center", "words"),
    [
        ("mean", [40, 0.5, 3], [250, 180], "the training mean 3 cm/s"),
        ("rest", [39.2, 0.3, 2.5], [248.5, 179], "the median at rest 2.5 cm/s"),
        ("running", [48, 2.5, 8], [265, 190], "the median while running 8 cm/s"),
    ],
)
async def test_a_state_fills_in_what_is_left_out_and_keeps_what_is_given(
    client: httpx.AsyncClient,
    ranged: TinyTwin,
    state: str,
    behavior: list[float],
    pupil_center: list[float],
    words: str,
) -> None:
    image = grating().astype(np.float32)
    reply = (await client.post("/predict", json={"mouse": "A", "image": image.tolist(), "state": state})).json()
    expected = ranged.answer("A", image[None, None], np.array([behavior]), np.array([pupil_center]))
    np.testing.assert_allclose(reply["responses"], expected, atol=1e-5)
    assert (reply["state"], reply["notes"]) == (state, [])
    assert f"running_speed left out: {words} of mouse A was used (state={state})" in reply["assumed"]
    given = {"mouse": "A", "image": image.tolist(), "state": state, "pupil_dilation": 45}
    reply = (await client.post("/predict", json=given)).json()
    expected = ranged.answer("A", image[None, None], np.array([[45, *behavior[1:]]]), np.array([pupil_center]))
    np.testing.assert_allclose(reply["responses"], expected, atol=1e-5)
    form = {"mouse": "A", "state": state, "pupil_dilation": "45"}
    in_form = (await client.post("/predict", data=form, files={"image": npy(image)})).json()
    assert in_form["responses"] == reply["responses"]


async def test_a_state_that_the_mouse_lacks_is_refused_with_those_that_it_has(
    client: httpx.AsyncClient, twin: TinyTwin
) -> None:
    asked = {"mouse": "A", "image": grating().tolist(), "state": "running"}
    async with serving(cpu_settings(twin.folder)) as other:
        error = (await other.post("/predict", json=asked)).json()["error"]
    assert (error["code"], error["got"], error["expected"]) == ("invalid_input", "running", "median or mean")
    error = (await client.post("/predict", json={**asked, "state": "asleep"})).json()["error"]
    assert error["expected"] == "'median', 'mean', 'rest' or 'running'"


async def test_the_description_of_a_mouse_has_its_ranges_and_states(client: httpx.AsyncClient) -> None:
    mouse = (await client.get("/mice/A")).json()
    (channel,) = mouse["image_channels"]
    assert (channel["min"], channel["image_mean"], channel["image_contrast"]) == (10, [90, 150], [20, 80])
    assert [(state["name"], state["trials"]) for state in mouse["states"]] == [("rest", 30), ("running", 30)]
    assert mouse["states"][1]["behavior"] == [48, 2.5, 8]
    (summary, _) = (await client.get("/mice")).json()["mice"]
    assert (summary["simulated"], summary["standardized_inputs"]) == (True, False)


# Standardised inputs


def standard(rng: np.random.Generator) -> dict[str, Any]:
    image = rng.standard_normal((H, W)).tolist()
    return {"mouse": "A", "image": image, **dict.fromkeys(BEHAVIOR, 0.5), "pupil_center": [0.1, 0]}


async def test_every_reply_of_a_standardised_mouse_says_so(bare: httpx.AsyncClient) -> None:
    fields = standard(np.random.default_rng(0))
    reply = (await bare.post("/predict", json=fields)).json()
    assert [note["code"] for note in reply["notes"]] == ["standardized_inputs"]
    for described in ((await bare.get("/mice")).json()["mice"][0], (await bare.get("/mice/A")).json()):
        assert described["standardized_inputs"] is True
    metadata = (await bare.get("/v2/models/bare.A")).json()
    assert metadata["parameters"]["standardized_inputs"] is True
    assert metadata["inputs"][1]["parameters"]["optional"] is False


def picture(format: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(grating().astype(np.uint8)).save(stream, format)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("file", "got"),
    [
        (picture("PNG"), "a picture file"),
        (picture("JPEG"), "a picture file"),
        (npy(grating().astype(np.uint8)), "integers (dtype uint8)"),
        (npy(np.zeros((H, W), np.int64)), "integers (dtype int64)"),
        (npy(grating().astype(np.float32)), "whole numbers up to 170"),
    ],
)
async def test_pictures_and_integers_are_refused_for_a_standardised_mouse(
    bare: httpx.AsyncClient, file: bytes, got: str
) -> None:
    data = {name: json.dumps(value) for name, value in BEHAVIOR.items()}
    error = (await bare.post("/predict", data={"mouse": "A", **data}, files={"image": file})).json()["error"]
    assert error["code"] == "invalid_input"
    assert "takes standardised inputs" in error["message"]
    assert got in error["got"]
    assert "--recordings" in error["hint"]


async def test_numbers_that_are_grey_levels_are_refused_for_a_standardised_mouse(bare: httpx.AsyncClient) -> None:
    fields = standard(np.random.default_rng(0))
    refused = await bare.post("/predict", json={**fields, "image": grating().astype(int).tolist()})
    assert refused.status_code == 422
    assert "whole numbers up to 170" in refused.json()["error"]["got"]
    image = {"name": "image", "datatype": "FP32", "shape": [1, 1, H, W], "data": grating().ravel().tolist()}
    refused = await bare.post("/v2/models/bare.A/infer", json={"inputs": [image]})
    assert refused.status_code == 422
    assert "takes standardised inputs" in refused.json()["error"]
    checkerboard = np.sign(grating() - 120).tolist()  # -1 and 1
    assert (await bare.post("/predict", json={**fields, "image": checkerboard})).status_code == 200


async def test_standardised_inputs_far_from_any_recording_are_noted(bare: httpx.AsyncClient) -> None:
    fields = standard(np.random.default_rng(0))
    far = {"image": (np.array(fields["image"]) * 30).tolist(), "pupil_dilation": 51, "pupil_center": [0, -11]}
    reply = (await bare.post("/predict", json={**fields, **far})).json()
    assert [note["input"] for note in reply["notes"]] == [None, "image", "pupil_dilation", "pupil_center"]
    near = {"image": np.clip(np.array(fields["image"]) * 4, -9.9, 9.9).tolist(), "pupil_dilation": 49}
    reply = (await bare.post("/predict", json={**fields, **near})).json()
    assert [note["input"] for note in reply["notes"]] == [None]


def test_a_record_of_an_older_bundle_is_checked_by_what_it_has(ranged: TinyTwin) -> None:
    record = ranged.manifest.mice["A"]
    (channel,) = record.image_channels
    older: MouseRecord = record.model_copy(
        update={"image_channels": [channel.model_copy(update={"image_mean": None, "image_contrast": None})]}
    )
    for mean, is_outside in ((200, False), (235, True)):
        shown = ImageRange(older)
        shown.add(grating(mean, 10).astype(np.float32)[None, None])
        assert bool(shown.found()) is is_outside
