"""The OpenAPI document: the routes, and the types of `server/api/codecs/schemas.py`.

`python -m server.api.openapi` prints it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server import errors
from server.api.codecs import schemas
from server.api.codecs.neuron_query import PARAMETERS
from server.api.codecs.streaming import EVENTS

__all__ = ["document"]

_REF = "#/components/schemas/{model}"
_MODELS: tuple[type[BaseModel], ...] = (
    schemas.PredictRequest,
    schemas.PredictForm,
    schemas.PredictReply,
    schemas.PredictMiceReply,
    schemas.GradientRequest,
    schemas.GradientForm,
    schemas.GradientReply,
    schemas.AttentionRequest,
    schemas.AttentionForm,
    schemas.AttentionReply,
    schemas.NoiseRequest,
    schemas.MiceReply,
    schemas.MouseDetail,
    schemas.NeuronsReply,
    schemas.ReloadReply,
    schemas.ErrorReply,
    schemas.InferRequest,
    schemas.InferReply,
    schemas.ModelMetadata,
    schemas.ProtocolError,
)
_NEURON_PARAMETERS: dict[str, dict[str, Any]] = {
    "score": {"type": "string", "default": "single_trial_correlation"},
    "score_min": {"type": "number", "description": "of that score"},
    "limit": {"type": "integer", "minimum": 0},
    "offset": {"type": "integer", "minimum": 0, "default": 0},
    "model": {"type": "string", "description": "the bundle's name, where several hold this mouse"},
}
_BOUND = {"type": "number", "description": "cortical position in um; neurons without one do not match"}
_NPY_REPLY = "JSON, or with `Accept: application/x-npy`"
_PREDICTED = (
    f"{_NPY_REPLY} an array (B, n), with spread (2, B, n); of several mice one after another, as numpy.load reads them "
    "from one file, in the order of the header's mice"
)
_DERIVATIVES = (
    f"{_NPY_REPLY} four arrays one after another, as numpy.load reads them from one file: the gradient with respect to "
    "the image (B, C, H, W), the responses (B, n), the gradient with respect to behaviour (B, 3), and to the pupil "
    "centre (B, 2)"
)
_MAPS = f"{_NPY_REPLY} an array (B, M, h, w)"
_OPEN: list[Any] = []  # no key needed
_TIMEOUT = {
    "name": "X-Request-Timeout",
    "in": "header",
    "required": False,
    "description": "seconds until the answer is of no use; the server's own limit holds too",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_MODEL = {
    "name": "model",
    "in": "path",
    "required": True,
    "description": "a bundle's name, a dot and a mouse's",
    "schema": {"type": "string"},
}
_VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}
_MOUSE = {"name": "mouse", "in": "path", "required": True, "schema": {"type": "string"}}

_REPLY_HEADERS = {
    "V1T-Reply": {
        "description": "with application/x-npy: everything else of the JSON reply, as ASCII JSON; neuron_ids are those "
        "that were asked for, or all in the order of /mice/{mouse}/neurons",
        "schema": {"type": "string"},
    },
    "X-Request-Id": {"schema": {"type": "string"}},
}


@cache
def document() -> dict[str, Any]:
    """The document, as served at /docs.json."""
    _, definitions = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Digital twins of mouse visual cortex",
            "version": schemas.API_VERSION,
            "description": "What would these neurons do, shown this image, with this pupil and this speed?",
        },
        "security": [{}, {"key": []}],
        "paths": {
            "/predict": _ask(
                "predict",
                "The responses of a mouse's neurons to images",
                _PREDICTED,
                (schemas.PredictRequest, schemas.PredictForm, schemas.PredictReply, schemas.PredictMiceReply),
            ),
            "/predict/stream": {"post": _stream()},
            "/receptive_fields": {"post": _noise()},
            "/gradient": _ask(
                "gradient",
                "How a weighted sum of responses changes with image, behaviour and pupil centre",
                _DERIVATIVES,
                (schemas.GradientRequest, schemas.GradientForm, schemas.GradientReply),
            ),
            "/attention": _ask(
                "attention",
                "Where the twin's core looks: attention rollout",
                _MAPS,
                (schemas.AttentionRequest, schemas.AttentionForm, schemas.AttentionReply),
            ),
            "/mice": {"get": _get("mice", "Every mouse that can be asked", schemas.MiceReply, [], (401, 429, 503))},
            "/mice/{mouse}": {
                "get": _get(
                    "mouse", "One mouse and its training statistics", schemas.MouseDetail, [_MOUSE, _query("model")]
                )
            },
            "/mice/{mouse}/neurons": {
                "get": _get(
                    "neurons",
                    "Its neurons, by position and score",
                    schemas.NeuronsReply,
                    [_MOUSE, *map(_query, PARAMETERS)],
                )
            },
            "/admin/reload": {
                "post": {
                    **_get(
                        "reload",
                        "Takes in bundles that changed on disk, beside what is served; 409 names what is refused",
                        schemas.ReloadReply,
                        [],
                        (401, 404, 409, 429, 503, 504),
                    ),
                    "security": [{"admin": []}],
                }
            },
            "/livez": {"get": _plain("livez", "200 while the process runs", security=_OPEN)},
            "/readyz": {"get": _plain("readyz", "200 once every bundle is loaded and warm", (503,), security=_OPEN)},
            "/metrics": {"get": _plain("metrics", "Prometheus metrics", (401, 429))},
            **_protocol(),
        },
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "where the server was given API keys"},
                "admin": {"type": "http", "scheme": "bearer", "description": "one of V1T_ADMIN_KEYS"},
            },
        },
    }


def _ask(
    name: str,
    summary: str,
    described: str,
    types: tuple[type[BaseModel], type[BaseModel], type[BaseModel], *tuple[type[BaseModel], ...]],
) -> dict[str, Any]:
    """A question in JSON or as a form, answered in JSON, perhaps of several forms, or .npy."""
    in_json, as_form, *replies = types
    return {
        "post": {
            "operationId": name,
            "summary": summary,
            "parameters": [_TIMEOUT],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": _ref(in_json)},
                    "multipart/form-data": {"schema": _ref(as_form)},
                },
            },
            "responses": {
                "200": {
                    "description": described,
                    "headers": _REPLY_HEADERS,
                    "content": {
                        "application/json": {
                            "schema": _ref(replies[0]) if len(replies) == 1 else {"anyOf": list(map(_ref, replies))}
                        },
                        "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
                    },
                },
                **_errors((400, 401, 404, 406, 413, 415, 422, 429, 503, 504)),
            },
        }
    }


def _stream() -> dict[str, Any]:
    """A stack of images of any length."""
    in_query = schemas.StackQuery.model_json_schema(ref_template=_REF)
    return {
        "operationId": "predict_stream",
        "summary": "The responses to a stack of images of any length, answered while it arrives",
        "parameters": [
            *(
                {"name": name, "in": "query", "required": name in in_query["required"], "schema": schema}
                for name, schema in in_query["properties"].items()
            ),
            {**_TIMEOUT, "description": "seconds until the whole stream is of no use"},
        ],
        "requestBody": {
            "required": True,
            "description": "a .npy (B, C, H, W) in C order, after those that `arrays` names. Read the reply while you "
            "send: the server reads no further ahead than it answers.",
            "content": {"application/x-npy": {"schema": {"type": "string", "format": "binary"}}},
        },
        "responses": {
            "200": {
                "description": "a .npy (B, n), written as it is computed; one that is shorter than its Content-Length "
                f"is not whole. With `Accept: {EVENTS}` events, each a line of JSON and as many bytes as its `bytes` "
                "says: `part` (the .npy of images `start` to `done`, with spread (2, b, n)), `alive`, and at last "
                "`end`, or `error` with the error body",
                "headers": _REPLY_HEADERS,
                "content": {
                    "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
                    EVENTS: {"schema": {"type": "string", "format": "binary"}},
                },
            },
            **_errors((400, 401, 404, 406, 413, 415, 422, 429, 503, 504)),
        },
    }


def _noise() -> dict[str, Any]:
    """Sums of responses to noise."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "operationId": "receptive_fields",
        "summary": "Receptive fields: responses to white noise, weighted by it and summed",
        "parameters": [{**_TIMEOUT, "description": "seconds until the whole stream is of no use"}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(schemas.NoiseRequest)}},
        },
        "responses": {
            "200": {
                "description": "events, each a line of JSON and as many bytes as its `bytes` says: `progress` (`done` "
                "of `total` images), `alive`, one `part`, and at last `end`, or `error` with the error body. The part "
                "is four .npy one after another: the sum of response times noise (n, h, w) float32, of the noise "
                "(h, w), of the responses (n) and of their squares (n) float64",
                "headers": _REPLY_HEADERS,
                "content": {EVENTS: binary},
            },
            **_errors((400, 401, 404, 406, 413, 415, 422, 429, 503, 504)),
        },
    }


def _protocol() -> dict[str, Any]:
    """The Open Inference Protocol v2."""
    paths: dict[str, Any] = {
        "/v2": {"get": _v2("server_metadata", "The server and its extensions")},
        "/v2/health/live": {"get": _v2("server_live", "200 while the process runs", statuses=(), security=_OPEN)},
        "/v2/health/ready": {"get": _v2("server_ready", "200 once it can answer", statuses=(503,), security=_OPEN)},
        "/v2/models/stats": {"get": _v2("all_statistics", "Counts and times of all models")},
        "/v2/repository/index": {"post": _v2("repository_index", "All models")},
    }
    of_a_model = (401, 404, 429, 503)
    for suffix, path, parameters in (("", "", [_MODEL]), ("_version", "/versions/{version}", [_MODEL, _VERSION])):
        start = f"/v2/models/{{model}}{path}"
        metadata = _v2(f"model_metadata{suffix}", "Its tensors", parameters, of_a_model, schemas.ModelMetadata)
        infer = _v2(
            f"infer{suffix}",
            "Responses and their spread; JSON, or JSON with binary tensors after it",
            [*parameters, _TIMEOUT, _HEADER_LENGTH],
            (400, 401, 404, 413, 415, 422, 429, 503, 504),
            schemas.InferReply,
        )
        infer["requestBody"] = {"required": True, "content": _with_tensors(_ref(schemas.InferRequest))}
        infer["responses"]["200"]["content"] = _with_tensors(_ref(schemas.InferReply))
        infer["responses"]["200"]["headers"] = {_HEADER_LENGTH["name"]: {"schema": _HEADER_LENGTH["schema"]}}
        paths[start] = {"get": metadata}
        paths[f"{start}/ready"] = {"get": _v2(f"model_ready{suffix}", "200 once it can answer", parameters, of_a_model)}
        paths[f"{start}/infer"] = {"post": infer}
        paths[f"{start}/stats"] = {"get": _v2(f"statistics{suffix}", "Its counts and times", parameters, of_a_model)}
    return paths


_HEADER_LENGTH: dict[str, Any] = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "description": "the bytes of the JSON, where binary tensors follow it",
    "schema": {"type": "integer", "minimum": 0},
}


def _with_tensors(schema: dict[str, str]) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"application/json": {"schema": schema}, "application/octet-stream": binary}


def _v2(
    name: str,
    summary: str,
    parameters: Sequence[Any] = (),
    statuses: tuple[int, ...] = (401, 429, 503),
    reply: type[BaseModel] | None = None,
    security: list[Any] | None = None,
) -> dict[str, Any]:
    schema: dict[str, Any] = {} if reply is None else _ref(reply)
    return {
        "operationId": f"v2_{name}",
        "summary": summary,
        "parameters": list(parameters),
        "responses": {
            "200": {"description": summary, "content": {"application/json": {"schema": schema}}},
            **_errors(statuses, schemas.ProtocolError),
        },
        **({} if security is None else {"security": security}),
    }


def _get(
    name: str,
    summary: str,
    reply: type[BaseModel],
    parameters: list[Any],
    statuses: tuple[int, ...] = (401, 404, 422, 429, 503),
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": summary, "content": {"application/json": {"schema": _ref(reply)}}},
            **_errors(statuses),
        },
    }


def _plain(
    name: str, summary: str, statuses: tuple[int, ...] = (), security: list[Any] | None = None
) -> dict[str, Any]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": text}, **_errors(statuses)},
        **({} if security is None else {"security": security}),
    }


def _query(name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": _NEURON_PARAMETERS.get(name, _BOUND)}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def _errors(statuses: tuple[int, ...], body: type[BaseModel] = schemas.ErrorReply) -> dict[str, Any]:
    classes = {
        error.status: error.code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.TwinError)
    }
    described: dict[str, Any] = {}
    for status in statuses:
        described[str(status)] = {
            "description": classes[status],
            "content": {"application/json": {"schema": _ref(body)}},
        }
        if status == 401:
            described[str(status)]["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
        if status in (429, 503):
            described[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return described


if __name__ == "__main__":
    print(json.dumps(document(), indent=2, sort_keys=True))
