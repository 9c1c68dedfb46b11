"""One HTTP connection: uvicorn's, with bounds on the size and the time of heads, bodies and replies.

They hold before the application sees a request, and so before any key is checked. A client that exceeds one of them
gets a reply that says so, unless another one has begun, and its connection is closed.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Protocol

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import Busy, HeadTooLarge, MalformedBody, RequestTimeout, TwinError
from server.serving.limits.connections import Connections

__all__ = ["Connection", "Held"]

MAX_HEAD = 32 * 1024  # bytes of a request's line and header fields, or of a chunked body between two parts of it
MAX_FIELDS = 100
MAX_PIPELINED = 16  # requests that wait for the replies to earlier ones of the connection
HEAD_SECONDS = 10.0  # for a head, from its first byte
BODY_SECONDS = 10.0  # over each of which a body must keep MIN_RATE
REPLY_SECONDS = 20.0  # the same, for a client that reads a reply
MIN_RATE = 4096  # bytes a second
LINGER = 2.0  # seconds to discard what a refused client still sends, so that it reads the reply


class Held(Protocol):
    """What a reply takes up until its client has read it."""

    def release(self) -> None: ...


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, bounded.

    Args:
        connections: all of this process.
        of_uvicorn: what uvicorn gives its own protocol.
    """

    def __init__(self, *, connections: Connections, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self.ws_protocol_class = None  # no route speaks WebSocket, and its connections would escape the bounds
        self._connections = connections
        self.is_admitted = True  # otherwise requests on it are refused: there are too many connections
        self.since = time.monotonic()  # of the state that the connection is in
        self._in_head = self._in_body = self._is_refused = False
        self._refusal: TwinError | None = None  # raised in the parser
        self._head_size = self._n_fields = 0
        self._silent = 0  # bytes received since the last ones that were of a body
        self._read, self._read_since = 0, 0.0  # bytes of the body since then
        self._unsent, self._unsent_since = 0, 0.0  # bytes of the reply that were unsent then; 0: none
        self._held: list[Held] = []

    @property
    def is_busy(self) -> bool:
        """Whether a request is in progress, or its reply not sent."""
        if self._in_body or (self.cycle is not None and not self.cycle.response_complete):
            return True
        return bool(self.transport.get_write_buffer_size())

    def hold(self, reply: Held) -> None:
        """Releases the reply once it is sent, or the connection lost."""
        if self.parser is None or not self.transport.get_write_buffer_size():
            reply.release()
        else:
            self._held.append(reply)

    def end(self, reason: str) -> None:
        """Closes the connection at once."""
        self._connections.count(reason)
        self._abort()

    def look(self, now: float) -> None:
        """Closes the connection if its client is too slow; to be called now and then."""
        if self._is_refused:
            if now - self.since > LINGER:
                self._abort()
            return
        self._look_at_reply(now)
        if self.flow.read_paused or (self.cycle is not None and self.cycle.waiting_for_100_continue):
            self._read, self._read_since = 0, now  # the client waits for the server
        elif self._in_body:
            self._look_at_body(now)
        elif (self._in_head or not self.is_busy) and now - self.since > HEAD_SECONDS:
            if self._head_size:
                self._refuse(
                    RequestTimeout("the request's head did not arrive", expected=f"all of it in {HEAD_SECONDS:g} s")
                )
            else:
                self.end("idle")

    def _look_at_body(self, now: float) -> None:
        if now - self._read_since <= BODY_SECONDS:
            return
        if self._read < MIN_RATE * BODY_SECONDS or self.cycle.response_complete:
            got, expected = f"{self._read} bytes in {BODY_SECONDS:g} s", f"at least {MIN_RATE} bytes per second"
            self._refuse(RequestTimeout("the body arrives too slowly", got=got, expected=expected))
        self._read, self._read_since = 0, now

    def _look_at_reply(self, now: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            self._unsent = 0
            self._release()
        elif not self._unsent:
            self._unsent, self._unsent_since = unsent, now
        elif now - self._unsent_since > REPLY_SECONDS:
            if self._unsent - unsent < MIN_RATE * REPLY_SECONDS:
                self.end("unread_reply")
            self._unsent, self._unsent_since = unsent, now

    def _release(self) -> None:
        held, self._held = self._held, []
        for reply in held:
            reply.release()

    # What the event loop calls

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.is_admitted = self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._release()

    def data_received(self, data: bytes) -> None:
        while data and not self._is_refused and self.parser is not None:
            part = data
            if not self._in_body:  # the parser never holds more of a head than is allowed
                part = data[: MAX_HEAD + 1 - self._head_size]
                self._head_size += len(part)
            self._silent += len(part)
            super().data_received(part)
            if not self._is_refused and max(self._head_size, self._silent) > MAX_HEAD:
                self._refuse(_head_too_large(f"more than {MAX_HEAD} bytes"))
            data = data[len(part) :]

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent = 0  # another period begins

    # What the parser calls

    def on_message_begin(self) -> None:
        self._in_head, self._n_fields, self.since = True, 0, time.monotonic()
        super().on_message_begin()
        self.scope["state"]["connection"] = self

    def on_header(self, name: bytes, value: bytes) -> None:
        self._n_fields += 1
        if self._n_fields > MAX_FIELDS:
            raise self._refusing(_head_too_large(f"more than {MAX_FIELDS} header fields"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._head_size = self._silent = 0
        self._read, self._read_since = 0, time.monotonic()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise self._refusing(Busy("too many requests are pipelined", expected=f"at most {MAX_PIPELINED}"))
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        self._read += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._head_size = self._silent = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.since = time.monotonic()
        super().on_response_complete()

    def _refusing(self, error: TwinError) -> TwinError:
        self._refusal = error  # the parser raises an error of its own, and uvicorn calls send_400_response
        return error

    # Refusals

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or MalformedBody("the request is not valid HTTP/1.1"))

    def _unsupported_upgrade_warning(self) -> None:
        """Logs nothing: an upgrade is ignored, as HTTP allows."""

    def _refuse(self, error: TwinError) -> None:
        """Replies to the request that is being received, and closes the connection."""
        self._is_refused, self.since = True, time.monotonic()
        self._connections.count(error.code)
        self._unset_keepalive_if_required()
        cycle = self.cycle
        in_progress = cycle is not None and not cycle.response_complete
        of_this = in_progress and self._in_body and not self.pipeline  # the reply that is awaited is this one's
        if self.transport.is_closing() or (cycle.response_started or not of_this if in_progress else self._in_body):
            self._abort()
            return
        self.transport.write(_reply(error))
        self._disconnect()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _abort(self) -> None:
        self._disconnect()
        self.transport.abort()

    def _disconnect(self) -> None:
        """Tells the application that its request's client is no longer there."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()


def _head_too_large(got: str) -> HeadTooLarge:
    return HeadTooLarge(
        "the request's head is too large",
        got=got,
        expected=f"at most {MAX_HEAD} bytes and {MAX_FIELDS} header fields",
        hint="Send what is long in the body.",
    )


def _reply(error: TwinError) -> bytes:
    body = orjson.dumps({**error.body(), "request_id": uuid.uuid4().hex})
    head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
    if error.retry_after is not None:
        head += f"retry-after: {error.retry_after:.0f}\r\n"
    return STATUS_LINE[error.status] + head.encode() + b"x-content-type-options: nosniff\r\n\r\n" + body
