"""Messages to bodies, and what a message may take of memory before it is parsed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from server.errors import InvalidInput, MalformedBody, NotFound, TooLarge
from server.grpc_api.codecs import infer_body, model_path, parsed, parsed_size
from server.grpc_api.messages import message


def question(n_images: int = 2) -> bytes:
    image = np.arange(n_images * 96, dtype="<f4").reshape(n_images, 1, 8, 12)
    asked = message("ModelInferRequest")(model_name="tiny.A", id="7", raw_input_contents=[image.tobytes()])
    asked.inputs.add(name="image", datatype="FP32", shape=image.shape)
    asked.parameters["units"].string_param = "raw"
    asked.parameters["priority"].uint64_param = 2
    content: bytes = asked.SerializeToString()
    return content


def test_a_question_becomes_the_binary_body_of_v2() -> None:
    asked, body, length = infer_body(question())
    assert (asked.model_name, len(asked.raw_input_contents)) == ("tiny.A", 0)
    assert json.loads(body[:length]) == {
        "id": "7",
        "parameters": {"units": "raw", "priority": 2, "binary_data_output": True},
        "inputs": [
            {"name": "image", "datatype": "FP32", "shape": [2, 1, 8, 12], "parameters": {"binary_data_size": 768}}
        ],
        "outputs": [],
    }
    np.testing.assert_array_equal(np.frombuffer(body[length:], "<f4"), np.arange(192))


def test_raw_tensors_take_three_times_their_size_and_everything_else_what_it_could_become() -> None:
    small, large = question(1), question(1001)
    assert parsed_size(large) - parsed_size(small) == pytest.approx(3 * 96 * 4 * 1000, abs=500)
    assert parsed_size(b"") == 0
    typed = message("ModelInferRequest")()
    typed.inputs.add().contents.int64_contents.extend(range(100_000))
    content = typed.SerializeToString()
    assert parsed_size(content) == 40 * len(content)


@pytest.mark.parametrize("field", [b"\x2a\x00", b"\x3a\x00", b"\x32\x00", b"\x22\x00"])
def test_a_message_of_a_million_empty_fields_is_refused_before_it_is_parsed(field: bytes) -> None:
    with pytest.raises(MalformedBody, match="too many fields; expected at most 256"):
        parsed_size(field * 1_000_000)
    assert parsed_size(field * 200) == 40 * 400


def test_bytes_that_are_no_message_have_a_size_and_are_refused_by_the_parser() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        content = rng.bytes(int(rng.integers(0, 60)))
        assert 0 <= parsed_size(content) <= 40 * len(content)
        try:
            infer_body(content)
        except (InvalidInput, NotFound):
            continue
    with pytest.raises(TooLarge, match="at most 65536 bytes"):
        parsed("RepositoryIndexRequest", bytes(100_000))


@pytest.mark.parametrize("name", ["", "stats", "a.b/versions/1", "a.b\n", ".", "../admin.x"])
def test_the_name_of_a_model_is_not_another_path(name: str) -> None:
    with pytest.raises(NotFound, match="there is no such model"):
        model_path(name, "")
    assert model_path("tiny.A%2E1", "2") == "/v2/models/tiny.A%2E1/versions/2"
