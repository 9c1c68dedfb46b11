"""Protocols: each sends a question over HTTP and reads the reply.

They are written from the HTTP contract, by hand or with the published client and an unmodified `tritonclient`. They
share no code with the server.
"""

from __future__ import annotations

import asyncio
import io
import json
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Self

import httpx
import numpy as np
import orjson
from PIL import Image
from v1t_client import AsyncClient, ModelChanged, Prediction, ServerError

from reliability import grpc_calls
from reliability.questions import Question

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import tritonclient.http.aio as triton
    from tritonclient.utils import InferenceServerException

__all__ = ["BODIES", "PROTOCOLS", "Connections", "Protocol", "Reply", "fitting", "read_npy"]

JSON, NPY = "application/json", "application/x-npy"

Body = Callable[[Question], tuple[bytes, str]]  # the body and its media type


@dataclass(frozen=True)
class Reply:
    """A reply.

    Attributes:
        arrays: in the order of the .npy reply; None if the request was refused.
        hash: of the bundle that answered, as the reply states it.
        text: body of a refusal.
    """

    status: int
    arrays: Sequence[np.ndarray] | None = None
    hash: str = ""
    mouse: str = ""
    retry_after: str | None = None
    text: str = ""


class Connections:
    """The HTTP clients of one run.

    Args:
        retries: number of retries of the published client; the others never retry.
        keep: keep connections open between requests.
        grpc: address of the same server's gRPC service; None: it has none, and those protocols are not used.
    """

    def __init__(
        self, url: str, *, timeout: float = 60.0, retries: int = 8, keep: bool = True, grpc: str | None = None
    ) -> None:
        # The server closes connections that are idle for 5 s. Close them earlier: no request then meets a closed one.
        idle = 2.0
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=None if keep else 0, keepalive_expiry=idle
        )
        headers = {} if keep else {"Connection": "close"}
        self.http = httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, headers=headers, trust_env=False)
        self.client = AsyncClient(url, timeout=timeout, retries=retries)
        self._bodies: dict[tuple[Question, Body], tuple[bytes, str]] = {}
        self.triton = triton.InferenceServerClient(url.removeprefix("http://"), conn_limit=512, conn_timeout=timeout)
        self.triton._stub.connector._keepalive_timeout = idle  # there is no argument for it
        self.timeout = timeout
        self.grpc = None if grpc is None else grpc_calls.client(grpc)

    def body(self, question: Question, body_of: Body) -> tuple[bytes, str]:
        """The body and its media type, encoded once per question, so that clients need little of the CPU."""
        key = (question, body_of)
        if key not in self._bodies:
            self._bodies[key] = body_of(question)
        return self._bodies[key]

    @property
    def protocols(self) -> tuple[str, ...]:
        """Names of all protocols that the server speaks."""
        return tuple(name for name, protocol in PROTOCOLS.items() if self.grpc is not None or not protocol.over_grpc)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.http.aclose()
        await self.client.aclose()
        await self.triton.close()
        if self.grpc is not None:
            await self.grpc.close()
        await asyncio.sleep(0.05)  # aiohttp closes its connections shortly after close() returns


Ask = Callable[[Connections, Question, Mapping[str, str]], Awaitable[Reply]]


@dataclass(frozen=True)
class Protocol:
    """A way to send a question.

    Attributes:
        kinds: the kinds of question that it can send.
        max_images: most images per request in these tests; more are possible, but slow to encode.
        grey: whether it can only send images with one channel.
        together: whether it asks all mice of the bundle about the same images.
        over_grpc: whether it needs a server with a gRPC service.
    """

    name: str
    ask: Ask
    kinds: frozenset[str]
    max_images: int
    grey: bool = False
    together: bool = False
    over_grpc: bool = False


# Bodies


def _fields(question: Question) -> dict[str, Any]:
    fields: dict[str, Any] = {"mouse": question.mouse, "model": question.model}
    names = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
    fields |= dict(zip(names, question.behavior.T.tolist(), strict=True))
    fields["pupil_center"] = question.pupil_center.tolist()
    if question.kind == "predict":
        fields["spread"] = True
    if question.kind != "attention":
        fields["units"] = question.units
        if question.neuron_ids is not None:
            fields["neuron_ids"] = question.neuron_ids
    if question.weights is not None:
        fields["weights"] = question.weights.tolist()
    return fields


def _form(question: Question) -> dict[str, str]:
    words = {"mouse", "model", "units"}
    return {name: value if name in words else json.dumps(value) for name, value in _fields(question).items()}


def _npy_file(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array.astype(np.uint8))  # integer grey levels
    return stream.getvalue()


def _png_file(plane: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(plane.astype(np.uint8)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


# Replies


def _refused(response: httpx.Response) -> Reply:
    return Reply(response.status_code, retry_after=response.headers.get("retry-after"), text=response.text[:300])


def _from_json(response: httpx.Response, question: Question) -> Reply:
    if response.status_code != 200:
        return _refused(response)
    reply = orjson.loads(response.content)
    if question.kind == "attention":
        lists = [reply["attention"]]
    elif question.kind == "gradient":
        gradient = reply["gradient"]
        lists = [gradient["image"], reply["responses"], gradient["behavior"], gradient["pupil_center"]]
    else:
        lists = [[reply["responses"], reply["spread"]]]
    if question.neuron_ids is not None and reply["neuron_ids"] != question.neuron_ids:
        raise AssertionError("the reply has other neurons")
    arrays = [np.array(values, np.float32) for values in lists]
    return Reply(200, arrays, reply["model"]["hash"], reply["mouse"])


def read_npy(response: httpx.Response) -> Reply:
    """A reply in .npy, or a refusal."""
    if response.status_code != 200:
        return _refused(response)
    stream, arrays = io.BytesIO(response.content), []
    while stream.tell() < len(response.content):
        arrays.append(np.load(stream, allow_pickle=False))
    head = json.loads(response.headers["v1t-reply"])
    return Reply(200, arrays, head["model"]["hash"], head["mouse"])


# Protocols


def _json_body(question: Question) -> tuple[bytes, str]:
    fields = {**_fields(question), "image": question.image.astype(np.uint8)}
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY), "application/json"


def _npy_body(question: Question) -> tuple[bytes, str]:
    return _form_of([("image", ("images.npy", _npy_file(question.image), NPY))], question)


def _png_body(question: Question) -> tuple[bytes, str]:
    files = [("image", (f"{i}.png", _png_file(image[0]), "image/png")) for i, image in enumerate(question.image)]
    return _form_of(files, question)


def _form_of(files: list[tuple[str, tuple[str, bytes, str]]], question: Question) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://anywhere", data=_form(question), files=files)
    return request.read(), request.headers["content-type"]


BODIES: Mapping[str, Body] = MappingProxyType({"form of .npy": _npy_body, "form of PNGs, .npy back": _png_body})


def _ours(body_of: Body, accept: str) -> Ask:
    async def ask(connections: Connections, question: Question, headers: Mapping[str, str]) -> Reply:
        body, content_type = connections.body(question, body_of)
        headers = {**headers, "Content-Type": content_type, "Accept": accept}
        response = await connections.http.post(f"/{question.kind}", content=body, headers=headers)
        return read_npy(response) if accept == NPY else _from_json(response, question)

    return ask


async def _published(connections: Connections, question: Question, headers: Mapping[str, str]) -> Reply:
    async def ask() -> Prediction:
        return await connections.client.predict(
            question.mouse, question.image, neuron_ids=question.neuron_ids, **_arguments(question)
        )

    return await _as_reply(ask)


async def _published_mice(connections: Connections, question: Question, headers: Mapping[str, str]) -> Reply:
    async def ask() -> Prediction:
        return (await connections.client.predict_mice("*", question.image, **_arguments(question)))[question.mouse]

    return await _as_reply(ask)


def _arguments(question: Question) -> dict[str, Any]:
    dilation, derivative, speed = question.behavior.T
    return {
        "pupil_dilation": dilation,
        "pupil_dilation_derivative": derivative,
        "running_speed": speed,
        "pupil_center": question.pupil_center,
        "units": question.units,
        "spread": True,
        "model": question.model,
    }


async def _as_reply(ask: Callable[[], Awaitable[Prediction]]) -> Reply:
    while True:
        try:
            prediction = await ask()
        except ModelChanged:  # a swap between the responses and their neuron ids; the error's hint is to ask again
            continue
        except ServerError as error:
            retry_after = None if error.retry_after is None else str(error.retry_after)
            return Reply(error.status, retry_after=retry_after, text=str(error))
        arrays = [np.stack([prediction.responses, prediction.spread])]
        return Reply(200, arrays, prediction.model.hash, prediction.mouse)


def _v2_tensors(question: Question) -> dict[str, np.ndarray]:
    tensors = {"image": question.image, "behavior": question.behavior, "pupil_center": question.pupil_center}
    if question.neuron_ids is not None:
        tensors["neuron_ids"] = np.array(question.neuron_ids, np.int64)
    return tensors


def _triton(binary: bool) -> Ask:
    async def ask(connections: Connections, question: Question, headers: Mapping[str, str]) -> Reply:
        inputs = []
        for name, array in _v2_tensors(question).items():
            tensor = triton.InferInput(name, array.shape, "INT64" if name == "neuron_ids" else "FP32")
            tensor.set_data_from_numpy(array, binary_data=binary)
            inputs.append(tensor)
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("responses", "spread")]
        try:
            result = await connections.triton.infer(
                f"{question.model}.{question.mouse}",
                inputs,
                outputs=outputs,
                headers=dict(headers) or None,
                parameters={"units": question.units},
            )
        except InferenceServerException as error:
            return Reply(int(error.status() or 0), text=str(error))
        parameters = result.get_response()["parameters"]
        return Reply(
            200,
            [np.stack([result.as_numpy("responses"), result.as_numpy("spread")])],
            parameters["hash"],
            parameters["mouse"],
        )

    return ask


def _grpc(call: grpc_calls.GRPCCall) -> Ask:
    async def ask(connections: Connections, question: Question, headers: Mapping[str, str]) -> Reply:
        assert connections.grpc is not None
        model, tensors = f"{question.model}.{question.mouse}", _v2_tensors(question)
        status, arrays, text, said = await call(
            connections.grpc, model, tensors, {"units": question.units}, headers, connections.timeout
        )
        if arrays is None:
            return Reply(status, text=text)
        return Reply(status, [np.stack(arrays)], said["hash"], said["mouse"])

    return ask


async def _v2_by_hand(connections: Connections, question: Question, headers: Mapping[str, str]) -> Reply:
    tensors = _v2_tensors(question)
    described = [
        {
            "name": name,
            "datatype": "INT64" if name == "neuron_ids" else "FP32",
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in tensors.items()
    ]
    head = json.dumps(
        {"inputs": described, "parameters": {"units": question.units, "binary_data_output": True}}
    ).encode()
    response = await connections.http.post(
        f"/v2/models/{question.model}.{question.mouse}/infer",
        content=b"".join([head, *(array.tobytes() for array in tensors.values())]),
        headers={**headers, "Inference-Header-Content-Length": str(len(head))},
    )
    if response.status_code != 200:
        return _refused(response)
    length = int(response.headers["inference-header-content-length"])
    reply, rest = json.loads(response.content[:length]), response.content[length:]
    arrays, offset = [], 0
    for output in reply["outputs"]:
        count = int(np.prod(output["shape"]))
        arrays.append(np.frombuffer(rest, "<f4", count, offset).reshape(output["shape"]))
        offset += 4 * count
    if offset != len(rest):
        raise AssertionError("the reply is longer than its tensors")
    return Reply(200, [np.stack(arrays)], reply["parameters"]["hash"], reply["parameters"]["mouse"])


_PREDICT = frozenset({"predict"})
_ALL = frozenset({"predict", "gradient", "attention"})
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol("JSON", _ours(_json_body, JSON), _ALL, 8),
            Protocol("JSON, .npy back", _ours(_json_body, NPY), _ALL, 8),
            Protocol("form of .npy, JSON back", _ours(_npy_body, JSON), _ALL, 64),
            Protocol("form of .npy", _ours(_npy_body, NPY), _ALL, 64),
            Protocol("form of PNGs, .npy back", _ours(_png_body, NPY), _ALL, 13, grey=True),
            Protocol("v1t_client", _published, _PREDICT, 64),
            Protocol("v1t_client, several mice", _published_mice, _PREDICT, 64, together=True),
            Protocol("tritonclient, JSON", _triton(False), _PREDICT, 4),
            Protocol("tritonclient, binary", _triton(True), _PREDICT, 64),
            Protocol("v2 by hand, binary", _v2_by_hand, _PREDICT, 64),
            Protocol("tritonclient, gRPC", _grpc(grpc_calls.infer), _PREDICT, 64, over_grpc=True),
            Protocol("tritonclient, gRPC stream", _grpc(grpc_calls.stream_one), _PREDICT, 64, over_grpc=True),
        )
    }
)


def fitting(question: Question, names: Sequence[str]) -> list[Protocol]:
    """Those of the named protocols that can send the question."""
    return [
        protocol
        for protocol in (PROTOCOLS[name] for name in names)
        if question.kind in protocol.kinds
        and len(question) <= protocol.max_images
        and (not protocol.grey or question.image.shape[1] == 1)
        and (not protocol.together or (question.alike and question.neuron_ids is None))
    ]
