"""The service in this process, over ASGI instead of a socket: what most tests of the HTTP interface need."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from server.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # BentoML's, in its own imports
    from server.service import create_service

__all__ = ["cpu_settings", "create_service", "serving"]


def cpu_settings(*bundles: Path, **more: Any) -> Settings:
    """Settings that serve these bundles on one CPU thread."""
    return Settings(bundles=bundles, provider="cpu", threads=1, **more)


@asynccontextmanager
async def serving(
    settings: Settings, *, until_loaded: bool = True, headers: dict[str, str] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service with these settings.

    Args:
        until_loaded: wait until every bundle was loaded or refused.
        headers: of all requests.
    """
    app = create_service(settings).to_asgi()
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers) as client,
    ):
        while until_loaded and "being loaded" in (await client.get("/readyz")).text:
            await asyncio.sleep(0.005)
        yield client
