"""Bodies of the Open Inference Protocol v2: JSON, with tensors in it or in binary after it, to arrays and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from server.api.codecs.arrays import as_float32, shape_of
from server.errors import InvalidInput, MalformedBody, brief

__all__ = ["DTYPES", "InferRequest", "Output", "read_request", "write_reply"]

DTYPES: Mapping[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8")}
_MAX_DIMENSIONS = 8
_FIELDS = frozenset({"id", "parameters", "inputs", "outputs"})
_TENSOR_FIELDS = frozenset({"name", "shape", "datatype", "parameters", "data"})
_OUTPUT_FIELDS = frozenset({"name", "parameters"})


@dataclass(frozen=True)
class InferRequest:
    """What was asked.

    Attributes:
        outputs: in the order of the reply; whether each comes in binary.
    """

    id: str | None
    parameters: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, bool]


@dataclass(frozen=True)
class Output:
    """A tensor of the reply."""

    name: str
    datatype: str
    array: np.ndarray
    in_binary: bool


def read_request(
    body: bytes,
    header_length: str | None,
    *,
    inputs: Mapping[str, str],
    outputs: Sequence[str],
    parameters: frozenset[str],
) -> InferRequest:
    """Reads a request; whatever is not understood is refused, nothing is passed over.

    Args:
        header_length: the Inference-Header-Content-Length header, where tensors follow the JSON.
        inputs: the tensors that may be given, and their datatypes.
        outputs: those that may be asked for; without a word about them, all are.
        parameters: those of the request that we know, besides `binary_data_output`.
    """
    size = _header_length(header_length, len(body))
    try:
        head = orjson.loads(memoryview(body)[:size])
    except orjson.JSONDecodeError as error:
        raise MalformedBody("the inference header is not valid JSON", got=brief(str(error))) from None
    _object(head, "the inference header", _FIELDS)
    request_id = head.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidInput("id is not text", got=brief(request_id))
    asked = _object(head.get("parameters", {}), "parameters", parameters | {"binary_data_output"})
    return InferRequest(
        id=request_id,
        parameters=asked,
        inputs=_inputs(head.get("inputs"), memoryview(body)[size:], inputs),
        outputs=_outputs(head.get("outputs"), outputs, _flag(asked, "binary_data_output")),
    )


def write_reply(head: dict[str, Any], outputs: Sequence[Output]) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where tensors follow it."""
    described, binary = [], []
    for output in outputs:
        array = np.ascontiguousarray(output.array, dtype=DTYPES[output.datatype])
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": array.shape}
        if output.in_binary:
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


def _object(value: Any, where: str, known: frozenset[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{where} is not a JSON object", got=brief(value), expected="{...}")
    unknown = sorted(value.keys() - known)
    if unknown:
        raise InvalidInput(f"{where} has what we do not know", got=brief(unknown), expected=", ".join(sorted(known)))
    return value


def _flag(parameters: dict[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} is not true or false", got=brief(value), expected="true or false")
    return value


def _name(value: dict[str, Any], known: Sequence[str], seen: Mapping[str, Any], what: str) -> str:
    name = value.get("name")
    if not isinstance(name, str) or name not in known:
        raise InvalidInput(f"there is no such {what}", got=brief(name), expected=", ".join(known))
    if name in seen:
        raise InvalidInput(f"{what} {name} is there twice", expected="each once")
    return name


def _list(value: Any, what: str, limit: int) -> list[Any]:
    if not isinstance(value, list) or not 0 < len(value) <= limit:
        raise InvalidInput(f"{what} is not a list of tensors", got=brief(value), expected=f"1 to {limit} tensors")
    return value


def _inputs(value: Any, binary: memoryview, known: Mapping[str, str]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    for i, tensor in enumerate(_list(value, "inputs", len(known))):
        _object(tensor, f"inputs[{i}]", _TENSOR_FIELDS)
        name = _name(tensor, list(known), arrays, "input")
        datatype = known[name]
        if tensor.get("datatype") != datatype:
            raise InvalidInput(
                f"input {name} has another datatype", got=brief(tensor.get("datatype")), expected=datatype
            )
        shape = _shape(tensor.get("shape"), name)
        more = _object(tensor.get("parameters", {}), f"the parameters of input {name}", frozenset({"binary_data_size"}))
        if ("data" in tensor) == ("binary_data_size" in more):
            raise InvalidInput(f"input {name} has no data, or twice", expected="either data or binary_data_size")
        if "data" in tensor:
            arrays[name] = _from_json(tensor["data"], shape, datatype, name)
            continue
        size, needed = more["binary_data_size"], math.prod(shape) * DTYPES[datatype].itemsize
        if type(size) is not int or size != needed:
            raise InvalidInput(
                f"the binary_data_size of input {name} does not fit its shape", got=brief(size), expected=needed
            )
        if size > len(binary) - offset:
            raise MalformedBody(
                f"the body ends before input {name} does", got=f"{len(binary) - offset} bytes", expected=f"{size} bytes"
            )
        arrays[name] = np.frombuffer(binary[offset : offset + size], DTYPES[datatype]).reshape(shape)
        offset += size
    if offset != len(binary):
        raise MalformedBody(
            "the body goes on after its last tensor",
            got=f"{len(binary)} bytes after the JSON",
            expected=f"{offset} bytes",
            hint="Inference-Header-Content-Length is the length of the JSON; binary_data_size that of each tensor.",
        )
    return arrays


def _shape(value: Any, name: str) -> tuple[int, ...]:
    is_shape = isinstance(value, list) and len(value) <= _MAX_DIMENSIONS
    if not is_shape or not all(type(size) is int and 0 < size < 2**31 for size in value):
        raise InvalidInput(f"the shape of input {name} is none", got=brief(value), expected="a list of sizes above 0")
    return tuple(value)


def _from_json(data: Any, shape: tuple[int, ...], datatype: str, name: str) -> np.ndarray:
    """The numbers may be flat, in row-major order, or nested like the shape."""
    given = shape_of(data, f"input {name}")
    if given not in (shape, (math.prod(shape),)):
        raise InvalidInput(f"the data of input {name} does not fit its shape", got=str(given), expected=str(shape))
    if datatype == "FP32":
        return as_float32(np.array(data, dtype=np.float64), f"input {name}").reshape(shape)
    flat = np.array(data, dtype=object).ravel()
    if not all(type(number) is int and -(2**63) <= number < 2**63 for number in flat):
        raise InvalidInput(f"input {name} holds what is no {datatype}", expected="whole numbers of 64 bits")
    return flat.astype(np.int64).reshape(shape)


def _outputs(value: Any, known: Sequence[str], in_binary: bool) -> dict[str, bool]:
    if value is None or value == []:
        return dict.fromkeys(known, in_binary)
    outputs: dict[str, bool] = {}
    for i, tensor in enumerate(_list(value, "outputs", len(known))):
        _object(tensor, f"outputs[{i}]", _OUTPUT_FIELDS)
        name = _name(tensor, known, outputs, "output")
        more = _object(tensor.get("parameters", {}), f"the parameters of output {name}", frozenset({"binary_data"}))
        outputs[name] = _flag(more, "binary_data", in_binary)
    return outputs
