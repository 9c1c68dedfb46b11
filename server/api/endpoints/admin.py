"""POST /admin/reload. The middleware checks the admin key of every path under /admin."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from server.api.codecs import schemas
from server.api.codecs.response import JSON
from server.errors import Refused
from server.serving.context import Context

if TYPE_CHECKING:
    from server.serving.repository import Bundle

__all__ = ["reload"]


async def reload(request: Request, context: Context) -> Response:
    """Loads the bundles on disk as they are now. A bundle that cannot be served is reported and changes nothing."""
    # The reload completes even if the client disconnects or times out; the log has its outcome.
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
