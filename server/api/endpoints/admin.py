"""The admin routes: what an operator asks of a running server. The envelope asks for an admin key before them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.codecs import schemas
from server.api.codecs.response import JSON
from server.api.endpoints.dispatch import named
from server.errors import Refused
from server.serving.context import Context

if TYPE_CHECKING:
    from server.serving.repository import Bundle

__all__ = ["routes"]


def routes() -> list[Route]:
    """The admin routes, to mount beside the others."""
    return [Route("/admin/reload", named("/admin/reload", _reload), methods=["POST"])]


async def _reload(request: Request, context: Context) -> Response:
    """Takes in the bundles on disk as they are now; a bad one is named, and changes nothing of what is served."""
    # Whoever hangs up, or runs out of time, leaves it to its end: the log says how that went.
    change = await asyncio.shield(asyncio.create_task(context.repository.load(), name="reload"))
    if change.problems:
        raise Refused(
            "what is on disk cannot all be served; what was served in its place still is",
            got="; ".join(change.problems),
            expected=f"bundles that can be served; loaded: {', '.join(map(str, change.loaded)) or 'none'}",
            hint="Export or copy what is named again, then reload again.",
        )
    reply = schemas.ReloadReply(
        loaded=[_served(bundle) for bundle in change.loaded],
        kept=[_served(bundle) for bundle in change.kept],
        removed=[_served(bundle) for bundle in change.removed],
    )
    return Response(reply.model_dump_json(), media_type=JSON)


def _served(bundle: Bundle) -> schemas.ServedBundle:
    return schemas.ServedBundle(
        name=bundle.name, version=bundle.version, hash=bundle.hash, in_memory=bundle.engine is not None
    )
