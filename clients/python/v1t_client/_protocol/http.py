"""What both clients tell httpx: about the server once, and about each request."""

from __future__ import annotations

from typing import Any

import httpx

from v1t_client._errors import InvalidArgument
from v1t_client._protocol.operations import Send
from v1t_client._version import __version__

__all__ = ["CONNECT_TIMEOUT", "http_options", "send_options"]

CONNECT_TIMEOUT = 10.0  # seconds; a machine that is there answers a connection at once


def http_options(url: str, api_key: str | None) -> dict[str, Any]:
    """Options that both of httpx's clients take."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidArgument("url is no web address", got=repr(url), expected="such as 'http://127.0.0.1:3000'")
    headers = {"User-Agent": f"v1t-client/{__version__}"}
    if api_key is not None:
        if not api_key or not api_key.isascii() or not api_key.isprintable():
            raise InvalidArgument("api_key is empty or has characters that a header cannot carry")
        headers["Authorization"] = f"Bearer {api_key}"
    return {
        "base_url": parsed,
        "headers": headers,
        # Proxies from the environment are for the world outside, never for this machine.
        "trust_env": parsed.host not in ("localhost", "127.0.0.1", "::1"),
    }


def send_options(step: Send) -> dict[str, Any]:
    """Arguments of httpx's `request` for one step."""
    call = step.call
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.params) or None,
        "data": dict(call.form) or None,
        "files": [("image", tuple(part)) for part in call.images] or None,
        "headers": {"Accept": call.accept},
        "timeout": httpx.Timeout(step.timeout, connect=min(step.timeout, CONNECT_TIMEOUT)),
    }
