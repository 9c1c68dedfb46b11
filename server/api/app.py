"""The ASGI application: finds the endpoint of a request and calls its handler; errors become replies."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.datastructures import State
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from server.api.codecs.response import json_response
from server.api.endpoints.dispatch import error_response
from server.api.endpoints.table import ENDPOINTS, Handler
from server.api.openapi import document
from server.errors import MethodNotAllowed, NotFound, TwinError, brief
from server.serving.context import Context

__all__ = ["App", "Route", "create_app"]


@dataclass(frozen=True)
class Route:
    """The handlers of one path.

    Attributes:
        path: may have parameters, such as `/mice/{mouse}`.
        handlers: by method, each with the request's label in the metrics.
    """

    path: str
    pattern: re.Pattern[str]
    handlers: dict[str, tuple[str, Handler]]


class App:
    """Not a Starlette application: its layers take as long for a small request as the handler itself."""

    def __init__(self, context: Context, routes: list[Route]) -> None:
        self.state = State()  # what handlers share
        self.routes = routes
        self._context = context
        self._by_path = {route.path: route for route in routes if not route.pattern.groups}
        self._with_parameters = [route for route in routes if route.pattern.groups]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        headers: dict[str, str] = {}
        try:
            label, handler = self._handler(scope, headers)
            scope["state"]["route"] = label
            response = await handler(Request(scope, receive, send), self._context)
        except TwinError as error:
            response = error_response(error, scope["state"]["request_id"], scope["path"])
            response.headers.update(headers)
        except ClientDisconnect:
            response = Response(status_code=499)  # for the metrics; the client has disconnected
        await response(scope, receive, send)

    def _handler(self, scope: Scope, headers: dict[str, str]) -> tuple[str, Handler]:
        """The handler and its label; sets the path's parameters, and the headers of a refusal."""
        path, method = scope["path"], scope["method"]
        route = self._by_path.get(path)
        if route is None:
            for route in self._with_parameters:
                if (found := route.pattern.fullmatch(path)) is not None:
                    scope["path_params"] = found.groupdict()
                    break
            else:
                expected, hint = "/predict, /mice, ...", "See /docs.json."
                raise NotFound("there is no such route", got=brief(path), expected=expected, hint=hint)
        if (handler := route.handlers.get(method)) is None:
            headers["Allow"] = allowed = ", ".join(sorted(route.handlers))
            raise MethodNotAllowed(f"{brief(path)} does not have this method", got=brief(method), expected=allowed)
        return handler


def create_app(context: Context) -> App:
    """The application; `server/service.py` puts it below the middleware."""
    handlers: dict[str, dict[str, tuple[str, Handler]]] = {"/docs.json": _handlers("GET", "/docs.json", _docs)}
    for one in ENDPOINTS:
        if one.handler is not None:
            handlers.setdefault(one.path, {}).update(_handlers(one.method, one.label or one.path, one.handler))
    return App(context, [Route(path, compile_path(path)[0], of_path) for path, of_path in handlers.items()])


def _handlers(method: str, label: str, handler: Handler) -> dict[str, tuple[str, Handler]]:
    return dict.fromkeys(("GET", "HEAD") if method == "GET" else (method,), (label, handler))


async def _docs(request: Request, context: Context) -> Response:
    public_url = context.settings.public_url
    return json_response(document() | ({"servers": [{"url": public_url}]} if public_url else {}))
