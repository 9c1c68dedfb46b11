"""The OpenAPI document: the routes, and the types of `server/schemas.py`."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server import errors, schemas
from server.neurons import PARAMETERS

__all__ = ["API_VERSION", "document"]

API_VERSION = "1.0.0"

_REF = "#/components/schemas/{model}"
_MODELS: tuple[type[BaseModel], ...] = (
    schemas.PredictRequest,
    schemas.PredictForm,
    schemas.PredictReply,
    schemas.MiceReply,
    schemas.MouseDetail,
    schemas.NeuronsReply,
    schemas.ErrorReply,
)
_NEURON_PARAMETERS: dict[str, dict[str, Any]] = {
    "score": {"type": "string", "default": "single_trial_correlation"},
    "score_min": {"type": "number", "description": "of that score"},
    "limit": {"type": "integer", "minimum": 0},
    "offset": {"type": "integer", "minimum": 0, "default": 0},
    "model": {"type": "string", "description": "the bundle's name, where several hold this mouse"},
}
_BOUND = {"type": "number", "description": "cortical position in um; neurons without one do not match"}
_MOUSE = {"name": "mouse", "in": "path", "required": True, "schema": {"type": "string"}}


@cache
def document() -> dict[str, Any]:
    """The document, as served at /docs.json."""
    _, definitions = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Digital twins of mouse visual cortex",
            "version": API_VERSION,
            "description": "What would these neurons do, shown this image, with this pupil and this speed?",
        },
        "paths": {
            "/predict": {"post": _predict()},
            "/mice": {"get": _get("mice", "Every mouse that can be asked", schemas.MiceReply, [], (503,))},
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
            "/livez": {"get": _plain("livez", "200 while the process runs")},
            "/readyz": {"get": _plain("readyz", "200 once every bundle is loaded and warm", (503,))},
            "/metrics": {"get": _plain("metrics", "Prometheus metrics")},
        },
        "components": {"schemas": definitions["$defs"]},
    }


def _predict() -> dict[str, Any]:
    return {
        "operationId": "predict",
        "summary": "The responses of a mouse's neurons to images",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref(schemas.PredictRequest)},
                "multipart/form-data": {"schema": _ref(schemas.PredictForm)},
            },
        },
        "responses": {
            "200": {
                "description": "JSON, or with `Accept: application/x-npy` an array (B, n), with spread (2, B, n)",
                "headers": {
                    "V1T-Reply": {
                        "description": "with application/x-npy: everything else of the JSON reply, as ASCII JSON; "
                        "neuron_ids only where they were asked for",
                        "schema": {"type": "string"},
                    },
                    "X-Request-Id": {"schema": {"type": "string"}},
                },
                "content": {
                    "application/json": {"schema": _ref(schemas.PredictReply)},
                    "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            **_errors((400, 404, 406, 413, 415, 422, 429, 503, 504)),
        },
    }


def _get(
    name: str, summary: str, reply: type[BaseModel], parameters: list[Any], statuses: tuple[int, ...] = (404, 422, 503)
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


def _plain(name: str, summary: str, statuses: tuple[int, ...] = ()) -> dict[str, Any]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": text}, **_errors(statuses)},
    }


def _query(name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": _NEURON_PARAMETERS.get(name, _BOUND)}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def _errors(statuses: tuple[int, ...]) -> dict[str, Any]:
    classes = {
        error.status: error.code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.TwinError)
    }
    described: dict[str, Any] = {}
    for status in statuses:
        described[str(status)] = {
            "description": classes[status],
            "content": {"application/json": {"schema": _ref(schemas.ErrorReply)}},
        }
        if status in (429, 503):
            described[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return described
