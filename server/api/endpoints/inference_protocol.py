"""The Open Inference Protocol v2, JSON and binary, as `tritonclient` speaks it; asks the same questions as /predict.

Each mouse of each bundle is a model named `bundle.mouse`. In the mouse's id, everything but letters, digits, `_`, `~`
and `-` is percent-encoded, so that the last dot separates the two. The model's versions are the bundle's; the newest
answers where none is named.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from server.api.codecs.images.decoding_cost import image_cost
from server.api.codecs.parsing.compression import compressed, wanted_encoding
from server.api.codecs.parsing.validation import validated
from server.api.codecs.request import Question, question_about
from server.api.codecs.response import JSON, json_response, model_info, neuron_arrays
from server.api.codecs.schemas import API_VERSION, PredictRequest
from server.api.codecs.tensors import INPUTS, OUTPUTS, InferenceRequest, read_request, write_reply
from server.api.endpoints.dispatch import LARGE, read_body, respond
from server.bundle.manifest import channels_text
from server.errors import InvalidInput, NotFound, brief
from server.serving.context import Context
from server.serving.limits.memory_budget import Reservation

if TYPE_CHECKING:
    from server.bundle.manifest import Channel, MouseRecord
    from server.inference.engine import Engine, Prediction
    from server.serving.repository import Bundle

__all__ = [
    "all_statistics",
    "infer",
    "model_config",
    "model_metadata",
    "model_name",
    "model_ready",
    "model_statistics",
    "repository_index",
    "server_live",
    "server_metadata",
    "server_ready",
]

_BINARY = "application/octet-stream"
_PLATFORM = "onnxruntime_onnx"
_SHOWN = 20  # names in an error


@functools.lru_cache(maxsize=1024)
def model_name(bundle: str, mouse_id: str) -> str:
    """The protocol's name of a mouse of a bundle.

    >>> model_name("demo.2", "A.1")
    'demo.2.A%2E1'
    """
    return f"{bundle}.{quote(mouse_id, safe='').replace('.', '%2E')}"


async def server_metadata(request: Request, context: Context) -> Response:
    return json_response(
        {
            "name": "v1t-twins",
            "version": API_VERSION,
            "extensions": ["binary_tensor_data", "statistics", "model_configuration"],
        }
    )


async def server_live(request: Request, context: Context) -> Response:
    return json_response({"live": True})


async def server_ready(request: Request, context: Context) -> Response:
    context.check_ready()
    return json_response({"ready": True})


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
        if version is None or version == bundle.version:
            record = bundle.manifest.mice[unquote(mouse_id)]
            request.state.mouse = record.mouse_id
            return name, bundle, record
    expected = " or ".join(bundle.version for bundle in versions[-_SHOWN:])
    raise NotFound("the model has no such version", got=brief(version), expected=expected)


async def repository_index(request: Request, context: Context) -> Response:
    return json_response(
        [
            {"name": name, "version": bundle.version, "state": "READY", "reason": ""}
            for name, bundle, _ in _models(context)
        ]
    )


async def model_ready(request: Request, context: Context) -> Response:
    name, _, _ = _find(request, context)
    context.check_ready()
    return json_response({"name": name, "ready": True})


async def model_metadata(request: Request, context: Context) -> Response:
    name, bundle, record = _find(request, context)
    shapes, required = _shapes(record), _required(record)
    return json_response(
        {
            "name": name,
            "versions": [
                one.version
                for one in context.repository.versions(bundle.name).values()
                if record.mouse_id in one.manifest.mice
            ],
            "platform": _PLATFORM,
            "inputs": [
                {
                    "name": tensor,
                    "datatype": datatype,
                    "shape": shapes[tensor],
                    "parameters": {"optional": tensor not in required}
                    | ({"channels": channels_text(record.behavior)} if tensor == "behavior" else {}),
                }
                for tensor, datatype in INPUTS.items()
            ],
            # The second size is that of neuron_ids, and without them all of the mouse's neurons.
            "outputs": [{"name": tensor, "datatype": "FP32", "shape": [-1, -1]} for tensor in OUTPUTS],
            "parameters": {**_provenance(bundle, record.mouse_id), "n_neurons": record.n_neurons},
        }
    )


def _shapes(record: MouseRecord) -> dict[str, list[int]]:
    """The shape of each input; -1: any size."""
    return {
        "image": [-1, *record.image_shape],
        "behavior": [-1, len(record.behavior)],
        "pupil_center": [-1, len(record.pupil_center)],
        "neuron_ids": [-1],
    }


def _required(record: MouseRecord) -> set[str]:
    """The inputs that cannot be left out: nothing is known that would fill them in."""
    channels = {"behavior": record.behavior, "pupil_center": record.pupil_center}
    unknown = {
        name for name in channels.keys() & set(record.uses) if any(channel.mean is None for channel in channels[name])
    }
    return {"image", *unknown}


def _provenance(engine: Engine | Bundle, mouse_id: str) -> dict[str, Any]:
    """The model that answered; the protocol's parameters are strings, numbers and booleans."""
    info = model_info(engine)
    return {
        "bundle": info["name"],
        "mouse": mouse_id,
        "hash": info["hash"],
        "members": info["members"],
        "provider": info["provider"],
        "precision": info["precision"],
        "simulated": info["simulated"],
        "standardized_inputs": engine.manifest.mice[mouse_id].standardized_inputs,
        "notice": info["notice"] or "",
    }


async def model_config(request: Request, context: Context) -> Response:
    """The model's configuration, as `tritonclient` asks for it; shapes are as in the metadata."""
    name, _, record = _find(request, context)
    required = _required(record)
    return json_response(
        {
            "name": name,
            "platform": _PLATFORM,
            "max_batch_size": 0,  # shapes have all their sizes: that of neuron_ids has none of a batch
            "input": [
                {
                    "name": tensor,
                    "data_type": f"TYPE_{datatype}",
                    "dims": _shapes(record)[tensor],
                    "optional": tensor not in required,
                }
                for tensor, datatype in INPUTS.items()
            ],
            "output": [{"name": tensor, "data_type": "TYPE_FP32", "dims": [-1, -1]} for tensor in OUTPUTS],
        }
    )


async def model_statistics(request: Request, context: Context) -> Response:
    name, bundle, record = _find(request, context)
    return json_response({"model_stats": [_stats(context, name, bundle, record.mouse_id)]})


async def all_statistics(request: Request, context: Context) -> Response:
    return json_response({"model_stats": [_stats(context, *model) for model in _models(context)]})


def _stats(context: Context, name: str, bundle: Bundle, mouse_id: str) -> dict[str, Any]:
    return {"name": name, "version": bundle.version, **context.statistics.body(bundle, mouse_id)}


async def infer(request: Request, context: Context) -> Response:
    """Responses and their spread."""
    name, bundle, record = _find(request, context)
    context.admit(request.state.deadline, request.state.priority)
    engine = await context.repository.engine(bundle)
    body = await read_body(request, context)  # of any type: clients of the protocol differ
    context.admit(request.state.deadline, request.state.priority)  # again: others may have arrived with it
    compression = wanted_encoding(request.headers.get("accept-encoding"))
    arguments = (
        body,
        request.headers.get("inference-header-content-length"),
        engine,
        record,
        context,
        request.state.memory,
    )
    if len(body) > LARGE:
        asked, question = await context.decode_pool.run(len(body), request.state.memory.used_by(_read), *arguments)
    else:
        asked, question = _read(*arguments)
    del body, arguments

    def encode(predictions: list[Prediction]) -> Response:
        arrays = neuron_arrays(engine, question, predictions[0].response, predictions[0].spread)
        head = {
            "model_name": name,
            "model_version": bundle.version,
            **({} if asked.id is None else {"id": asked.id}),
            "parameters": {
                **_provenance(engine, record.mouse_id),
                "units": question.units,
                "state": question.state,
                "assumed": json.dumps(question.assumed),  # the protocol's parameters are scalars
                "notes": json.dumps([note.model_dump() for note in question.notes]),
            },
        }
        outputs = [(output, arrays[output], in_binary) for output, in_binary in asked.outputs.items()]
        content, header_length = write_reply(head, outputs)
        headers = {}
        if header_length is not None:  # of the JSON before compression
            headers["Inference-Header-Content-Length"] = str(header_length)
        if compression is not None:
            content, headers["Content-Encoding"] = compressed(content, compression), compression
        return Response(content, headers=headers, media_type=JSON if header_length is None else _BINARY)

    if asked.parameters.priority:
        request.state.priority = "interactive" if asked.parameters.priority == 1 else "bulk"
    timeout = asked.parameters.timeout / 1e6 if asked.parameters.timeout else None
    in_text = not all(asked.outputs.values())
    return await respond(request, context, engine, [question], encode, timeout=timeout, in_text=in_text)


def _read(
    body: bytes,
    header_length: str | None,
    engine: Engine,
    record: MouseRecord,
    context: Context,
    memory: Reservation,
) -> tuple[InferenceRequest, Question]:
    """The request, and its question."""
    asked = read_request(body, header_length, reserve=lambda size: memory.set(len(body) + size, "the JSON"))
    arrays = asked.inputs
    cost = image_cost(arrays.get("image"), [record], False, context.settings)
    memory.set(memory.size + cost.memory, "a request with images")
    fields: dict[str, Any] = {
        "mouse": record.mouse_id,
        "image": arrays.get("image"),
        "spread": "spread" in asked.outputs,
        "units": asked.parameters.units,
        "state": asked.parameters.state,
        "strict": asked.parameters.strict,
    }
    if (image := arrays.get("image")) is not None and image.ndim != 4:
        expected = f"(B, {', '.join(map(str, record.image_shape))})"
        raise InvalidInput("image is not a batch", got=str(image.shape), expected=expected)
    if (behavior := arrays.get("behavior")) is not None:
        columns = _columns(behavior, "behavior", record.behavior)
        fields["behavior"] = {one.name: column.tolist() for one, column in zip(record.behavior, columns, strict=True)}
    if (pupil_center := arrays.get("pupil_center")) is not None:
        _columns(pupil_center, "pupil_center", record.pupil_center)
        fields["pupil_center"] = pupil_center.tolist()
    if (neuron_ids := arrays.get("neuron_ids")) is not None:
        if neuron_ids.ndim != 1:
            raise InvalidInput("neuron_ids has another shape", got=str(neuron_ids.shape), expected="(n,)")
        fields["neuron_ids"] = neuron_ids.tolist()
    request = validated(PredictRequest, fields)
    return asked, question_about(record, request, engine.neurons[record.mouse_id], context.settings)


def _columns(array: np.ndarray, name: str, channels: list[Channel]) -> np.ndarray:
    if array.ndim != 2 or array.shape[1] != len(channels):
        expected = f"(B, {len(channels)}): {channels_text(channels)}"
        raise InvalidInput(f"{name} has another shape", got=str(array.shape), expected=expected)
    return array.T
