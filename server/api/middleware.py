"""The ASGI middleware around every request: its id and key, limits on body and time, headers, metrics, the log line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.endpoints.dispatch import error_response
from server.errors import (
    InvalidInput,
    MalformedBody,
    NotReady,
    RequestTimeout,
    TooLarge,
    TwinError,
    brief,
    out_of_time,
    too_busy,
)
from server.serving.context import Context
from server.serving.jobs import Priority
from server.serving.telemetry import tracing
from server.serving.telemetry.logs import REQUEST_ID
from server.serving.telemetry.metrics import OTHER

__all__ = ["SYSTEM_ROUTES", "RequestMiddleware"]

logger = logging.getLogger("bentoml.v1t")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),  # the page has its own
    (b"cross-origin-resource-policy", b"same-origin"),
)
_RETRIABLE = frozenset({429, 503, 504})
_LEAST = 16 * 1024  # bytes that are reserved for any request
_CHUNKED = 256 * 1024  # bytes that are reserved at a time for a body of unknown length
_LINGER = 5.0  # seconds to receive the rest of a body, so that its sender reads the reply and its Retry-After
_DISCARD_PAUSE = 0.001  # seconds between two parts that are discarded, times the clients for which that is done
_ADMIN = "/admin/"  # prefix of the paths that need an admin key
SYSTEM_ROUTES = frozenset({"/livez", "/readyz", "/healthz"})  # that BentoML answers
_OPEN_ROUTES = SYSTEM_ROUTES | {"/v2/health/live", "/v2/health/ready", "/", "/docs"}  # answered without a key
_OPEN = "/explorer/"  # prefix of more such routes: the explorer's files hold nothing about the mice


class RequestMiddleware:
    """Wraps the application, whose handlers set route and mouse in `scope["state"]` for metrics and log."""

    def __init__(self, app: ASGIApp, *, context: Context) -> None:
        self._app = app
        self._context = context
        self._prefix = urlsplit(context.settings.public_url or "").path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if self._prefix and (path == self._prefix or path.startswith(f"{self._prefix}/")):
            scope = {**scope, "path": path[len(self._prefix) :] or "/"}  # a proxy that does not remove it
        await _Exchange(self._app, self._context, scope, receive, send).run()


class _Exchange:
    """One request and its reply."""

    def __init__(self, app: ASGIApp, context: Context, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._limiter = app, context.limiter
        self._settings, self._access, self._metrics = context.settings, context.access, context.metrics
        self._shutdown, self._origins = context.shutdown, context.origins
        self._scope, self._receive, self._send = scope, receive, send
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        asked_id = self._headers.get("x-request-id", "")
        self._request_id = asked_id if _REQUEST_ID.fullmatch(asked_id) else uuid.uuid4().hex
        route = scope["path"] if scope["path"] in SYSTEM_ROUTES else OTHER
        self._state: dict[str, Any] = scope.setdefault("state", {})
        self._state.update(request_id=self._request_id, route=route, mouse="", priority="interactive")
        self._connection = self._state.get("connection")  # None over anything but uvicorn, as in tests
        self._memory = self._state["memory"] = context.memory.reservation()
        self._received = 0
        self._max_body = context.settings.max_body
        self._body_complete = self._is_receiving = False
        self._status: int | None = None
        self._start = self._state["start"] = time.perf_counter()
        self._seconds = context.settings.timeout
        self._timeout = asyncio.timeout(self._seconds)
        self._in_time = False

    async def run(self) -> None:
        named = REQUEST_ID.set(self._request_id)
        try:
            async with self._timeout:
                self._in_time = True
                with self._counted(), self._admitted():
                    self._set_deadline()
                    self._state["priority"] = _request_priority(self._headers.get("v1t-priority"))
                    self._reserve_memory()
                    await self._app(self._scope, self._receive_counted, self._send_marked)
        except ClientDisconnect:
            self._status = self._status or 499
        except TwinError as error:
            await self._fail(error)
        except TimeoutError:
            await self._fail(self._late())
        except Exception:
            logger.exception("request %s failed", self._request_id)
            await self._fail(TwinError("the server failed on this request", hint="Its log has the request_id."))
        finally:
            if self._connection is None:
                self._memory.release()
            else:
                self._connection.hold(self._memory)  # until the client has read the reply
            status = str(self._status or 499)
            self._metrics.requests.labels(self._state["route"], self._state["mouse"], status).inc()
            if self._settings.access_log:
                self._log(status)
            REQUEST_ID.reset(named)

    def _log(self, status: str) -> None:
        seconds = time.perf_counter() - self._start
        method, path = self._scope["method"], self._scope["path"][:200]
        fields = {
            "scheme": self._scope.get("scheme", "http"),  # or grpc, for a call that became a request
            "method": method,
            "path": path,
            "route": self._state["route"],
            "mouse": self._state["mouse"],
            "caller": self._state.get("caller", ""),
            "status": int(status),
            "ms": round(1000 * seconds, 1),
        }
        message = "%s %r %s %.1f ms %s"
        logger.info(message, method, path, status, 1000 * seconds, self._request_id, extra={"fields": fields})

    def _is_open(self) -> bool:
        """Whether everyone may ask, at any time and in any number."""
        path: str = self._scope["path"]
        return path in _OPEN_ROUTES or path.startswith(_OPEN)

    def _counted(self) -> contextlib.AbstractContextManager[None]:
        """Counts the request among those that a shutdown waits for."""
        if self._is_open():
            return contextlib.nullcontext()
        self._shutdown.check()
        if self._connection is not None and not self._connection.is_admitted:
            raise NotReady("the server has too many connections", hint="Try again later.", retry_after=2)
        return self._shutdown.inside()

    def _admitted(self) -> contextlib.AbstractContextManager[None]:
        """Checks the key, or else the origin, and counts the request against the caller's limit."""
        if self._is_open():
            return contextlib.nullcontext()
        if not self._access.required:
            self._origins.check(self._scope["method"], self._headers)
        check = self._access.check_admin if self._scope["path"].startswith(_ADMIN) else self._access.check
        key = check(self._headers.get("authorization"))
        self._state["caller"] = key or ""
        address = (self._scope.get("client") or ("",))[0]
        return self._limiter.slot(key or address)

    def _set_deadline(self) -> None:
        """Sets the deadline of the reply's first byte, and the client's own, which bounds whole streams."""
        seconds = _request_timeout(self._headers.get("x-request-timeout"))
        if seconds < self._seconds:
            self._seconds = seconds
            spent = time.perf_counter() - self._start
            self._timeout.reschedule(asyncio.get_running_loop().time() + seconds - spent)
        self._state.update(deadline=self._start + self._seconds, client_deadline=self._start + seconds)

    def _late(self) -> TwinError:
        """The error of a request whose deadline passed outside the batcher; other requests in flight count as load."""
        if self._is_receiving:
            return RequestTimeout("the body did not arrive in time", expected=f"all of it in {self._seconds:g} s")
        return too_busy(self._seconds) if self._shutdown.in_flight else out_of_time(self._seconds)

    async def _fail(self, error: TwinError) -> None:
        self._in_time = False
        if self._status is None:
            response = error_response(error, self._request_id, self._scope["path"])
            await response(self._scope, self._receive, self._send_marked)

    def _reserve_memory(self) -> None:
        """Reserves memory for the body before any of it is read."""
        length = self._headers.get("content-length")
        if length is None:
            self._memory.set(2 * _CHUNKED if "transfer-encoding" in self._headers else _LEAST, "a request")
            return
        if not length.isdecimal():
            raise MalformedBody("Content-Length is not a number", got=length[:40])
        if len(length) > 18 or int(length) > self._max_body:
            raise self._too_large(length[:40])
        self._memory.set(max(_LEAST, 2 * int(length)))  # the parts as received, and the whole

    def _too_large(self, got: Any) -> TooLarge:
        return TooLarge(
            "the body is too large",
            got=f"{got} bytes",
            expected=f"at most {self._max_body} bytes",
            hint="Send fewer images at a time, or as .npy, which is smaller than JSON.",
        )

    async def _receive_counted(self) -> Message:
        self._is_receiving = not self._body_complete  # and stays so where the deadline passes
        message = await self._receive()
        self._is_receiving = False
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._body_complete = not message.get("more_body", False)
            if self._received > self._max_body:
                raise self._too_large(f"more than {self._max_body}")
            if 2 * self._received > self._memory.size:  # a body of unknown length
                self._memory.set(2 * (self._received + _CHUNKED))
        return message

    async def _send_marked(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._settings.tracing:  # now: the span ends with the reply's last byte
                tracing.describe(self._scope["method"], self._state)
            headers = list(message["headers"])
            given = {name for name, _ in headers}
            headers.append((b"x-request-id", self._request_id.encode()))
            if self._shutdown.begun:
                headers.append((b"connection", b"close"))
            headers += [header for header in _SECURITY_HEADERS if header[0] not in given]
            message = {**message, "headers": headers}
            self._metrics.request_seconds.labels(self._state["route"]).observe(time.perf_counter() - self._start)
            if self._in_time and not self._timeout.expired():
                self._timeout.reschedule(None)  # the timeout is to the first byte; a long reply may take longer
        elif not message.get("more_body") and self._body_is_arriving():
            # Closing the connection now would reset it, and a client that is still sending might not read the reply.
            await self._send({**message, "more_body": True})
            await self._discard_body()
            message = {"type": "http.response.body"}
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._memory.count(len(message.get("body", b"")))

    def _body_is_arriving(self) -> bool:
        has_body = self._headers.get("content-length", "0") != "0" or "transfer-encoding" in self._headers
        return self._status in _RETRIABLE and has_body and not self._body_complete and "expect" not in self._headers

    async def _discard_body(self) -> None:
        """Receives the rest of the body, within bounds of size and time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                with self._limiter.discarding():
                    while not self._body_complete and self._received <= self._settings.max_body:
                        message = await self._receive()
                        if message["type"] == "http.disconnect":
                            return
                        self._received += len(message.get("body", b""))
                        self._body_complete = not message.get("more_body", False)
                        # Many such clients may take no more of the event loop's time than one.
                        await asyncio.sleep(_DISCARD_PAUSE * self._limiter.n_discarding)


def _request_timeout(header: str | None) -> float:
    """Seconds of X-Request-Timeout; infinity without the header."""
    if header is None:
        return math.inf
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidInput("X-Request-Timeout is not a time", got=brief(header), expected="seconds, such as 2.5")
    return seconds


def _request_priority(header: str | None) -> Priority:
    if header in (None, "interactive"):
        return "interactive"
    if header == "bulk":
        return "bulk"
    raise InvalidInput("V1T-Priority is not a priority", got=brief(header), expected="interactive or bulk")
