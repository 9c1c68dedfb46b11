"""Calls over gRPC, by an unmodified `tritonclient` and by hand; statuses as HTTP has them."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

import grpc
import numpy as np
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import tritonclient.grpc as triton
    import tritonclient.grpc.aio as triton_aio
    from tritonclient.utils import InferenceServerException

__all__ = ["GRPCCall", "broken_fields", "client", "infer", "infer_message", "send", "stream_one"]

# Status, arrays unless it is a refusal, text of the refusal, and the parameters of the reply.
GRPCReply: TypeAlias = tuple[int, Sequence[np.ndarray] | None, str, Mapping[str, Any]]
GRPCCall: TypeAlias = Callable[
    [triton_aio.InferenceServerClient, str, Mapping[str, np.ndarray], dict[str, Any], Mapping[str, str], float],
    Awaitable[GRPCReply],
]

_STATUSES = {  # where several of HTTP become one code: the most frequent of them
    "OK": 200,
    "INVALID_ARGUMENT": 422,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAUTHENTICATED": 401,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}  # any other: 500
_OUTPUTS = ("responses", "spread")


def client(address: str) -> triton_aio.InferenceServerClient:
    return triton_aio.InferenceServerClient(address)


def _inputs(tensors: Mapping[str, np.ndarray]) -> list[triton.InferInput]:
    inputs = []
    for name, array in tensors.items():
        inputs.append(triton.InferInput(name, array.shape, "INT64" if array.dtype == np.int64 else "FP32"))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def _reply(result: Any, error: InferenceServerException | None) -> GRPCReply:
    if error is not None:
        code = error.status()  # None: in a stream, where an error has no code
        status = 0 if code is None else _STATUSES.get(code.removeprefix("StatusCode."), 500)
        return status, None, str(error), {}
    parameters = result.get_response().parameters
    said = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}
    return 200, [result.as_numpy(name) for name in _OUTPUTS], "", said


async def infer(
    client: triton_aio.InferenceServerClient,
    model: str,
    tensors: Mapping[str, np.ndarray],
    parameters: dict[str, Any],
    headers: Mapping[str, str],
    timeout: float,
) -> GRPCReply:
    """ModelInfer."""
    try:
        result = await client.infer(
            model, _inputs(tensors), parameters=parameters, headers=_metadata(headers), client_timeout=timeout
        )
    except InferenceServerException as error:
        return _reply(None, error)
    return _reply(result, None)


async def stream_one(
    client: triton_aio.InferenceServerClient,
    model: str,
    tensors: Mapping[str, np.ndarray],
    parameters: dict[str, Any],
    headers: Mapping[str, str],
    timeout: float,
) -> GRPCReply:
    """ModelStreamInfer, in a stream of its own."""

    async def questions() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": model, "inputs": _inputs(tensors), "parameters": parameters}

    try:
        answers = client.stream_infer(questions(), stream_timeout=timeout, headers=_metadata(headers))
        ((result, error),) = [answer async for answer in answers]
    except InferenceServerException as refused:
        return _reply(None, refused)
    return _reply(result, error)


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def infer_message(model: str, tensors: Mapping[str, np.ndarray]) -> bytes:
    """A ModelInferRequest."""
    message = triton.service_pb2.ModelInferRequest(model_name=model)
    for one in _inputs(tensors):
        message.inputs.append(one._get_tensor())
        message.raw_input_contents.append(one._get_content())
    content: bytes = message.SerializeToString()
    return content


@cache
def _channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address)


def send(address: str, content: bytes, *, timeout: float) -> tuple[int, str]:
    """Sends bytes to ModelInfer, and to a stream; the status of the first, and its text."""
    service = "/inference.GRPCInferenceService/"
    answers = list(
        _channel(address).stream_stream(f"{service}ModelStreamInfer")(iter([content, content]), timeout=timeout)
    )
    assert len(answers) == 2, "an answer in the stream for each message"
    try:
        _channel(address).unary_unary(f"{service}ModelInfer")(content, timeout=timeout)
    except grpc.RpcError as error:
        return _STATUSES.get(error.code().name, 500), str(error.details())
    return 200, ""


@st.composite
def broken_fields(draw: st.DrawFn, whole: bytes) -> bytes:
    """The request with some of its fields changed."""
    message = triton.service_pb2.ModelInferRequest.FromString(whole)
    tensor = message.inputs[0]
    words = st.sampled_from(["", "tiny.A", "tiny.B", "image", "behavior", "neuron_ids", "FP32", "INT64", "raw", "1"])
    text = st.one_of(words, st.text(st.characters(codec="utf-8"), max_size=12))
    sizes = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 20), max_size=5)
    for what in draw(st.lists(st.integers(0, 8), max_size=3)):
        if what == 0:
            message.model_name = draw(text)
        elif what == 1:
            message.model_version = draw(text)
        elif what == 2:
            tensor.name = draw(text)
        elif what == 3:
            tensor.datatype = draw(text)
        elif what == 4:
            tensor.shape[:] = draw(sizes)
        elif what == 5:
            message.raw_input_contents[:] = draw(st.lists(st.binary(max_size=500), max_size=3))
        elif what == 6:
            tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=20)))
        elif what == 7:
            message.parameters[draw(text)].string_param = draw(text)
        else:
            message.outputs.add(name=draw(text))
    content: bytes = message.SerializeToString()
    return content
