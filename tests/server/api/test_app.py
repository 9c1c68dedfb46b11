"""The application's dispatch, compared with Starlette's router."""

from __future__ import annotations

import asyncio
import gc
import itertools
from types import FrameType

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support.in_process import cpu_settings, serving
from support.tiny_bundle import TinyTwin

from server.api.app import App, create_app
from server.api.endpoints.table import ENDPOINTS
from server.errors import TwinError
from server.serving.context import Context
from server.settings import Settings


@pytest.fixture(scope="module")
def app() -> App:
    return create_app(Context.open(Settings()))


@pytest.fixture(scope="module")
def reference() -> Starlette:
    """Answers with the label, and the path's parameters."""

    def route(path: str, label: str, method: str) -> Route:
        async def answer(request: Request) -> Response:
            return Response(repr((label, request.path_params)))

        return Route(path, answer, methods=[method])

    served = [(one.path, one.label or one.path, one.method) for one in ENDPOINTS if one.handler is not None]
    starlette = Starlette(routes=[route(*one) for one in [*served, ("/docs.json", "/docs.json", "GET")]])
    starlette.router.redirect_slashes = False
    return starlette


PARTS = {"{mouse}": "A.1", "{model}": "tiny.A", "{version}": "2", "{path:path}": "api/twin.js"}


def paths() -> list[str]:
    real = {one.path for one in ENDPOINTS if one.handler is not None} | {"/docs.json"}
    for name, value in PARTS.items():
        real = {path.replace(name, value) for path in real}
    longer = {f"{path}{more}" for path in real - {"/"} for more in ("/", "/x")}
    return sorted(real | longer | {"/x", "/livez", "/explorer"})


async def test_every_path_and_method_is_dispatched_as_by_starlette(app: App, reference: Starlette) -> None:
    statuses = set()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(reference), base_url="http://localhost") as client:
        for path, method in itertools.product(paths(), ("GET", "HEAD", "POST", "PUT", "OPTIONS")):
            expected = await client.request(method, path)
            scope = {"path": path, "method": method}
            headers: dict[str, str] = {}
            statuses.add(expected.status_code)
            if expected.status_code == 200:
                label, _ = app._handler(scope, headers)
                assert expected.text == repr((label, scope.get("path_params", {}))) or method == "HEAD", path
                continue
            with pytest.raises(TwinError) as refused:
                app._handler(scope, headers)
            assert refused.value.status == expected.status_code, (method, path)
            allowed = expected.headers.get("allow", "").split(", ")
            assert set(headers.get("Allow", "").split(", ")) >= set(allowed), (method, path)
    assert statuses == {200, 404, 405}


async def test_a_refused_body_is_freed_without_the_garbage_collector(twin: TinyTwin) -> None:
    body, headers = b"[" + b"[]," * 300_000 + b"[]]", {"content-type": "application/json"}
    async with serving(cpu_settings(twin.folder)) as client:
        assert (await client.post("/predict", content=body, headers=headers)).status_code == 413
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await client.post("/predict", content=body, headers=headers)
            await asyncio.sleep(0.05)
            gc.collect()
            frames = [one for one in gc.garbage if isinstance(one, FrameType)]
            values = [(frame.f_code.co_qualname, value) for frame in frames for value in frame.f_locals.values()]
            held = [name for name, value in values if isinstance(value, bytes) and value == body]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert held == []
