"""The ASGI application: a route for each endpoint, and errors as replies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.codecs.response import json_response
from server.api.endpoints.dispatch import error_response
from server.api.endpoints.table import ENDPOINTS, Handler
from server.api.openapi import document
from server.errors import MalformedBody, MethodNotAllowed, NotFound, TwinError, brief
from server.serving.context import Context

__all__ = ["create_app"]


def create_app(context: Context) -> Starlette:
    """The application; `server/service.py` mounts it, below the middleware."""
    routes = [
        Route(endpoint.path, _route(endpoint.label or endpoint.path, endpoint.handler), methods=[endpoint.method])
        for endpoint in ENDPOINTS
        if endpoint.handler is not None
    ]
    app = Starlette(
        routes=[*routes, Route("/docs.json", _route("/docs.json", _docs))],
        exception_handlers={
            TwinError: _on_error,
            HTTPException: _on_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_error,
        },
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return app


def _route(label: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Calls the handler with the server's context, and labels the request for the metrics."""

    async def endpoint(request: Request) -> Response:
        request.state.route = label
        return await handler(request, request.app.state.context)

    return endpoint


async def _docs(request: Request, context: Context) -> Response:
    public_url = context.settings.public_url
    return json_response(document() | ({"servers": [{"url": public_url}]} if public_url else {}))


async def _on_error(request: Request, error: Exception) -> Response:
    headers = {}
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        error = _translated(request, error)
    elif not isinstance(error, TwinError):
        error = TwinError("the server failed on this request", hint="Its log has the request_id.")
    response = error_response(error, request.state.request_id, request.url.path)
    response.headers.update(headers)
    return response


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for the metrics; the client has disconnected


def _translated(request: Request, error: HTTPException) -> TwinError:
    path = brief(request.url.path)
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "another method").split(", ")))
        return MethodNotAllowed(f"{path} does not have this method", got=brief(request.method), expected=allowed)
    if error.status_code == 404:
        return NotFound("there is no such route", got=path, expected="/predict, /mice, ...", hint="See /docs.json.")
    return MalformedBody(brief(error.detail))
