"""Questions and answers between messages and the binary bodies of `/v2`, whose codecs check and compute the rest."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from server.api.codecs.tensors import DTYPES, OUTPUTS
from server.errors import InvalidInput, MalformedBody, NotFound, TooLarge, brief
from server.grpc_api.messages import message

__all__ = ["infer_body", "infer_response", "model_path", "parsed", "parsed_size", "response_of"]

_CONTENTS = {"FP32": "fp32_contents", "INT64": "int64_contents"}  # field of the typed contents
_FINAL = "triton_final_response"  # of an answer in a stream: none follows to the same question
_SMALL = 64 * 1024  # bytes of a message other than a question
_MOST_FIELDS = 256  # of a question
_PARSED = 40  # bytes that a byte of a message may become: an empty tensor is two bytes, and an object
_RAW, _BYTES = 7, 2  # number of the field raw_input_contents, and the wire type of bytes
_MODEL = re.compile(r"[^/\s]+\.[^/\s]+")


def parsed(kind: str, content: bytes) -> Any:
    """The message of this kind.

    Raises:
        TooLarge: it is larger than such a message needs to be; a question's size is checked before, by `parsed_size`.
        MalformedBody: the bytes are not one.
    """
    if kind != "ModelInferRequest" and len(content) > _SMALL:
        raise TooLarge(f"the {kind} is too large", got=f"{len(content)} bytes", expected=f"at most {_SMALL} bytes")
    try:
        return message(kind).FromString(content)
    except DecodeError:
        raise MalformedBody(f"the message is not a {kind}", got=f"{len(content)} bytes", expected=kind) from None


def parsed_size(content: bytes) -> int:
    """Bytes that a ModelInferRequest and the body made of it take at most, without parsing it.

    Raises:
        MalformedBody: it has more fields than a question needs, each of which would take memory.
    """
    position, raw = 0, 0
    for _ in range(_MOST_FIELDS):
        if position >= len(content):
            return 3 * raw + _PARSED * (len(content) - raw)
        tag, position = _varint(content, position)
        if tag & 7 == _BYTES:
            size, position = _varint(content, position)
            raw += min(size, len(content) - position) if tag >> 3 == _RAW else 0
            position += size
        elif tag & 7 == 0:
            _, position = _varint(content, position)
        else:
            return _PARSED * len(content)  # no field of ours is of this type
    raise MalformedBody("the message has too many fields", expected=f"at most {_MOST_FIELDS}")


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """A number, and where it ends; wrong bytes give any number, and are refused by the parser."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            break
        byte = content[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            break
    return value, position


def response_of(kind: str, body: bytes | Mapping[str, Any]) -> Any:
    """The message of this kind with the fields of a JSON reply, less those that it does not have."""
    fields = orjson.loads(body) if isinstance(body, bytes) else body
    return json_format.ParseDict(fields, message(kind)(), ignore_unknown_fields=True)


def model_path(name: str, version: str) -> str:
    """The path of a model below `/v2`.

    Raises:
        NotFound: it would be the path of something else.
    """
    if not _MODEL.fullmatch(name) or "/" in version:
        got = brief(f"{name}, version {version}" if version else name)
        hint = "A model is a bundle's name, a dot and a mouse's; RepositoryIndex lists them."
        raise NotFound("there is no such model", got=got, hint=hint)
    return f"/v2/models/{name}" + (f"/versions/{version}" if version else "")


def infer_body(content: bytes) -> tuple[Any, bytes, int]:
    """The ModelInferRequest, without its tensors; the body that says the same under /v2; and the length of its JSON."""
    asked = parsed("ModelInferRequest", content)
    tensors = _tensors(asked)
    parameters = _parameters(asked.parameters) | {"binary_data_output": True}
    parameters.pop("triton_enable_empty_final_response", None)  # no answer is empty: each says that it is the final one
    head = {
        **({"id": asked.id} if asked.id else {}),
        "parameters": parameters,
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {**_parameters(tensor.parameters), "binary_data_size": len(values)},
            }
            for tensor, values in zip(asked.inputs, tensors, strict=True)
        ],
        "outputs": [{"name": output.name, "parameters": _parameters(output.parameters)} for output in asked.outputs],
    }
    text = json.dumps(head).encode()
    body = b"".join([text, *tensors])
    asked.ClearField("raw_input_contents")
    asked.ClearField("inputs")
    return asked, body, len(text)


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: (one.WhichOneof("parameter_choice"), one) for name, one in given.items()}
    return {name: None if kind is None else getattr(one, kind) for name, (kind, one) in values.items()}


def _tensors(asked: Any) -> list[bytes]:
    """The bytes of each input, from raw or from typed contents."""
    raw = asked.raw_input_contents
    if not raw:
        return [_from_contents(tensor) for tensor in asked.inputs]
    if len(raw) != len(asked.inputs) or any(tensor.HasField("contents") for tensor in asked.inputs):
        raise InvalidInput(
            "raw_input_contents does not pair up with the inputs",
            got=f"{len(raw)} for {len(asked.inputs)} inputs",
            expected="one for each input, and no contents beside them",
        )
    for tensor, values in zip(asked.inputs, raw, strict=True):
        if tensor.datatype in DTYPES:
            _check_size(tensor, len(values) / DTYPES[tensor.datatype].itemsize, "raw_input_contents")
    return list(raw)


def _from_contents(tensor: Any) -> bytes:
    if (field := _CONTENTS.get(tensor.datatype)) is None:
        return b""  # refused for its datatype
    given = [found.name for found, _ in tensor.contents.ListFields()]
    if given != [field]:
        got = " and ".join(given) or "none"
        raise InvalidInput(f"input {brief(tensor.name)} has other contents than its datatype", got=got, expected=field)
    values = getattr(tensor.contents, field)
    _check_size(tensor, len(values), field)
    return np.fromiter(values, DTYPES[tensor.datatype], len(values)).tobytes()


def _check_size(tensor: Any, n_values: float, field: str) -> None:
    if n_values != math.prod(tensor.shape):
        raise InvalidInput(
            f"{field} of input {brief(tensor.name)} does not fit its shape",
            got=f"{n_values:g} values of {brief(tensor.datatype)}",
            expected=f"{math.prod(tensor.shape)}, for {brief(list(tensor.shape))}",
        )


def infer_response(body: bytes, header_length: int) -> Any:
    """The ModelInferResponse of a binary reply of /v2."""
    head = orjson.loads(memoryview(body)[:header_length])
    answer = message("ModelInferResponse")(
        model_name=head["model_name"], model_version=head["model_version"], id=head.get("id", "")
    )
    for name, value in (head["parameters"] | {_FINAL: True}).items():
        kind = "bool_param" if isinstance(value, bool) else "int64_param" if isinstance(value, int) else "string_param"
        setattr(answer.parameters[name], kind, value)
    offset = header_length
    for tensor in head["outputs"]:
        assert tensor["name"] in OUTPUTS
        answer.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        size = tensor["parameters"]["binary_data_size"]
        answer.raw_output_contents.append(body[offset : offset + size])
        offset += size
    return answer
