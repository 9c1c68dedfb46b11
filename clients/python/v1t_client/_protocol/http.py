"""Options of httpx that both clients use: for the connection, and for each request."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from v1t_client._errors import InvalidArgument, V1TError
from v1t_client._http_library import httpx
from v1t_client._protocol.operations import Send
from v1t_client._version import __version__

__all__ = ["CONNECT_TIMEOUT", "Priority", "cannot_send", "http_options", "send_options"]

Priority: TypeAlias = Literal["interactive", "bulk"]

CONNECT_TIMEOUT = 10.0  # seconds; a machine that is up accepts a connection at once


def http_options(url: str, api_key: str | None, priority: str) -> dict[str, Any]:
    """Options of `httpx.Client` and `httpx.AsyncClient`."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidArgument(
            "url is not an HTTP address", got=repr(url), expected="for example 'http://127.0.0.1:3000'"
        )
    headers = {"User-Agent": f"v1t-client/{__version__}"}
    if api_key is not None:
        if not isinstance(api_key, str) or not api_key or not api_key.isascii() or not api_key.isprintable():
            raise InvalidArgument("api_key is empty or has characters that a header cannot carry")
        headers["Authorization"] = f"Bearer {api_key}"
    if priority not in get_args(Priority):
        raise InvalidArgument("priority is not known", got=repr(priority), expected="'interactive' or 'bulk'")
    if priority != "interactive":
        headers["V1T-Priority"] = priority
    return {
        "base_url": parsed,
        "headers": headers,
        # A proxy from the environment is never used for this machine.
        "trust_env": parsed.host not in ("localhost", "127.0.0.1", "::1"),
    }


def send_options(step: Send) -> dict[str, Any]:
    """Arguments of httpx's `request` for one step of a flow."""
    request = step.request
    return {
        "method": request.method,
        "url": request.path,
        "params": dict(request.params) or None,
        "data": dict(request.form) or None,
        "files": [("image", tuple(part)) for part in request.images] or None,
        "headers": {"Accept": request.accept},
        "timeout": httpx.Timeout(step.timeout, connect=min(step.timeout, CONNECT_TIMEOUT)),
    }


def cannot_send(error: Exception, *, is_closed: bool) -> V1TError:
    """The error for a request that httpx did not send, for another reason than the network."""
    if is_closed:
        return V1TError("this client is closed", hint="Make a new client, and close it when you are done.")
    return V1TError(f"the request cannot be sent: {error or type(error).__name__}")
