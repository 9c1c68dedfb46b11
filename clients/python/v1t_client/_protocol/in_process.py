"""A transport to a server in this process, in place of the network.

The server is an object that the entry point `v1t_client.in_process` makes of a bundle. It has two methods:
`begin(method, target, headers, body)` starts an exchange, and `close()` frees everything. An exchange has
`head(timeout)`, which waits for status and headers, `read(timeout)`, which waits for the next part of the body (b"" at
the end), and `close()`. They raise TimeoutError, or RuntimeError where the server is closed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from v1t_client._errors import V1TError
from v1t_client._http_library import httpx
from v1t_client._protocol.deadline import time_left

__all__ = ["URL", "InProcessTransport"]

URL = "http://in-process.localhost"  # names this transport in errors; nothing listens there


class InProcessTransport(httpx.BaseTransport):
    """Hands requests to a server in this process, which is to be closed after the client."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        timeout = request.extensions.get("timeout", {}).get("read")
        with _translated():
            target, headers = request.url.raw_path, request.headers.raw
            exchange = self._server.begin(request.method, target, headers, request.read())
        try:
            with _translated():
                status, headers = exchange.head(time_left(timeout, httpx.ReadTimeout))
        except BaseException:  # also a KeyboardInterrupt: what nobody waits for is not computed
            exchange.close()
            raise
        return httpx.Response(status, headers=headers, stream=_Body(exchange, timeout))


class _Body(httpx.SyncByteStream):
    def __init__(self, exchange: Any, timeout: float | None) -> None:
        self._exchange, self._timeout = exchange, timeout

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with _translated():
                part = self._exchange.read(time_left(self._timeout, httpx.ReadTimeout))
            if not part:
                return
            yield part

    def close(self) -> None:
        self._exchange.close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise httpx.ReadTimeout(str(error)) from error
    except RuntimeError as error:
        raise V1TError(str(error)) from error
