"""CORS: the web pages of other origins that may ask this server from a browser, as V1T_CORS_ORIGINS names them."""

from __future__ import annotations

from typing import Any

from server.settings import Settings

__all__ = ["cors_options"]

_SENT = (
    "Accept",
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "Inference-Header-Content-Length",
    "V1T-Priority",
    "X-Request-Id",
    "X-Request-Timeout",
)
_READ = ("Inference-Header-Content-Length", "Retry-After", "V1T-Reply", "X-Request-Id")


def cors_options(settings: Settings) -> dict[str, Any] | None:
    """Options of Starlette's `CORSMiddleware`; None where no page of another origin may ask.

    It stands before the request middleware, as a preflight request has no key. Keys travel in Authorization, which a
    page has to know and set, and never in cookies: credentials stay off.
    """
    if not settings.cors_origins:
        return None
    return {
        "allow_origins": settings.cors_origins,
        "allow_methods": ("GET", "POST"),
        "allow_headers": _SENT,
        "expose_headers": _READ,
    }
