"""Bodies of the Open Inference Protocol: what is read, and that everything else is refused with a message."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.codecs.tensors import InferenceRequest, read_request, write_reply
from server.errors import InvalidInput, TwinError

IMAGE = np.arange(12, dtype=np.float32).reshape(2, 1, 2, 3) / 7
IDS = np.array([2**40, -5], dtype=np.int64)


def read(body: bytes, header_length: str | None = None) -> InferenceRequest:
    return read_request(body, header_length)


def body_of(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "FP32", "shape": [2, 1, 2, 3], "data": IMAGE.tolist()}], **changes}


def binary(**changes: Any) -> tuple[bytes, str]:
    head = {
        "id": "x",
        "inputs": [
            {"name": "image", "datatype": "FP32", "shape": [2, 1, 2, 3], "parameters": {"binary_data_size": 48}},
            {"name": "neuron_ids", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
        ],
        **changes,
    }
    text = json.dumps(head).encode()
    return text + IMAGE.tobytes() + IDS.tobytes(), str(len(text))


def test_binary_nested_and_flat_numbers_are_the_same() -> None:
    asked = read(*binary())
    assert asked.id == "x"
    assert asked.outputs == {"responses": False, "spread": False}
    np.testing.assert_array_equal(asked.inputs["image"], IMAGE)
    np.testing.assert_array_equal(asked.inputs["neuron_ids"], IDS)
    ids = {"name": "neuron_ids", "datatype": "INT64", "shape": [2], "data": IDS.tolist()}
    for data in (IMAGE.tolist(), IMAGE.ravel().tolist()):
        image = {"name": "image", "datatype": "FP32", "shape": [2, 1, 2, 3], "data": data}
        asked = read(json.dumps({"inputs": [ids, image]}).encode())
        np.testing.assert_array_equal(asked.inputs["image"], IMAGE)
        np.testing.assert_array_equal(asked.inputs["neuron_ids"], IDS)


def test_outputs_keep_their_order_and_their_encoding() -> None:
    asked = read(
        json.dumps(
            body_of(
                parameters={"binary_data_output": True},
                outputs=[{"name": "spread"}, {"name": "responses", "parameters": {"binary_data": False}}],
            )
        ).encode()
    )
    assert list(asked.outputs.items()) == [("spread", True), ("responses", False)]


def test_a_reply_holds_json_and_then_the_tensors_in_order() -> None:
    outputs = [("spread", IMAGE, True), ("responses", -IMAGE, False), ("other", IMAGE[:1], True)]
    body, length = write_reply({"id": "x"}, outputs)
    assert length is not None
    head = json.loads(body[:length])
    assert head["id"] == "x"
    assert [tensor["name"] for tensor in head["outputs"]] == ["spread", "responses", "other"]
    np.testing.assert_array_equal(np.float32(head["outputs"][1]["data"]), -IMAGE.ravel())
    assert body[length:] == IMAGE.tobytes() + IMAGE[:1].tobytes()
    body, length = write_reply({}, outputs[1:2])
    assert length is None
    assert json.loads(body)["outputs"][0]["shape"] == [2, 1, 2, 3]


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": "FP32", "shape": [1], "data": [0.5], **changes}


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {},
        {"inputs": []},
        {"inputs": {}},
        {"inputs": [7]},
        {"inputs": [tensor(), tensor()]},
        {"inputs": [tensor(name="weights")]},
        {"inputs": [tensor(name=None)]},
        {"inputs": [tensor(datatype="FP64")]},
        {"inputs": [tensor(datatype="BYTES")]},
        {"inputs": [tensor(datatype=None)]},
        {"inputs": [tensor(shape=None)]},
        {"inputs": [tensor(shape=[-1])]},
        {"inputs": [tensor(shape=[0])]},
        {"inputs": [tensor(shape=[True])]},
        {"inputs": [tensor(shape=[1.0])]},
        {"inputs": [tensor(shape=[2])]},
        {"inputs": [tensor(shape=[1] * 9)]},
        {"inputs": [tensor(shape=[2**31 - 1] * 8)]},
        {"inputs": [tensor(data=["1"])]},
        {"inputs": [tensor(data=[True])]},
        {"inputs": [tensor(data=[None])]},
        {"inputs": [tensor(data=[[1.0, 2.0], [3.0]])]},
        {"inputs": [tensor(data=[1e39])]},
        {"inputs": [tensor(data=1.0)]},
        {"inputs": [tensor(data=None)]},
        {"inputs": [tensor(strange=1)]},
        {"inputs": [tensor(parameters={"shared_memory_region": "x"})]},
        {"inputs": [tensor(parameters={"binary_data_size": 4})]},
        {"inputs": [tensor(name="neuron_ids", datatype="INT64", data=[0.5])]},
        {"inputs": [tensor(name="neuron_ids", datatype="INT64", data=[2**63])]},
        {"inputs": [tensor()], "id": 5},
        {"inputs": [tensor()], "parameters": {"binary_data_output": 1}},
        {"inputs": [tensor()], "parameters": {"sequence_id": 1}},
        {"inputs": [tensor()], "parameters": []},
        {"inputs": [tensor()], "outputs": [{"name": "class"}]},
        {"inputs": [tensor()], "outputs": [{"name": "spread"}, {"name": "spread"}]},
        {"inputs": [tensor()], "outputs": [{"name": "spread", "parameters": {"classification": 3}}]},
        {"inputs": [tensor()], "outputs": [{"name": "spread", "parameters": {"binary_data": "yes"}}]},
        {"inputs": [tensor()], "strange": 1},
    ],
)
def test_invalid_requests_are_refused(wrong: Any) -> None:
    with pytest.raises(TwinError) as refused:
        read(json.dumps(wrong).encode())
    assert 400 <= refused.value.status < 500


@pytest.mark.parametrize("length", ["", "-1", "abc", "1e3", "9" * 30, "999999", "٣"])
def test_a_header_length_that_does_not_fit_is_refused(length: str) -> None:
    with pytest.raises(TwinError, match="Inference-Header-Content-Length"):
        read(binary()[0], length)


@pytest.mark.parametrize("cut", [1, 16, 17, 63, 64, 100])
def test_a_truncated_body_is_refused(cut: int) -> None:
    body, length = binary()
    with pytest.raises(TwinError):
        read(body[:-cut], length)


@pytest.mark.parametrize("size", [0, 47, 49, 64, -48, 2**70, 48.0, "48", None, True])
def test_a_size_that_does_not_fit_the_shape_is_refused(size: Any) -> None:
    head: dict[str, Any] = json.loads(binary()[0][: int(binary()[1])])
    head["inputs"][0]["parameters"]["binary_data_size"] = size
    with pytest.raises(TwinError):
        read(*binary(inputs=head["inputs"]))


def test_bytes_after_the_last_tensor_are_refused() -> None:
    body, length = binary()
    with pytest.raises(TwinError, match="bytes after its last tensor"):
        read(body + b"\0", length)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_body_is_read_or_refused_with_a_message(data: st.DataObject) -> None:
    body, length = binary()
    head = json.loads(body[: int(length)])
    rest = body[int(length) :]
    place: Any = data.draw(st.sampled_from([head, *head["inputs"], *(one["parameters"] for one in head["inputs"])]))
    key = data.draw(st.sampled_from([*place, "data", "outputs", "parameters"]))
    place[key] = data.draw(json_values)
    text = json.dumps(head).encode()
    whole = bytearray(text + rest)
    for _ in range(data.draw(st.integers(0, 2))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(len(whole) - 10, len(whole))) :]
    said = data.draw(st.sampled_from([str(len(text)), None, "10"]))
    with contextlib.suppress(InvalidInput):  # and nothing else
        read(bytes(whole), said)
