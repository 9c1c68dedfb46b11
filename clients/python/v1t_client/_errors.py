"""Errors of the client, each with what to do next.

V1TError
├── InvalidArgument        an argument was refused here, before anything was sent (also a ValueError)
├── MissingExtra           an optional package is not installed (also an ImportError)
├── ConnectionFailed       no server answered; says the URL
├── TimedOut               a server is there, but no reply came in time
├── ReplyInvalid           the reply is not what the contract promises
├── ModelChanged           another bundle answers than answered the images before
└── ServerError            the server refused; `str()` repeats its hint
    ├── InvalidRequest     400, 405, 406, 415, 422 and every other 4xx
    │   ├── Unauthorized   401, 403
    │   ├── NotFound       404
    │   └── TooLarge       413
    ├── Busy               429, after the retries
    ├── NotReady           503, after the retries
    └── DeadlineExceeded   504, after the retries
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "Busy",
    "ConnectionFailed",
    "DeadlineExceeded",
    "InvalidArgument",
    "InvalidRequest",
    "MissingExtra",
    "ModelChanged",
    "NotFound",
    "NotReady",
    "ReplyInvalid",
    "ServerError",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
    "V1TError",
    "check_count",
    "server_error_class",
]


class V1TError(Exception):
    """Base of every error that this package raises.

    Attributes:
        message: one sentence that says what is wrong.
        got: what was received, short.
        expected: what would have been accepted.
        hint: what to do next.
    """

    def __init__(self, message: str, *, got: Any = None, expected: Any = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.got = got
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message.rstrip(".")]
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        text = "; ".join(parts)
        return f"{text.rstrip('.')}. {self.hint}" if self.hint else text


class InvalidArgument(V1TError, ValueError):
    """An argument was refused before anything was sent."""


class MissingExtra(V1TError, ImportError):
    """An optional package is needed for this call."""


class ConnectionFailed(V1TError):
    """No server answered at this URL."""


class TimedOut(V1TError):
    """The server took the request and did not reply in time."""


class ReplyInvalid(V1TError):
    """The reply is not what the HTTP contract promises: another program, another major version, or a bug."""


class ModelChanged(V1TError):
    """In the middle of a set of images, another bundle answers than answered those before."""


class ServerError(V1TError):
    """The server refused, and said why.

    Attributes:
        status: the HTTP status.
        code: the server's word for it, such as `invalid_input`.
        request_id: names this request in the server's log.
        retry_after: seconds after which the server expects to accept the same request.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 500,
        code: str = "error",
        got: Any = None,
        expected: Any = None,
        hint: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, got=got, expected=expected, hint=hint)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


class InvalidRequest(ServerError):
    """The server understood the request and it cannot be answered as it is."""


class Unauthorized(InvalidRequest):
    """The server wants an API key, or another one."""


class NotFound(InvalidRequest):
    """No such mouse, model, neuron or route."""


class TooLarge(InvalidRequest):
    """Over one of the server's limits on bytes, pixels, images or neurons."""


class Busy(ServerError):
    """The server's queue is full."""


class NotReady(ServerError):
    """The server has no model loaded and warm yet."""


class DeadlineExceeded(ServerError):
    """The request's deadline passed before it was computed."""


_BY_STATUS: dict[int, type[ServerError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    413: TooLarge,
    429: Busy,
    503: NotReady,
    504: DeadlineExceeded,
}


def server_error_class(status: int) -> type[ServerError]:
    """The class for an HTTP status; the nearest parent for one that has none of its own."""
    return _BY_STATUS.get(status, InvalidRequest if 400 <= status < 500 else ServerError)


def check_count(name: str, value: object, *, least: int) -> None:
    """Raises InvalidArgument unless the argument is an integer of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise InvalidArgument(f"{name} is not a count", got=repr(value), expected=f"an integer, {least} or more")
