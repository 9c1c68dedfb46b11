"""The OpenAPI document: equal to the committed one, and consistent with the routes that are served."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from support.in_process import cpu_settings, serving
from support.tiny_bundle import write_tiny_bundle

from server.api.app import create_app
from server.api.codecs import schemas
from server.api.openapi import document
from server.bundle import manifest
from server.serving.context import Context
from server.settings import Settings

KEY = "an-admin-key-of-the-lab"
SNAPSHOT = Path(__file__).with_name("openapi.json")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    write_tiny_bundle(tmp_path / "tiny")
    settings = cpu_settings(tmp_path, admin_keys=(KEY,))
    async with serving(settings, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, verb, operation) for path, verbs in document()["paths"].items() for verb, operation in verbs.items()]


def test_the_document_is_the_one_that_was_committed() -> None:
    assert json.loads(json.dumps(document())) == json.loads(SNAPSHOT.read_text()), (
        "the HTTP interface changed; if that was meant: python -m server.api.openapi > tests/server/api/openapi.json"
    )


def test_every_reference_resolves_and_every_type_is_used() -> None:
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document())))
    assert references == document()["components"]["schemas"].keys()


def test_every_type_of_the_document_is_one_of_ours() -> None:
    named = vars(schemas) | vars(manifest)
    types = {name for name, value in named.items() if isinstance(value, type) and issubclass(value, BaseModel)}
    assert document()["components"]["schemas"].keys() <= types


def test_operations_have_unique_names_and_describe_their_path_parameters() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)
    for path, _, operation in operations():
        named = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), path


def test_every_route_is_described() -> None:
    routes = create_app(Context.open(Settings())).routes
    served = {(route.path, verb.lower()) for route in routes for verb in route.handlers if verb != "HEAD"}
    described = {(path, verb) for path, verb, _ in operations()}
    assert served - described == {(path, "get") for path in ("/", "/docs", "/docs.json", "/explorer/{path:path}")}
    assert described - served == {("/livez", "get"), ("/readyz", "get")}  # BentoML's


async def test_every_described_route_is_served(client: httpx.AsyncClient) -> None:
    served = (await client.get("/docs.json")).json()
    assert served == json.loads(json.dumps(document()))
    for path, verb, operation in operations():
        url = path.replace("{mouse}", "A").replace("{model}", "tiny.A").replace("{version}", "1")
        response = await client.request(verb.upper(), url)
        assert str(response.status_code) in operation["responses"], path
        assert response.status_code in (200, 400, 415, 422), path
        content = operation["responses"]["200"]["content"].get("application/json", {"schema": {}})
        if response.is_success and (reference := content["schema"].get("$ref")):
            getattr(schemas, reference.rpartition("/")[2]).model_validate_json(response.content)


async def test_errors_are_those_of_the_document(client: httpx.AsyncClient) -> None:
    for path, model in (("/mice/Z", schemas.ErrorReply), ("/v2/models/Z", schemas.ProtocolError)):
        response = await client.get(path)
        assert response.status_code == 404
        model.model_validate_json(response.content)
