"""The OpenAPI document, made from the table of endpoints. `python -m server.api.openapi` prints it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server import errors
from server.api.codecs.query import NoQuery
from server.api.codecs.schemas import API_VERSION
from server.api.endpoints.table import ENDPOINTS, BodyType, Endpoint

__all__ = ["document"]

_REF = "#/components/schemas/{model}"
_BYTES = {"type": "string", "format": "binary"}
_PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "mouse": {"schema": {"type": "string"}},
    "model": {"description": "a bundle's name, a dot and a mouse's", "schema": {"type": "string"}},
    "version": {"schema": {"type": "string", "pattern": "^[0-9]+$"}},
}
_HEADER_LENGTH = "Inference-Header-Content-Length"
_REPLY_HEADERS: dict[str, dict[str, Any]] = {
    "V1T-Reply": {
        "V1T-Reply": {
            "description": "with application/x-npy: everything else of the JSON reply, as ASCII JSON; neuron_ids are "
            "those that were asked for, or all in the order of /mice/{mouse}/neurons",
            "schema": {"type": "string"},
        },
        "X-Request-Id": {"schema": {"type": "string"}},
    },
    _HEADER_LENGTH: {_HEADER_LENGTH: {"schema": {"type": "integer", "minimum": 0}}},
}
_SECURITY: dict[str, dict[str, Any]] = {"api": {}, "admin": {"security": [{"admin": []}]}, "none": {"security": []}}


@cache
def document() -> dict[str, Any]:
    """The document, as served at /docs.json."""
    documented = [endpoint for endpoint in ENDPOINTS if endpoint.name is not None]
    models = {model for endpoint in documented for model in _models(endpoint)}
    in_order = sorted(models, key=lambda model: model.__name__)
    _, definitions = models_json_schema([(model, "validation") for model in in_order], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in documented:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Digital twins of mouse visual cortex",
            "version": API_VERSION,
            "description": "What would these neurons do, shown this image, with this pupil and this speed?",
        },
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "where the server was given API keys"},
                "admin": {"type": "http", "scheme": "bearer", "description": "one of V1T_ADMIN_KEYS"},
            },
        },
    }


def _models(endpoint: Endpoint) -> set[type[BaseModel]]:
    """The types that the document defines for the endpoint."""
    bodies = [
        *(endpoint.request or {}).values(),
        *(body for types in (endpoint.reply or {}).values() for body in types),
    ]
    return {endpoint.errors, *(body for body in bodies if body is not None)}


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    reply: dict[str, Any] = {
        "description": endpoint.described or endpoint.summary,
        "content": {media_type: {"schema": _one_of(types)} for media_type, types in (endpoint.reply or {}).items()}
        or {"text/plain": {"schema": {"type": "string"}}},
    }
    if endpoint.reply_headers is not None:
        reply["headers"] = _REPLY_HEADERS[endpoint.reply_headers]
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": {"200": reply, **_errors(endpoint)},
        **_SECURITY[endpoint.key],
    }
    if endpoint.request is not None:
        content = {media_type: {"schema": _one_of([body])} for media_type, body in endpoint.request.items()}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    parameters = [
        {"name": name, "in": "path", "required": True, **_PATH_PARAMETERS[name]}
        for name in re.findall(r"{(\w+)}", endpoint.path)
    ]
    parameters += _query_parameters(endpoint.query)
    if endpoint.timeout is not None:
        parameters.append(_header("X-Request-Timeout", endpoint.timeout, {"type": "number", "exclusiveMinimum": 0}))
        priorities = {"type": "string", "enum": ["interactive", "bulk"], "default": "interactive"}
        parameters.append(_header("V1T-Priority", "bulk: to be answered after interactive requests", priorities))
    if endpoint.reply_headers == _HEADER_LENGTH:
        description = "the bytes of the JSON, where binary tensors follow it"
        parameters.append(_header(_HEADER_LENGTH, description, {"type": "integer", "minimum": 0}))
    return parameters


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _query_parameters(query: type[NoQuery]) -> list[dict[str, Any]]:
    parameters = []
    for name, documented in query.model_json_schema().get("properties", {}).items():
        left_out = {"title", "anyOf"} | {key for key, value in documented.items() if value is None}
        schema = {key: value for key, value in documented.items() if key not in left_out}
        for variant in documented.get("anyOf", ()):
            schema |= variant if variant != {"type": "null"} else {}
        parameters.append({"name": name, "in": "query", "required": False, "schema": schema})
    return parameters


def _one_of(types: Sequence[BodyType]) -> dict[str, Any]:
    """The schema of a body: of any of these types; none of them: any JSON."""
    schemas = [_BYTES if body is None else {"$ref": _REF.format(model=body.__name__)} for body in types]
    return {"anyOf": schemas} if len(schemas) > 1 else (schemas or [{}])[0]


def _errors(endpoint: Endpoint) -> dict[str, Any]:
    codes: dict[int, list[str]] = {}
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.TwinError):
            codes.setdefault(error.status, []).append(error.code)
    headers = {
        401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
        429: {"Retry-After": {"schema": {"type": "integer"}}},
        503: {"Retry-After": {"schema": {"type": "integer"}}},
    }
    content = {"application/json": {"schema": _one_of([endpoint.errors])}}
    return {
        str(status): {
            "description": " or ".join(codes[status]),
            "content": content,
            **({"headers": headers[status]} if status in headers else {}),
        }
        for status in endpoint.statuses
    }


if __name__ == "__main__":
    print(json.dumps(document(), indent=2, sort_keys=True))
