"""Bodies of the Open Inference Protocol v2: JSON, with tensors in it or in binary after it, to arrays and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from server.api.codecs.parsing.arrays import as_float32, shape_of
from server.api.codecs.parsing.json_memory import json_memory
from server.api.codecs.parsing.json_text import parse_json
from server.api.codecs.parsing.validation import validated
from server.api.codecs.schemas import InferParameters, InferRequest, InputTensor
from server.errors import InvalidInput, MalformedBody, brief

__all__ = ["DTYPES", "INPUTS", "OUTPUTS", "InferenceRequest", "read_request", "write_reply"]

DTYPES: Mapping[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8")}
INPUTS = {"image": "FP32", "behavior": "FP32", "pupil_center": "FP32", "neuron_ids": "INT64"}  # and their datatypes
OUTPUTS = ("responses", "spread")


@dataclass(frozen=True)
class InferenceRequest:
    """A request, its tensors read.

    Attributes:
        outputs: in the order of the reply; whether each is binary.
    """

    id: str | None
    parameters: InferParameters
    inputs: dict[str, np.ndarray]
    outputs: dict[str, bool]


def read_request(
    body: bytes, header_length: str | None, reserve: Callable[[int], None] = lambda _: None
) -> InferenceRequest:
    """Reads a request; whatever the protocol or this server does not know is refused.

    Args:
        header_length: the Inference-Header-Content-Length header, where tensors follow the JSON.
        reserve: reserves memory for the JSON, in bytes, before it is parsed.
    """
    size = _header_length(header_length, len(body))
    text = memoryview(body)[:size]
    reserve(json_memory(text))
    head = parse_json(text, "the inference header")
    if not isinstance(head, dict):
        raise InvalidInput("the inference header is not a JSON object", got=brief(head), expected="{...}")
    request = validated(InferRequest, head)
    in_binary = request.parameters.binary_data_output
    outputs: dict[str, bool] = {} if request.outputs else dict.fromkeys(OUTPUTS, in_binary)
    for output in request.outputs or ():
        _check_new(output.name, outputs, "output")
        binary = output.parameters.binary_data
        outputs[output.name] = in_binary if binary is None else binary
    inputs = _inputs(request.inputs, memoryview(body)[size:])
    return InferenceRequest(request.id, request.parameters, inputs, outputs)


def write_reply(head: dict[str, Any], outputs: Sequence[tuple[str, np.ndarray, bool]]) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where tensors follow it.

    Args:
        outputs: name, float array, and whether it is written in binary.
    """
    described, binary = [], []
    for name, values, in_binary in outputs:
        array = np.ascontiguousarray(values, dtype=DTYPES["FP32"])
        tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": array.shape}
        if in_binary:
            binary.append(array.tobytes())
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        else:
            tensor["data"] = array.ravel()
        described.append(tensor)
    text = orjson.dumps({**head, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([text, *binary]), len(text) if binary else None


def _header_length(value: str | None, length: int) -> int:
    if value is None:
        return length
    if not (value.isascii() and value.isdecimal()) or len(value) > 18 or int(value) > length:
        raise MalformedBody(
            "Inference-Header-Content-Length does not fit the body", got=brief(value), expected=f"at most {length}"
        )
    return int(value)


def _check_new(name: str, seen: Mapping[str, Any], what: str) -> None:
    if name in seen:
        raise InvalidInput(f"{what} {name} is given twice", expected="each once")


def _inputs(tensors: Sequence[InputTensor], binary: memoryview) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    for tensor in tensors:
        name, shape, size = tensor.name, tuple(tensor.shape), tensor.parameters.binary_data_size
        _check_new(name, arrays, "input")
        if tensor.datatype != INPUTS[name]:
            raise InvalidInput(f"input {name} has another datatype", got=tensor.datatype, expected=INPUTS[name])
        if (tensor.data is None) == (size is None):
            raise InvalidInput(f"input {name} has no data, or twice", expected="either data or binary_data_size")
        if size is None:
            arrays[name] = _from_json(tensor.data, shape, tensor.datatype, name)
            continue
        needed = math.prod(shape) * DTYPES[tensor.datatype].itemsize
        if size != needed:
            raise InvalidInput(
                f"the binary_data_size of input {name} does not fit its shape", got=brief(size), expected=needed
            )
        if size > len(binary) - offset:
            raise MalformedBody(
                f"the body ends before input {name} does", got=f"{len(binary) - offset} bytes", expected=f"{size} bytes"
            )
        arrays[name] = np.frombuffer(binary[offset : offset + size], DTYPES[tensor.datatype]).reshape(shape)
        offset += size
    if offset != len(binary):
        raise MalformedBody(
            "the body has bytes after its last tensor",
            got=f"{len(binary)} bytes after the JSON",
            expected=f"{offset} bytes",
            hint="Inference-Header-Content-Length is the length of the JSON; binary_data_size that of each tensor.",
        )
    return arrays


def _from_json(data: Any, shape: tuple[int, ...], datatype: str, name: str) -> np.ndarray:
    """The numbers may be flat, in row-major order, or nested like the shape."""
    given = shape_of(data, f"input {name}")
    if given not in (shape, (math.prod(shape),)):
        raise InvalidInput(f"the data of input {name} does not fit its shape", got=str(given), expected=str(shape))
    if datatype == "FP32":
        return as_float32(np.array(data, dtype=np.float64), f"input {name}").reshape(shape)
    flat = np.array(data, dtype=object).ravel()
    if not all(type(number) is int and -(2**63) <= number < 2**63 for number in flat):
        raise InvalidInput(f"input {name} holds a value that is not {datatype}", expected="whole numbers of 64 bits")
    return flat.astype(np.int64).reshape(shape)
