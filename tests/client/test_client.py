"""The client: what it sends, what it makes of replies, when it asks again, and how it fails."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import io
import json
import pickle
import random
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import v1t_client
from PIL import Image as PillowImage
from support.contract_server import MEDIAN_SPEED, SHAPE, ContractServer, error_reply, json_reply, npy_reply
from v1t_client import AsyncClient, Client, DifferentiablePredictor, Prediction, Predictor
from v1t_client._protocol.arguments import (
    GradientOptions,
    GradientRequest,
    ImageOptions,
    ImageRequest,
    NeuronFilters,
    PredictOptions,
    PredictRequest,
)
from v1t_client._protocol.operations import Operations, Send, Sleep
from v1t_client._protocol.retry import Retry

EXAMPLES = Path(v1t_client.__file__).parents[1] / "examples"


def png(shape: tuple[int, int] = SHAPE[1:]) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng().integers(0, 256, shape, dtype=np.uint8)
    PillowImage.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


# What is sent


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "float32", ">f4"])
@pytest.mark.parametrize("shape", [SHAPE[1:], SHAPE, (4, *SHAPE)])
def test_arrays_arrive_as_they_were_and_responses_come_back(server, client, rng, shape, dtype):
    image = rng.integers(0, 100, shape).astype(dtype)
    prediction = client.predict("A", image, running_speed=7)
    received = server.seen[0].array()
    assert received.shape == shape
    assert received.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(received, image)
    batch = image.reshape(-1, *SHAPE)
    expected = server.responses(batch, np.full(len(batch), 7.0), server.neuron_ids["A"])
    np.testing.assert_array_equal(prediction.responses, expected)
    np.testing.assert_array_equal(prediction.neuron_ids, server.neuron_ids["A"])
    assert prediction.responses.dtype == np.float32


@pytest.mark.parametrize(
    ("dtype", "highest", "sent"),
    [
        ("float64", 255, np.float32),
        ("int64", 255, np.uint8),  # still integers, so that the server can refuse them for standardised mice
        ("uint32", 4000, np.uint16),
        ("int32", 1e6, np.float32),
    ],
)
def test_wide_numbers_travel_as_narrow_ones_of_their_kind(server, client, rng, dtype, highest, sent):
    image = (rng.uniform(highest / 2, highest, SHAPE)).astype(dtype)
    client.predict("A", image)
    assert server.seen[0].array().dtype == sent
    np.testing.assert_allclose(server.seen[0].array(), image, rtol=1e-6)


def test_an_array_in_another_memory_order_arrives_the_same(server, client, rng):
    image = np.asfortranarray(rng.uniform(0, 255, (3, *SHAPE)).astype(np.float32))
    client.predict("A", image[::-1])
    np.testing.assert_array_equal(server.seen[0].array(), image[::-1])


@pytest.mark.parametrize("shape", [SHAPE[1:], SHAPE])
def test_a_list_of_arrays_becomes_one_batch(server, client, rng, shape):
    images = [rng.uniform(0, 255, shape).astype(np.float32) for _ in range(5)]
    prediction = client.predict("A", images)
    np.testing.assert_array_equal(server.seen[0].array(), np.stack(images).reshape(5, *SHAPE))
    assert len(prediction) == 5


@pytest.mark.parametrize("given", ["path", "string", "bytes", "bytearray", "memoryview"])
def test_image_files_are_sent_byte_for_byte(server, client, tmp_path, given):
    content = png()
    path = tmp_path / "wrongly named.jpg"  # the content says what it is, not the name
    path.write_bytes(content)
    kinds = {
        "path": path,
        "string": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
    }
    client.predict("A", kinds[given])
    ((filename, content_type, received),) = server.seen[0].images
    assert (filename, content_type) == ("image.png", "image/png")
    assert received == content


def test_jpeg_and_npy_files_are_told_apart(server, client, tmp_path, rng):
    jpeg = io.BytesIO()
    PillowImage.fromarray(rng.integers(0, 256, SHAPE[1:], dtype=np.uint8)).save(jpeg, format="JPEG")
    np.save(tmp_path / "batch.npy", rng.integers(0, 256, (6, *SHAPE), dtype=np.uint8))
    client.predict("A", jpeg.getvalue())
    prediction = client.predict("A", tmp_path / "batch.npy")
    kinds = [seen.images[0][1] for seen in server.seen if seen.images]
    assert kinds == ["image/jpeg", "application/x-npy"]
    assert len(prediction) == 6


def test_a_pillow_image_keeps_its_pixels(server, client, rng):
    pixels = rng.integers(0, 256, SHAPE[1:], dtype=np.uint8)
    client.predict("A", PillowImage.fromarray(pixels))
    ((_, content_type, content),) = server.seen[0].images
    assert content_type == "image/png"
    np.testing.assert_array_equal(np.asarray(PillowImage.open(io.BytesIO(content))), pixels)


def test_a_mixed_list_is_sent_part_by_part_in_order(server, client, rng):
    first, second = png(), rng.integers(0, 256, SHAPE, dtype=np.uint8)
    third = rng.integers(0, 256, SHAPE, dtype=np.uint8)
    prediction = client.predict("A", [first, second, third])
    contents = [content for _, _, content in server.seen[0].images]
    assert contents[0] == first
    np.testing.assert_array_equal(np.load(io.BytesIO(contents[1])), second)
    np.testing.assert_array_equal(np.load(io.BytesIO(contents[2])), third)
    assert len(prediction) == 3


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"pupil_dilation": 41}, {"pupil_dilation": 41}),
        ({"pupil_dilation_derivative": -0.25}, {"pupil_dilation_derivative": -0.25}),
        ({"running_speed": np.float32(2.5)}, {"running_speed": 2.5}),
        ({"running_speed": np.array(2.5)}, {"running_speed": 2.5}),
        ({"running_speed": [1, 2.5]}, {"running_speed": [1, 2.5]}),
        ({"behavior": {"whisking": 0.5, "licks": [1, 2]}}, {"behavior": {"whisking": 0.5, "licks": [1, 2]}}),
        ({"behavior": {"running_speed": 3}}, {"running_speed": 3}),  # as older servers know it
        ({"behavior": {"running_speed": 3, "whisking": 1}}, {"running_speed": 3, "behavior": {"whisking": 1}}),
        ({"behavior": {}, "pupil_dilation": 40}, {"pupil_dilation": 40}),
        ({"pupil_center": (3, -1.5)}, {"pupil_center": [3, -1.5]}),
        ({"pupil_center": np.array([[3.0, 4.0], [5.0, 6.0]])}, {"pupil_center": [[3, 4], [5, 6]]}),
        ({"spread": True}, {"spread": True}),
    ],
)
def test_inputs_become_form_fields(server, client, given, sent):
    client.predict("A", np.zeros((2, *SHAPE), np.uint8), **given)
    form = server.seen[0].form
    assert {name: json.loads(form[name]) for name in sent} == sent
    assert set(form) == {"mouse", "units", *sent}


def test_words_are_sent_as_they_are(server, client):
    client.predict("B", np.zeros(SHAPE, np.uint8), units="raw", resize="fit", model="demo")
    assert server.seen[0].form == {"mouse": "B", "units": "raw", "resize": "fit", "model": "demo"}


def test_a_number_per_image_reaches_its_image(server, client, rng):
    images, speeds = rng.integers(0, 256, (9, *SHAPE), dtype=np.uint8), rng.uniform(0, 30, 9)
    prediction = client.predict("A", images, running_speed=speeds)
    np.testing.assert_array_equal(prediction.responses, server.responses(images, speeds, server.neuron_ids["A"]))


@pytest.mark.parametrize(
    ("image", "options", "says"),
    [
        (np.zeros(5), {}, "image has 1 dimensions"),
        (np.zeros((0, *SHAPE)), {}, "image is empty"),
        (np.zeros(SHAPE, bool), {}, "dtype bool"),
        (np.zeros(SHAPE, complex), {}, "dtype complex"),
        (np.full(SHAPE, np.nan), {}, "NaN or infinite"),
        (np.full(SHAPE, 1e300), {}, "too large for float32"),
        (np.array([[object()]]), {}, "dtype object"),
        ([], {}, "empty list"),
        ([[1, 2], [3, 4]], {}, "numpy.asarray"),
        ([np.zeros(SHAPE), np.zeros((1, 2, 3))], {}, "differ in shape"),
        ([np.zeros((2, *SHAPE))] * 2, {}, "numpy.concatenate"),
        (None, {}, "NoneType"),
        ("there/is/no.png", {}, "there/is/no.png"),
        ("https://example.org/a.png", {}, "Download it first"),
        (".", {}, "cannot be read"),
        (b"GIF89a....", {}, "not a PNG, JPEG or .npy"),
        (b"", {}, "not a PNG, JPEG or .npy"),
        (np.zeros(SHAPE), {"running_speed": True}, "running_speed does not hold real numbers"),
        (np.zeros(SHAPE), {"running_speed": "3"}, "running_speed does not hold real numbers"),
        (np.zeros(SHAPE), {"running_speed": float("nan")}, "running_speed has NaN"),
        (np.zeros(SHAPE), {"running_speed": [[1.0]]}, "running_speed has the wrong shape"),
        (np.zeros(SHAPE), {"behavior": [1, 2, 3]}, "behavior is not a mapping"),
        (np.zeros(SHAPE), {"behavior": {"whisking": float("nan")}}, "whisking has NaN"),
        (np.zeros(SHAPE), {"behavior": {"whisking": "much"}}, "whisking does not hold real numbers"),
        (np.zeros(SHAPE), {"behavior": {"running_speed": 1}, "running_speed": 1}, "running_speed is given twice"),
        (np.zeros(SHAPE), {"pupil_center": 3}, "pupil_center has the wrong shape"),
        (np.zeros(SHAPE), {"pupil_center": [[1, 2], [3]]}, "pupil_center is ragged"),
        (np.zeros(SHAPE), {"neuron_ids": [1.5]}, "neuron_ids is not a list of integers"),
        (np.zeros(SHAPE), {"neuron_ids": [True]}, "neuron_ids is not a list of integers"),
        (np.zeros(SHAPE), {"neuron_ids": 12}, "neuron_ids is not a list of integers"),
        (np.zeros(SHAPE), {"mouse": 3}, "mouse is not a mouse id"),
        (np.zeros(SHAPE), {"mouse": ""}, "mouse is not a mouse id"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_sending(server, client, image, options, says):
    with pytest.raises(v1t_client.InvalidArgument) as refused:
        client.predict(**{"mouse": "A", "image": image, **options})
    assert says in str(refused.value)
    assert isinstance(refused.value, ValueError)
    assert server.seen == []


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "ftp://a", "", "http://", None, "http://[::1"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(v1t_client.InvalidArgument, match=r"http://127\.0\.0\.1:3000"):
        Client(url)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("inf")}, {"retries": -1}, {"retries": 1.5}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(v1t_client.InvalidArgument):
        Client(**options)


def test_the_priority_is_sent_where_it_is_not_the_servers_own(server):
    for priority, sent in (("interactive", None), ("bulk", "bulk")):
        with Client(transport=server.transport(), priority=priority) as client:
            client.mice()
        assert server.seen[-1].headers.get("v1t-priority") == sent
    with pytest.raises(v1t_client.InvalidArgument, match="priority is not known; got 'soon'"):
        Client(priority="soon")


def test_the_api_key_is_sent_and_not_shown(server):
    with Client(transport=server.transport(), api_key="a-secret") as client:
        client.mice()
        assert "a-secret" not in repr(client)
    assert server.seen[0].headers["authorization"] == "Bearer a-secret"
    with pytest.raises(v1t_client.InvalidArgument) as refused:
        Client(api_key="a-secret\n")
    assert "a-secret" not in str(refused.value)


def test_a_url_with_a_path_keeps_it(server):
    with (
        Client("http://127.0.0.1:3000/twins/", transport=server.transport()) as client,
        pytest.raises(v1t_client.NotFound),
    ):
        client.mice()
    assert server.seen[0].path == "/twins/mice"


# What comes back


def test_neurons_keep_the_order_asked_for(server, client):
    ids = server.neuron_ids["A"][[7, 2, 19, 3]]
    for given in (ids, ids.tolist(), tuple(ids)):
        prediction = client.predict("A", np.zeros(SHAPE, np.uint8), neuron_ids=given)
        np.testing.assert_array_equal(prediction.neuron_ids, ids)
        np.testing.assert_array_equal(
            prediction.responses, server.responses(np.zeros((1, *SHAPE)), np.array([MEDIAN_SPEED]), ids)
        )
    assert {seen.path for seen in server.seen} == {"/predict"}


def test_a_reply_need_not_repeat_the_neurons_asked_for(server, client):
    ids = server.neuron_ids["A"][[5, 1]].tolist()
    header = {"model": {"name": "demo", "hash": "cd"}, "mouse": "A", "units": "standardized"}
    server.script.append(npy_reply(np.ones((1, 2), np.float32), header))
    prediction = client.predict("A", np.zeros(SHAPE, np.uint8), neuron_ids=ids)
    assert prediction.neuron_ids.tolist() == ids
    assert prediction.model == v1t_client.Model("demo", "cd")
    assert prediction.assumed == ()


def test_all_neurons_are_looked_up_once_per_mouse_and_model(server, client):
    image = np.zeros(SHAPE, np.uint8)
    for mouse in ("A", "B", "A", "B"):
        np.testing.assert_array_equal(client.predict(mouse, image).neuron_ids, server.neuron_ids[mouse])
    lookups = [seen for seen in server.seen if seen.path.endswith("/neurons")]
    assert [(seen.path, seen.query) for seen in lookups] == [
        ("/mice/A/neurons", {"model": "demo"}),
        ("/mice/B/neurons", {"model": "demo"}),
    ]
    server.hash, server.neuron_ids["A"] = "ef" * 32, server.neuron_ids["A"][::-1]  # another bundle, same name
    np.testing.assert_array_equal(client.predict("A", image).neuron_ids, server.neuron_ids["A"])


def test_neurons_are_fetched_page_by_page(server, client):
    server.page = 5
    table = client.neurons("A")
    np.testing.assert_array_equal(table.neuron_ids, server.neuron_ids["A"])
    np.testing.assert_array_equal(table.scores["single_trial_correlation"], server.scores["A"])
    np.testing.assert_array_equal(table.readout_position_px, server.readout_positions["A"])
    np.testing.assert_array_equal(table.rows(np.array([4, 2])).readout_position_px, table.readout_position_px[[4, 2]])
    assert len(table) == table.total == 23
    assert [seen.query.get("offset") for seen in server.seen] == [None, "5", "10", "15", "20"]


def test_neuron_filters_are_passed_on(server, client):
    table = client.neurons("A", x_min=-50.5, score="single_trial_correlation", score_min=0.3, limit=4, offset=1)
    assert server.seen[0].query == {
        "x_min": "-50.5",
        "score": "single_trial_correlation",
        "score_min": "0.3",
        "limit": "4",
        "offset": "1",
    }
    rows = np.flatnonzero((server.scores["A"] >= 0.3) & (server.coordinates["A"][:, 0] >= -50.5))
    np.testing.assert_array_equal(table.neuron_ids, server.neuron_ids["A"][rows][1:5])
    assert table.total == len(rows)
    assert np.isnan(table.coordinates_um[0]).all()
    np.testing.assert_array_equal(table.coordinates_um[1:], server.coordinates["A"][rows][2:5])
    assert np.isnan(table.response_std).all()
    assert "mouse 'A'" in repr(table)


def test_no_neuron_passing_the_filters_is_an_empty_table(client):
    table = client.neurons("A", score_min=2)
    assert (len(table), table.total, table.coordinates_um.shape) == (0, 0, (0, 3))
    assert "none known" in repr(table)


def test_spread_is_told_apart_from_responses(server, client, rng):
    images = rng.integers(0, 256, (3, *SHAPE), dtype=np.uint8)
    prediction = client.predict("A", images, spread=True)
    expected = server.responses(images, np.full(3, MEDIAN_SPEED), server.neuron_ids["A"])
    np.testing.assert_array_equal(prediction.responses, expected)
    np.testing.assert_array_equal(prediction.spread, expected / 10)


def test_a_prediction_says_what_it_is(server, client):
    prediction = client.predict("A", np.zeros(SHAPE, np.uint8))
    assert prediction.mouse == "A"
    assert prediction.units == "standardized"
    assert prediction.model.members == 3
    assert prediction.request_id == "request-1"
    assert prediction.assumed == ("running_speed left out: the training median 0.05 cm/s",)
    shown = repr(prediction)
    for words in ("mouse 'A'", "1 image x 23 neurons", "demo ababab", "Trained on a simulated", *prediction.assumed):
        assert words in shown
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.mouse = "B"


def test_a_prediction_becomes_json(server, client):
    ids = server.neuron_ids["A"][:2].tolist()
    content = json.loads(json.dumps(client.predict("A", np.zeros(SHAPE, np.uint8), neuron_ids=ids).to_dict()))
    assert set(content) == {
        "request_id",
        "model",
        "mouse",
        "units",
        "state",
        "assumed",
        "notes",
        *("neuron_ids", "responses"),
    }
    assert content["neuron_ids"] == ids
    assert content["model"]["hash"] == "ab" * 32
    spread = client.predict("A", np.zeros(SHAPE, np.uint8), neuron_ids=ids, spread=True).to_dict()["spread"]
    assert np.shape(spread) == (1, 2)


def test_selecting_neurons_keeps_columns_with_their_ids(server, client, rng):
    prediction = client.predict("A", rng.integers(0, 256, (2, *SHAPE), dtype=np.uint8), spread=True)
    columns = [20, 0, 11]
    chosen = prediction.select(prediction.neuron_ids[columns])
    np.testing.assert_array_equal(chosen.responses, prediction.responses[:, columns])
    np.testing.assert_array_equal(chosen.spread, prediction.spread[:, columns])
    np.testing.assert_array_equal(chosen.neuron_ids, prediction.neuron_ids[columns])
    assert chosen.assumed == prediction.assumed
    with pytest.raises(v1t_client.InvalidArgument, match="999999"):
        prediction.select([999999])


def test_xarray_is_asked_for_by_name_where_it_is_missing(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(v1t_client.MissingExtra, match=r"pip install './clients/python\[xarray\]'"):
        client.predict("A", np.zeros(SHAPE, np.uint8)).to_xarray()


def test_an_import_error_of_another_cause_is_quoted(client, monkeypatch, tmp_path):
    """Such as a package that was built for another numpy: it is installed, and installing it again may not help."""
    (tmp_path / "xarray.py").write_text("raise ImportError('numpy.core.multiarray failed to import')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "xarray"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(v1t_client.MissingExtra, match=r"cannot be imported: numpy\.core\.multiarray failed to import"):
        client.predict("A", np.zeros(SHAPE, np.uint8)).to_xarray()


def test_an_xarray_dataset_labels_images_and_neurons(client, monkeypatch):
    class Recorder:  # stands in for the package, which tests do not need installed
        @staticmethod
        def Dataset(variables: Any, coords: Any, attrs: Any) -> Any:  # noqa: N802
            return variables, coords, attrs

    monkeypatch.setitem(sys.modules, "xarray", Recorder)
    prediction = client.predict("A", np.zeros((2, *SHAPE), np.uint8), spread=True)
    variables, coords, attrs = prediction.to_xarray()
    assert variables["responses"][0] == ("image", "neuron")
    np.testing.assert_array_equal(variables["responses"][1], prediction.responses)
    np.testing.assert_array_equal(variables["spread"][1], prediction.spread)
    np.testing.assert_array_equal(coords["neuron"][1], prediction.neuron_ids)
    assert (attrs["mouse"], attrs["model_hash"], attrs["simulated"]) == ("A", "ab" * 32, 1)


def test_mice_are_listed_and_described(server, client):
    mice = client.mice()
    assert [mouse.mouse_id for mouse in mice] == ["A", "B"]
    assert (mice[0].n_neurons, mice[0].image_shape, mice[0].simulated) == (23, SHAPE, True)
    mouse = client.mouse("B", model="demo")
    assert server.seen[-1].query == {"model": "demo"}
    assert isinstance(mouse, v1t_client.Mouse)
    assert mouse.bundle.hash == "ab" * 32
    assert mouse.channel("running_speed").percentiles == {"95": 17.5}
    assert mouse.channel("luminance").std is None
    assert mouse.scores == {"single_trial_correlation": 0.41}
    with pytest.raises(v1t_client.InvalidArgument, match="pupil_center_x"):
        mouse.channel("whisking")


def test_a_mouse_id_is_quoted_in_the_path(server, client):
    with pytest.raises(v1t_client.NotFound):
        client.mouse("A/neurons?x=1")
    assert (server.seen[0].path, server.seen[0].query) == ("/mice/A%2Fneurons%3Fx%3D1", {})


GOOD_HEADER = {"model": {"name": "demo", "hash": "cd"}, "mouse": "A", "units": "standardized"}
ONE_ROW = np.ones((1, 2), np.float32)


def _pickled() -> tuple[int, dict[str, str], bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return 200, npy_reply(ONE_ROW, GOOD_HEADER)[1], buffer.getvalue()


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (json_reply({"responses": [[1, 2]]}), "V1T-Reply"),
        ((200, {"Content-Type": "text/html"}, b"<html>welcome</html>"), "V1T-Reply"),
        ((200, {**npy_reply(ONE_ROW, GOOD_HEADER)[1], "V1T-Reply": "[]"}, b""), "V1T-Reply"),
        ((200, {**npy_reply(ONE_ROW, GOOD_HEADER)[1], "Content-Type": "text/plain"}, b""), "another type"),
        ((200, npy_reply(ONE_ROW, GOOD_HEADER)[1], npy_reply(ONE_ROW, {})[2][:-3]), "cannot be read"),
        (_pickled(), "cannot be read"),
        (npy_reply(ONE_ROW.astype(np.float64), GOOD_HEADER), "dtype"),
        (npy_reply(ONE_ROW[0], GOOD_HEADER), "wrong shape"),
        (npy_reply(np.ones((1, 3), np.float32), GOOD_HEADER), "number of neurons"),
        (npy_reply(np.ones((4, 2), np.float32), GOOD_HEADER), "number of images"),
        (npy_reply(ONE_ROW, {**GOOD_HEADER, "mouse": "B"}), "another mouse"),
        (npy_reply(ONE_ROW, {**GOOD_HEADER, "neuron_ids": [8, 9]}), "other neurons"),
        (npy_reply(ONE_ROW, {**GOOD_HEADER, "model": "demo"}), "'model'"),
        (npy_reply(ONE_ROW, {**GOOD_HEADER, "model": {"name": "demo"}}), "'hash'"),
    ],
)
def test_a_reply_outside_the_contract_is_refused(server, client, reply, says):
    server.script.append(reply)
    with pytest.raises(v1t_client.ReplyInvalid) as refused:
        client.predict("A", np.zeros(SHAPE, np.uint8), neuron_ids=[9, 8])
    assert says in str(refused.value)
    assert "v1t server" in refused.value.hint


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ([(1, *SHAPE), (1, 2), (1, 3)], "cannot be read"),
        ([(1, *SHAPE[1:]), (1, 2), (1, 3), (1, 2)], "wrong shapes"),
        ([(2, *SHAPE), (1, 2), (1, 3), (1, 2)], "wrong shapes"),
        ([(1, *SHAPE), (1, 2), (1, 2), (1, 3)], "wrong shapes"),
        ([(1, *SHAPE), (1, 3), (1, 3), (1, 2)], "number of neurons"),
        ([(2, *SHAPE), (2, 2), (2, 3), (2, 2)], "number of images"),
    ],
)
def test_a_gradient_outside_the_contract_is_refused(server, client, shapes, says):
    body = b"".join(npy_reply(np.ones(shape, np.float32), {})[2] for shape in shapes)
    server.script.append((200, npy_reply(ONE_ROW, GOOD_HEADER)[1], body))
    with pytest.raises(v1t_client.ReplyInvalid, match=says):
        client.gradient("A", np.zeros(SHAPE, np.uint8), weights=[1, 2], neuron_ids=[9, 8])


@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (1, 3, 4)])
def test_attention_outside_the_contract_is_refused(server, client, shape):
    server.script.append(npy_reply(np.ones(shape, np.float32), GOOD_HEADER))
    with pytest.raises(v1t_client.ReplyInvalid):
        client.attention("A", np.zeros(SHAPE, np.uint8))


@pytest.mark.parametrize("content", [[], {"mice": {}}, {"mice": [3]}, {"mice": [{"mouse": "A"}]}, {}])
def test_a_list_of_mice_outside_the_contract_is_refused(server, client, content):
    server.script.append(json_reply(content))
    with pytest.raises(v1t_client.ReplyInvalid):
        client.mice()


def test_a_reply_of_an_older_server_that_says_less_is_read(server, client):
    model = {"name": "demo", "hash": "ab" * 32}
    header = {"model": model, "mouse": "A", "units": "standardized", "neuron_ids": [9, 8]}
    server.script.append(npy_reply(ONE_ROW, header))
    prediction = client.predict("A", np.zeros(SHAPE, np.uint8), neuron_ids=[9, 8])
    np.testing.assert_array_equal(prediction.responses, ONE_ROW)
    assert (prediction.assumed, prediction.model.members, prediction.model.notice) == ((), 1, None)
    assert (prediction.state, prediction.notes, prediction.images) == (None, (), ())
    summary = {"mouse": "A", "model": "demo", "n_neurons": 23, "image_shape": list(SHAPE)}
    server.script.append(json_reply({"mice": [summary]}))
    assert client.mice()[0].uses == ()
    server.script.append(json_reply({**summary, "model": model}))
    assert client.mouse("A").behavior == ()
    server.script.append(json_reply({"mouse": "A", "model": "demo", "neuron_ids": [9, 8]}))
    assert client.neurons("A").total == 2


@pytest.mark.parametrize("ask", ["gradient", "attention"])
def test_a_route_that_an_older_server_does_not_have_is_named(server, client, ask):
    more = {"weights": [1.0]} if ask == "gradient" else {}
    with pytest.raises(v1t_client.NotFound, match=f"no route /{ask}.*docs.json"):
        getattr(client, ask)("A", np.zeros(SHAPE, np.uint8), **more)
    assert len(server.seen) == 1


def test_neurons_that_changed_between_two_requests_are_noticed(server, client):
    server.script.append(npy_reply(np.ones((1, 20), np.float32), GOOD_HEADER))
    with pytest.raises(v1t_client.ReplyInvalid, match="Repeat the call"):
        client.predict("A", np.zeros(SHAPE, np.uint8))


class Swapping(ContractServer):
    """Has its bundle swapped for one of other neurons after its first so many predictions."""

    def __init__(self, swaps: int) -> None:
        super().__init__()
        self.swaps = swaps

    def _predict(self, seen):
        reply = super()._predict(seen)
        if self.swaps:
            self.swaps -= 1
            self.hash = f"{self.swaps:02x}" * 32
            self.neuron_ids["A"] = self.neuron_ids["A"][::-1].copy()
        return reply

    def _neurons(self, mouse, query):
        status, headers, body = super()._neurons(mouse, query)
        return status, headers, json.dumps({**json.loads(body), "hash": self.hash}).encode()


def test_neuron_ids_are_those_of_the_bundle_that_answered(rng):
    images = rng.integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    server = Swapping(swaps=1)
    with Client(transport=server.transport()) as client:
        prediction = client.predict("A", images, running_speed=3)
    np.testing.assert_array_equal(prediction.neuron_ids, server.neuron_ids["A"])
    np.testing.assert_array_equal(
        prediction.responses, server.responses(images, np.full(2, 3.0), prediction.neuron_ids)
    )
    assert prediction.model.hash == server.hash
    with Client(transport=Swapping(swaps=9).transport()) as client, pytest.raises(v1t_client.ModelChanged):
        client.predict("A", images)


def test_a_version_that_only_one_of_several_servers_has_is_asked_for_again(rng):
    images = rng.integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    server = ContractServer()
    refusals, original = 1, server._neurons

    def behind_a_balancer(mouse, query):
        nonlocal refusals
        if refusals:
            refusals -= 1
            return error_reply(404, "not_found", "model 'demo' has no such version", "2", "1", None)
        return original(mouse, query)

    server._neurons = behind_a_balancer
    with Client(transport=server.transport()) as client:
        prediction = client.predict("A", images, running_speed=3)
        np.testing.assert_array_equal(prediction.neuron_ids, server.neuron_ids["A"])
    refusals = 9
    with Client(transport=server.transport()) as client, pytest.raises(v1t_client.ModelChanged, match="not found"):
        client.predict("A", images)


def test_neurons_of_two_bundles_are_never_joined():
    server = Swapping(swaps=0)
    server.page = 10
    original = server._neurons

    def swapped(mouse, query):
        reply = original(mouse, query)
        server.hash = "cd" * 32
        return reply

    server._neurons = swapped
    with Client(transport=server.transport()) as client, pytest.raises(v1t_client.ModelChanged):
        client.neurons("A")


def test_an_older_version_is_asked_for_its_own_neurons(server, client):
    model = {**GOOD_HEADER["model"], "version": "1"}
    server.script.append(npy_reply(np.ones((1, 23), np.float32), {**GOOD_HEADER, "model": model}))
    prediction = client.predict("A", np.zeros(SHAPE, np.uint8), model="demo@1")
    assert prediction.model.version == "1"
    assert server.seen[1].query["model"] == "demo@1"


# Refusals of the server


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, v1t_client.InvalidRequest),
        (401, v1t_client.Unauthorized),
        (403, v1t_client.Unauthorized),
        (404, v1t_client.NotFound),
        (406, v1t_client.InvalidRequest),
        (413, v1t_client.TooLarge),
        (415, v1t_client.InvalidRequest),
        (422, v1t_client.InvalidRequest),
        (429, v1t_client.Busy),
        (500, v1t_client.ServerError),
        (503, v1t_client.NotReady),
        (504, v1t_client.DeadlineExceeded),
    ],
)
def test_each_status_has_its_error_that_repeats_the_hint(server, client, status, kind):
    server.script.append(error_reply(status, "a_code", "image has another size", "(36, 64)", [1, 144], "Try resize."))
    with pytest.raises(kind) as refused:
        client.predict("A", np.zeros(SHAPE, np.uint8))
    error = refused.value
    assert type(error) is kind
    assert (error.status, error.code, error.request_id) == (status, "a_code", "request-0")
    assert str(error) == "image has another size; got (36, 64); expected [1, 144]. Try resize."
    copy = pickle.loads(pickle.dumps(error))  # as between processes
    assert (type(copy), str(copy), copy.status) == (kind, str(error), status)


def test_an_error_that_is_not_the_servers_own_says_so(server, client):
    server.script.append((500, {"Content-Type": "text/html"}, b"<html>Internal Server Error</html>"))
    with pytest.raises(v1t_client.ServerError, match="HTTP 500 Internal Server Error from http://127") as refused:
        client.mice()
    assert "a proxy, or another program" in refused.value.hint


def test_a_redirect_is_not_followed(server, client):
    server.script.append((308, {"Location": "https://elsewhere.example/predict"}, b""))
    with pytest.raises(v1t_client.ServerError, match=r"https://elsewhere\.example/predict"):
        client.predict("A", np.zeros(SHAPE, np.uint8))
    assert len(server.seen) == 1


# Asking again: the flow is driven by hand, with a clock of its own, so nothing waits


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drive(outcomes: list[Any], *, retries: int = 3, timeout: float = 60.0, seed: int = 0, each: float = 0.0):
    """Runs `mice()` against these outcomes; gives the pauses, the timeouts, and the result or the error."""
    clock, pauses, timeouts = Clock(), [], []
    retry = Retry(retries=retries, timeout=timeout, rng=random.Random(seed), clock=clock)
    flow = Operations(url="http://lab:3000", retry=retry).mice()
    outcomes = list(outcomes)
    try:
        step = next(flow)
        while True:
            if isinstance(step, Sleep):
                clock.now += step.seconds
                pauses.append(step.seconds)
                step = next(flow)
                continue
            assert isinstance(step, Send)
            timeouts.append(step.timeout)
            clock.now += each
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                step = flow.throw(outcome)
            else:
                status, headers, body = outcome
                request = httpx.Request("GET", "http://lab:3000/mice")
                step = flow.send(httpx.Response(status, headers=headers, content=body, request=request))
    except StopIteration as done:
        return pauses, timeouts, done.value
    except v1t_client.V1TError as error:
        return pauses, timeouts, error


EMPTY = json_reply({"mice": []})


@pytest.mark.parametrize(
    "failure",
    [
        error_reply(429, "busy", "full"),
        (502, {}, b"bad gateway"),
        error_reply(503, "not_ready", "loading"),
        error_reply(504, "deadline_exceeded", "late"),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("server disconnected"),
    ],
)
def test_what_may_pass_is_asked_again(failure):
    pauses, _, result = drive([failure, failure, failure, EMPTY])
    assert result == []
    assert len(pauses) == 3
    pauses, _, result = drive([failure] * 4)
    assert isinstance(result, v1t_client.V1TError)
    assert len(pauses) == 3


@pytest.mark.parametrize(
    "failure", [error_reply(422, "invalid_input", "no"), error_reply(500, "error", "bug"), httpx.ReadTimeout("slow")]
)
def test_what_will_not_pass_is_asked_once(failure):
    pauses, timeouts, result = drive([failure])
    assert isinstance(result, v1t_client.V1TError)
    assert (pauses, len(timeouts)) == ([], 1)


def test_pauses_are_jittered_over_a_growing_range():
    full = [drive([(502, {}, b"")] * 9, retries=8, seed=seed)[0] for seed in range(300)]
    longest = np.max(full, axis=0)
    ranges = np.array([0.25, 0.5, 1, 2, 4, 8, 8, 8])
    assert (longest <= ranges).all()
    assert (longest > 0.9 * ranges).all()
    assert (np.min(full, axis=0) < 0.1 * ranges).all()


def test_retry_after_is_waited_for():
    for value in ("7", "7.0"):
        (pause,), _, result = drive([error_reply(429, "busy", "full", **{"Retry-After": value}), EMPTY])
        assert result == []
        assert 7 <= pause <= 7.25


def test_retry_after_may_be_a_date():
    past = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    (pause,), _, result = drive([error_reply(503, "not_ready", "loading", **past), EMPTY])
    assert result == []
    assert pause <= 0.25
    far = {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}
    pauses, _, result = drive([error_reply(503, "not_ready", "loading", **far)])
    assert pauses == []
    assert isinstance(result, v1t_client.NotReady)


@pytest.mark.parametrize("value", ["soon", "nan", "-3", ""])
def test_a_retry_after_that_makes_no_sense_is_left_aside(value):
    (pause,), _, result = drive([error_reply(429, "busy", "full", **{"Retry-After": value}), EMPTY])
    assert result == []
    assert 0 <= pause <= 0.25


def test_no_retry_begins_that_the_deadline_would_cut():
    pauses, _, result = drive([error_reply(429, "busy", "full", **{"Retry-After": "120"})])
    assert pauses == []
    assert isinstance(result, v1t_client.Busy)
    assert result.retry_after == 120


def test_each_attempt_gets_only_the_time_that_is_left():
    pauses, timeouts, result = drive([(502, {}, b"")] * 9, retries=8, timeout=10, each=4)
    assert isinstance(result, v1t_client.ServerError)
    assert timeouts[0] == 10
    np.testing.assert_allclose(timeouts[1], 6 - pauses[0])
    assert len(timeouts) <= 3


def test_an_unreachable_server_is_named_with_the_remedy():
    _, _, error = drive([httpx.ConnectError("refused")] * 3, retries=2)
    assert isinstance(error, v1t_client.ConnectionFailed)
    assert "http://lab:3000: refused (3 attempts)" in str(error)
    assert "make serve" in str(error)
    assert isinstance(error.__cause__, httpx.ConnectError)


def test_a_connection_that_broke_is_told_from_a_server_that_is_not_there():
    _, _, error = drive([httpx.RemoteProtocolError("server disconnected")], retries=0)
    assert isinstance(error, v1t_client.ConnectionFailed)
    assert "http://lab:3000 broke before the reply was complete: server disconnected" in str(error)


def test_a_reply_that_is_late_is_told_from_a_server_that_is_not_there():
    _, _, error = drive([httpx.ReadTimeout("")])
    assert isinstance(error, v1t_client.TimedOut)
    assert "ReadTimeout" in str(error)


def test_the_same_request_is_sent_again_whole(server, rng):
    image = rng.integers(0, 256, SHAPE, dtype=np.uint8)
    server.script += [error_reply(503, "not_ready", "loading", **{"Retry-After": "0"}), httpx.ReadError("reset")]
    with Client(transport=server.transport()) as client:
        client.predict("A", image, running_speed=4)
    for seen in server.seen[:3]:
        assert seen.form["running_speed"] == "4"
        np.testing.assert_array_equal(seen.array(), image)


# Readiness


def test_ready_says_yes_no_or_that_nobody_is_there(server, client):
    assert client.ready() is True
    server.script += [(503, {}, b""), httpx.ConnectError("refused"), (404, {}, b"")]
    assert client.ready() is False
    with pytest.raises(v1t_client.ConnectionFailed):
        client.ready()
    with pytest.raises(v1t_client.NotFound):
        client.ready()


def test_waiting_goes_on_while_the_server_starts(server, client):
    server.script += [httpx.ConnectError("refused"), (503, {}, b"")]
    client.wait_until_ready(30)
    assert [seen.path for seen in server.seen] == ["/readyz"] * 3


@pytest.mark.parametrize(
    ("failure", "kind"),
    [((503, {}, b""), v1t_client.NotReady), (httpx.ConnectError("refused"), v1t_client.ConnectionFailed)],
)
def test_waiting_ends_with_the_reason(server, client, failure, kind):
    server.script += [failure] * 50
    with pytest.raises(kind):
        client.wait_until_ready(0.25)


# Sync and async


async def test_the_async_client_gives_the_same_answers(server, client, rng):
    images = rng.integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    async with AsyncClient(transport=server.transport()) as async_client:
        there = await async_client.predict("B", images, running_speed=[1, 2], spread=True)
        here = client.predict("B", images, running_speed=[1, 2], spread=True)
        np.testing.assert_array_equal(there.responses, here.responses)
        np.testing.assert_array_equal(there.spread, here.spread)
        np.testing.assert_array_equal(there.neuron_ids, here.neuron_ids)
        assert await async_client.mice() == client.mice()
        assert await async_client.mouse("A") == client.mouse("A")
        assert (await async_client.neurons("A", score_min=0)).total == client.neurons("A", score_min=0).total
        assert await async_client.ready()
        await async_client.wait_until_ready(1)
        server.script += [httpx.ConnectError("refused"), (503, {"Retry-After": "0"}, b"")]
        assert len(await async_client.mice()) == 2
        with pytest.raises(v1t_client.NotFound, match="GET /mice lists the mice"):
            await async_client.mouse("Z")


async def test_concurrent_questions_get_their_own_answers(server, rng):
    async with AsyncClient(transport=server.transport()) as client:
        images = rng.integers(0, 256, (60, *SHAPE), dtype=np.uint8)
        mice = ["A" if i % 2 else "B" for i in range(60)]
        questions = [
            client.predict(m, image, running_speed=i) for i, (m, image) in enumerate(zip(mice, images, strict=True))
        ]
        predictions = await asyncio.gather(*questions)
    for i, prediction in enumerate(predictions):
        ids = server.neuron_ids[mice[i]]
        np.testing.assert_array_equal(prediction.responses, server.responses(images[i][None], np.array([i]), ids))
        np.testing.assert_array_equal(prediction.neuron_ids, ids)


def test_both_clients_and_predictors_have_the_same_methods_and_signatures():
    def methods(kind: type) -> dict[str, list[tuple[str, Any, Any, str]]]:
        own = {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}
        return {
            name: [
                (p.name, p.kind, p.default, str(p.annotation)) for p in inspect.signature(method).parameters.values()
            ]
            for name, method in own.items()
        }

    sync, coroutines = methods(Client), methods(AsyncClient)
    assert sync.pop("close") == coroutines.pop("aclose")
    assert sync == coroutines
    assert list(sync) == [
        "predict", "predict_mice", "predict_stream", "predict_many", "gradient", "attention",
        "mice", "mouse", "neurons", "ready", "wait_until_ready",
    ]  # fmt: skip
    for kind in (Predictor, DifferentiablePredictor):
        for name, signature in methods(kind).items():
            if name != "neurons":  # a predictor need not filter neurons
                assert signature == sync[name]


@pytest.mark.parametrize(
    ("request_type", "options", "more"),
    [
        (PredictRequest, PredictOptions, set()),
        (GradientRequest, GradientOptions, {"weights"}),
        (ImageRequest, ImageOptions, set()),
    ],
)
def test_options_are_the_fields_of_the_request(request_type, options, more):
    fields = {field.name: field.type for field in dataclasses.fields(request_type)}
    assert set(fields) == {"mouse", "image", *more, *options.__optional_keys__}
    for kind in options.__mro__[:1]:
        for name, annotation in kind.__annotations__.items():
            assert annotation.__forward_arg__ == fields[name]


@pytest.mark.parametrize("method", ["predict", "gradient", "attention", "neurons"])
def test_help_explains_every_argument(method):
    options = {"predict": PredictOptions, "gradient": GradientOptions, "attention": ImageOptions}
    document = inspect.getdoc(getattr(Client, method))
    for name in options.get(method, NeuronFilters).__optional_keys__:
        assert re.search(rf"\b{name}\b", document)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("predict", {"image": b""}),
        ("predict_mice", {"image": b""}),
        ("predict_stream", {"images": []}),
        ("predict_many", {"images": []}),
        ("gradient", {"image": b"", "weights": [1]}),
        ("attention", {"image": b""}),
        ("neurons", {}),
    ],
)
async def test_an_unknown_keyword_is_a_type_error_that_names_it(server, client, method, arguments):
    mouse = {"mice" if method == "predict_mice" else "mouse": "A"}
    with pytest.raises(TypeError, match="runing_speed"):
        getattr(client, method)(**mouse, **arguments, runing_speed=3)
    async with AsyncClient(transport=server.transport()) as async_client:
        with pytest.raises(TypeError, match="runing_speed"):
            await getattr(async_client, method)(**mouse, **arguments, runing_speed=3)
    assert server.seen == []


# On a real socket


def test_connections_are_reused(server):
    with server.listening() as url, Client(url) as client:
        for _ in range(5):
            client.predict("A", np.zeros(SHAPE, np.uint8))
    assert len(server.seen) == 6
    assert server.connections == 1


def test_a_port_without_a_server_is_said_with_its_url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Client(url, retries=1) as client, pytest.raises(v1t_client.ConnectionFailed, match=url):
        client.mice()


def test_a_proxy_for_the_world_is_not_used_for_this_machine(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with server.listening() as url, Client(url, retries=0) as client:
        assert client.ready()


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_are_short_and_run(server, tmp_path, monkeypatch, capsys, example):
    path = EXAMPLES / example
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
    (tmp_path / "image.png").write_bytes(png())
    arguments = ["image.png"] if "image" in example else []
    monkeypatch.chdir(tmp_path)
    with server.listening() as url:
        monkeypatch.setattr(sys, "argv", [str(path), *arguments, "B", url])
        runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr()
    assert said.err == ""
    assert len(said.out.splitlines()) > 5
    predicted = next(seen for seen in server.seen if seen.path == "/predict")
    assert predicted.form["mouse"] == "B"


# The package


def test_importing_the_client_loads_httpx_and_numpy_and_nothing_else():
    script = """
import sys
import httpx, numpy
before = set(sys.modules)
import v1t_client, v1t_client._cli
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names) - {"httpx", "numpy"}))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['v1t_client']"


def test_every_public_name_is_listed_and_every_module_is_private():
    public = {
        name for name, value in vars(v1t_client).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public - {"annotations"} <= set(v1t_client.__all__)
    folder = Path(v1t_client.__file__).parent
    assert all(path.stem.startswith("_") for path in folder.glob("*.py"))
    assert (folder / "py.typed").is_file()
    assert list(v1t_client.__all__) == sorted(v1t_client.__all__, key=lambda name: (name.startswith("_"), name))


def test_the_error_tree_in_the_docstring_is_the_tree():
    document = inspect.getdoc(v1t_client._errors) or ""
    margin = len(next(line for line in document.splitlines() if line.strip() == "V1TError")) - len("V1TError")
    for name in v1t_client.__all__:
        kind = getattr(v1t_client, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            line = next(line for line in document.splitlines() if f" {name} " in f" {line} ")
            depth = (len(line.split(name)[0]) - margin) // 4
            assert depth == kind.__mro__.index(v1t_client.V1TError), name


def test_a_prediction_can_be_made_without_a_server():
    prediction = Prediction(
        responses=np.zeros((1, 2), np.float32),
        neuron_ids=np.array([3, 4]),
        mouse="A",
        units="raw",
        model=v1t_client.Model("local", "0" * 64),
    )
    assert "not asked for" in repr(prediction)
    assert "1 image x 2 neurons" in repr(prediction)
