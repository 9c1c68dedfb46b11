"""A gRPC call as a request to the application, in this process: metadata as headers, the status as a status."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import grpc
import orjson

from server.errors import TwinError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

__all__ = ["CODES", "Call", "Reply", "refused"]

CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    431: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # any other: INTERNAL
_PASSED_ON = ("authorization", "x-request-id", "x-request-timeout", "v1t-priority")
_SHOWN = 2000  # characters of a status message: clients limit the size of trailing metadata
_HINTS = {"POST /v2/repository/index": "RepositoryIndex", "header Authorization:": "metadata authorization:"}


@dataclass(frozen=True)
class Reply:
    """What the application replied."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def check(self) -> bytes:
        """The body of a reply that is not an error."""
        if self.status != 200:
            raise Refusal(self)
        return self.body


class Refusal(Exception):
    """A reply that is an error; ends the call."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.code = CODES.get(reply.status, grpc.StatusCode.INTERNAL)
        text = str(orjson.loads(reply.body)["error"])
        for words, ours in _HINTS.items():
            text = text.replace(words, ours)
        self.text = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
        kept = ("x-request-id", "retry-after")
        self.trailers = tuple((name, reply.headers[name]) for name in kept if name in reply.headers)


def refused(error: TwinError) -> Refusal:
    """The refusal of a request that the application did not see."""
    headers = {} if error.retry_after is None else {"retry-after": str(max(1, round(error.retry_after)))}
    return Refusal(Reply(error.status, headers, orjson.dumps({"error": str(error)})))


class Call:
    """One call, from which any number of requests can be made."""

    def __init__(self, app: ASGIApp, call: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._app = app
        self._call = call
        given = {name: value for name, value in call.invocation_metadata() or () if isinstance(value, str)}
        self._headers = {name: given[name] for name in _PASSED_ON if name in given}
        kind, _, address = call.peer().partition(":")  # ipv4:127.0.0.1:50123, ipv6:%5B::1%5D:50123, unix:
        self._client = (kind if kind == "unix" else unquote(address).rpartition(":")[0].strip("[]"), 0)

    @property
    def authorization(self) -> str | None:
        return self._headers.get("authorization")

    async def ask(self, method: str, path: str, body: bytes = b"", json_length: int | None = None) -> Reply:
        """The application's reply. Cancelled with the call, the request leaves the queue.

        Args:
            json_length: bytes of the JSON, where tensors follow it.
        """
        headers = {**self._headers, "content-length": str(len(body))}
        if json_length is not None:
            headers["inference-header-content-length"] = str(json_length)
        if (left := self._call.time_remaining()) is not None:
            headers["x-request-timeout"] = f"{max(left, 0.001):.6f}"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "2",
            "method": method,
            "scheme": "grpc",
            "path": path,
            "raw_path": quote(path).encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()],
            "client": self._client,
            "server": None,
            "state": {},
        }
        unread = [body]

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await asyncio.get_running_loop().create_future()  # the client goes by cancelling the call
            raise AssertionError

        status, replied, parts = 500, {}, []

        async def send(sent: Message) -> None:
            nonlocal status, replied
            if sent["type"] == "http.response.start":
                status = sent["status"]
                replied = {name.decode("latin-1"): value.decode("latin-1") for name, value in sent["headers"]}
            else:
                parts.append(sent.get("body", b""))

        await self._app(scope, receive, send)
        if "x-request-id" in replied:
            self._call.set_trailing_metadata((("x-request-id", replied["x-request-id"]),))
        return Reply(status, replied, b"".join(parts))
