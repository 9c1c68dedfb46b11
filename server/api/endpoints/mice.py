"""GET /mice, /mice/{mouse} and /mice/{mouse}/neurons: what can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from server.api.codecs.query import MouseQuery, NeuronQuery, NoQuery, read_query
from server.api.codecs.response import describe, json_response, summarize
from server.serving.context import Context
from server.serving.telemetry.metrics import UNKNOWN

if TYPE_CHECKING:
    from server.serving.repository import Bundle

__all__ = ["mice", "mouse", "neurons"]

Q = TypeVar("Q", bound=MouseQuery)


async def mice(request: Request, context: Context) -> Response:
    """Every mouse of the newest version of every model."""
    read_query(request, NoQuery)
    return json_response({"mice": [summarize(bundle, record) for bundle, record in context.repository.records()]})


async def mouse(request: Request, context: Context) -> Response:
    """One mouse and its training statistics."""
    bundle, mouse_id, _ = _look_up(request, context, MouseQuery)
    return json_response(describe(bundle, bundle.manifest.mice[mouse_id]))


async def neurons(request: Request, context: Context) -> Response:
    """The neurons of a mouse that match the query."""
    bundle, mouse_id, query = _look_up(request, context, NeuronQuery)
    columns = query.columns(bundle.neurons[mouse_id])
    return json_response({"mouse": mouse_id, "model": bundle.name, "hash": bundle.hash, **columns})


def _look_up(request: Request, context: Context, model: type[Q]) -> tuple[Bundle, str, Q]:
    request.state.mouse = UNKNOWN
    mouse_id, query = request.path_params["mouse"], read_query(request, model)
    bundle = context.repository.look_up(mouse_id, query.model)
    request.state.mouse = mouse_id
    return bundle, mouse_id, query
