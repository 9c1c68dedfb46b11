"""The Open Inference Protocol v2, JSON and binary, as `tritonclient` speaks it; thin, over the context of /predict.

Every mouse of every bundle is a model. Its name is `bundle.mouse`, where whatever is no letter, digit, `_`, `~` or `-`
in the mouse's id is written %XX, so that the last dot parts the two. Its versions are the bundle's; the newest answers
where none is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.codecs import request as stimulus
from server.api.codecs import response as replies
from server.api.codecs import tensors
from server.api.codecs.schemas import API_VERSION
from server.api.endpoints.dispatch import LARGE, answer, named
from server.errors import InvalidInput, NotFound, UnsupportedMedia, brief
from server.serving.context import Context
from server.serving.telemetry.metrics import UNKNOWN

if TYPE_CHECKING:
    from server.bundle.manifest import MouseRecord
    from server.inference.engine import Engine, Prediction
    from server.serving.repository import Bundle

__all__ = ["model_name", "routes"]

_INPUTS = {"image": "FP32", "behavior": "FP32", "pupil_center": "FP32", "neuron_ids": "INT64"}
_OUTPUTS = ("responses", "spread")
_PARAMETERS = frozenset({"timeout", "units"})
_BINARY = "application/octet-stream"
_SHOWN = 20  # names in an error


def routes() -> list[Route]:
    """The protocol's routes, to mount beside ours."""
    of_a_model = [
        ("/infer", _infer, "POST"),
        ("", _metadata, "GET"),
        ("/ready", _model_ready, "GET"),
        ("/stats", _model_stats, "GET"),
    ]
    return [  # tried one after another
        Route("/v2/models/stats", named("/v2/models/stats", _all_stats)),
        *(
            Route(f"/v2/models/{{model}}{version}{path}", named(f"/v2/models/{{model}}{path}", handler), methods=[verb])
            for path, handler, verb in of_a_model
            for version in ("", "/versions/{version}")
        ),
        Route("/v2", named("/v2", _server)),
        Route("/v2/health/live", named("/v2/health/live", _live)),
        Route("/v2/health/ready", named("/v2/health/ready", _ready)),
        Route("/v2/repository/index", named("/v2/repository/index", _index), methods=["POST"]),
    ]


def model_name(bundle: str, mouse_id: str) -> str:
    """The protocol's name of a mouse of a bundle.

    >>> model_name("demo.2", "A.1")
    'demo.2.A%2E1'
    """
    return f"{bundle}.{quote(mouse_id, safe='').replace('.', '%2E')}"


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type=replies.JSON)


# What is there


async def _server(request: Request, context: Context) -> Response:
    return _json({"name": "v1t-twins", "version": API_VERSION, "extensions": ["binary_tensor_data", "statistics"]})


async def _live(request: Request, context: Context) -> Response:
    return _json({"live": True})


async def _ready(request: Request, context: Context) -> Response:
    context.check_ready()
    return _json({"ready": True})


def _models(context: Context) -> list[tuple[str, Bundle, str]]:
    """Every version of every model: its name, its bundle and the mouse."""
    return [
        (model_name(bundle.name, mouse_id), bundle, mouse_id)
        for bundle in context.repository.bundles
        for mouse_id in bundle.manifest.mice
    ]


def _find(request: Request, context: Context) -> tuple[str, Bundle, MouseRecord]:
    """The model that the path names."""
    name, version = request.path_params["model"], request.path_params.get("version")
    bundle_name, _, mouse_id = name.rpartition(".")
    versions = [
        bundle
        for bundle in context.repository.versions(bundle_name).values()
        if unquote(mouse_id) in bundle.manifest.mice and model_name(bundle_name, unquote(mouse_id)) == name
    ]
    if not versions:
        known = list(dict.fromkeys(known for known, _, _ in _models(context)))
        more = f" or {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        raise NotFound(
            "there is no such model",
            got=brief(name),
            expected=" or ".join(known[:_SHOWN]) + more,
            hint="A model is a bundle's name, a dot and a mouse's; POST /v2/repository/index lists them.",
        )
    for bundle in reversed(versions):
        if version in (None, bundle.version):
            record = bundle.manifest.mice[unquote(mouse_id)]
            request.state.mouse = record.mouse_id
            return name, bundle, record
    expected = " or ".join(bundle.version for bundle in versions[-_SHOWN:])
    raise NotFound("the model has no such version", got=brief(version), expected=expected)


async def _index(request: Request, context: Context) -> Response:
    return _json(
        [
            {"name": name, "version": bundle.version, "state": "READY", "reason": ""}
            for name, bundle, _ in _models(context)
        ]
    )


async def _model_ready(request: Request, context: Context) -> Response:
    request.state.mouse = UNKNOWN
    name, _, _ = _find(request, context)
    context.check_ready()
    return _json({"name": name, "ready": True})


async def _metadata(request: Request, context: Context) -> Response:
    request.state.mouse = UNKNOWN
    name, bundle, record = _find(request, context)
    shapes = {
        "image": [-1, *record.image_shape],
        "behavior": [-1, len(record.behavior)],
        "pupil_center": [-1, len(record.pupil_center)],
        "neuron_ids": [-1],
    }
    needed = {
        "image": True,
        "behavior": "behavior" in record.uses and any(channel.mean is None for channel in record.behavior),
        "pupil_center": "pupil_center" in record.uses and any(channel.mean is None for channel in record.pupil_center),
        "neuron_ids": False,
    }
    return _json(
        {
            "name": name,
            "versions": [
                one.version
                for one in context.repository.versions(bundle.name).values()
                if record.mouse_id in one.manifest.mice
            ],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {
                    "name": tensor,
                    "datatype": datatype,
                    "shape": shapes[tensor],
                    "parameters": {"optional": not needed[tensor]},
                }
                for tensor, datatype in _INPUTS.items()
            ],
            # The second size is that of neuron_ids, and without them all of the mouse's neurons.
            "outputs": [{"name": tensor, "datatype": "FP32", "shape": [-1, -1]} for tensor in _OUTPUTS],
            "parameters": {**_provenance(bundle, record.mouse_id), "n_neurons": record.n_neurons},
        }
    )


def _provenance(engine: Engine | Bundle, mouse_id: str) -> dict[str, Any]:
    """Whose answer it is; the protocol's parameters are text, numbers, true and false."""
    info = replies.model_info(engine)
    return {
        "bundle": info["name"],
        "mouse": mouse_id,
        "hash": info["hash"],
        "members": info["members"],
        "provider": info["provider"],
        "precision": info["precision"],
        "simulated": info["simulated"],
        "notice": info["notice"] or "",
    }


async def _model_stats(request: Request, context: Context) -> Response:
    request.state.mouse = UNKNOWN
    name, bundle, record = _find(request, context)
    return _json({"model_stats": [_stats(context, name, bundle, record.mouse_id)]})


async def _all_stats(request: Request, context: Context) -> Response:
    return _json({"model_stats": [_stats(context, *model) for model in _models(context)]})


def _stats(context: Context, name: str, bundle: Bundle, mouse_id: str) -> dict[str, Any]:
    return {"name": name, "version": bundle.version, **context.statistics.body(bundle, mouse_id)}


# Inference


async def _infer(request: Request, context: Context) -> Response:
    request.state.mouse = UNKNOWN
    name, bundle, record = _find(request, context)
    context.admit(request.state.deadline)
    engine = await context.repository.engine(bundle)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia("the body is compressed", got=brief(encoding), expected="no Content-Encoding")
    body = await request.body()
    context.admit(request.state.deadline)  # once more: others may have come while the body did
    arguments = body, request.headers.get("inference-header-content-length"), engine, record, context
    if len(body) > LARGE:
        asked, question = await context.decode_pool.read(len(body), _read, *arguments)
    else:
        asked, question = _read(*arguments)
    del body, arguments

    def write(
        engine: Engine, question: stimulus.Question, prediction: Prediction, request_id: str
    ) -> tuple[bytes, int | None]:
        head = {"model_name": name, "model_version": bundle.version}
        if asked.id is not None:
            head["id"] = asked.id
        return _write(head, asked.outputs, engine, question, prediction)

    content, header_length = await answer(request, context, engine, question, write, seconds=_seconds(asked.parameters))
    if header_length is None:
        return Response(content, media_type=replies.JSON)
    return Response(content, headers={"Inference-Header-Content-Length": str(header_length)}, media_type=_BINARY)


def _read(
    body: bytes, header_length: str | None, engine: Engine, record: MouseRecord, context: Context
) -> tuple[tensors.InferRequest, stimulus.Question]:
    """The request, and the question that it asks."""
    asked = tensors.read_request(body, header_length, inputs=_INPUTS, outputs=_OUTPUTS, parameters=_PARAMETERS)
    arrays = asked.inputs
    fields: dict[str, Any] = {"spread": "spread" in asked.outputs, "units": asked.parameters.get("units")}
    if (image := arrays.get("image")) is not None:
        if image.ndim != 4:
            raise InvalidInput(
                "image is no batch", got=str(image.shape), expected=str(("B", *record.image_shape)).replace("'", "")
            )
        fields["image"] = image
    if (behavior := arrays.get("behavior")) is not None:
        columns = _columns(behavior, "behavior", len(record.behavior))
        fields |= {channel.name: column.tolist() for channel, column in zip(record.behavior, columns, strict=True)}
    if (pupil_center := arrays.get("pupil_center")) is not None:
        _columns(pupil_center, "pupil_center", len(record.pupil_center))
        fields["pupil_center"] = pupil_center.tolist()
    if (neuron_ids := arrays.get("neuron_ids")) is not None:
        fields["neuron_ids"] = neuron_ids.tolist()
    return asked, stimulus.check(fields, record, engine.neurons[record.mouse_id], context.settings)


def _columns(array: np.ndarray, name: str, n: int) -> np.ndarray:
    if array.ndim != 2 or array.shape[1] != n:
        raise InvalidInput(f"{name} has another shape", got=str(array.shape), expected=f"(B, {n})")
    return array.T


def _seconds(parameters: dict[str, Any]) -> float | None:
    """The protocol's timeout, in microseconds."""
    timeout = parameters.get("timeout")
    if timeout is None or timeout == 0:
        return None
    if type(timeout) is not int or not 0 < timeout < 2**63:
        raise InvalidInput("timeout is no time", got=brief(timeout), expected="whole microseconds")
    return timeout / 1e6


def _write(
    head: dict[str, Any],
    outputs: dict[str, bool],
    engine: Engine,
    question: stimulus.Question,
    prediction: Prediction,
) -> tuple[bytes, int | None]:
    responses, spread = replies.scaled(prediction, question, engine.neurons[question.mouse_id])
    arrays = {"responses": responses}
    if spread is not None:
        arrays["spread"] = spread
    head["parameters"] = {
        **_provenance(engine, question.mouse_id),
        "units": question.units,
        "assumed": "; ".join(question.assumed),
    }
    return tensors.write_reply(
        head, [tensors.Output(name, "FP32", arrays[name], in_binary) for name, in_binary in outputs.items()]
    )
