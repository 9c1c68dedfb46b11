"""The errors of the client. Each says what to do next.

    V1TError
    ├── InvalidArgument        an argument was refused before anything was sent (also a ValueError)
    ├── MissingExtra           an optional package is not installed (also an ImportError)
    ├── ConnectionFailed       no server at this URL, or the connection broke
    ├── TimedOut               the server accepted the connection but did not reply in time
    ├── ReplyInvalid           the reply does not follow the HTTP contract
    ├── ModelChanged           the server changed its bundle in the middle of a set of images
    └── ServerError            the server refused; `str()` includes its hint
        ├── InvalidRequest     400, 405, 406, 415, 422 and all other 4xx
        │   ├── Unauthorized   401, 403
        │   ├── NotFound       404
        │   ├── TooLarge       413
        │   └── OutsideRecording  an input is outside what was recorded, and `strict` was given
        ├── Busy               429, after the retries
        ├── NotReady           503, after the retries
        └── DeadlineExceeded   504, after the retries

`except V1TError` catches them all.
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
    "OutsideRecording",
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
    """The base class of all errors that this package raises.

    Attributes:
        message: what is wrong, in one sentence.
        got: what was received, abbreviated.
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
    """There is no server at this URL, or the connection broke."""


class TimedOut(V1TError):
    """The server accepted the connection but did not reply in time."""


class ReplyInvalid(V1TError):
    """The reply does not follow the HTTP contract: another program, another major version, or a bug."""


class ModelChanged(V1TError):
    """The server changed its bundle in the middle of a set of images."""


class ServerError(V1TError):
    """The server refused the request.

    Attributes:
        status: the HTTP status.
        code: the server's error code, such as `invalid_input`.
        request_id: identifies the request in the server's log.
        retry_after: seconds after which the server expects to accept the request.
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
    """The request is invalid."""


class Unauthorized(InvalidRequest):
    """The API key is missing or wrong."""


class NotFound(InvalidRequest):
    """There is no such mouse, model, neuron or route."""


class TooLarge(InvalidRequest):
    """The request exceeds one of the server's limits on bytes, pixels, images or neurons."""


class OutsideRecording(InvalidRequest):
    """An input is outside what the training trials held, and `strict` was given."""


class Busy(ServerError):
    """The server's queue is full."""


class NotReady(ServerError):
    """The server has not finished loading a model."""


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


def server_error_class(status: int, code: str) -> type[ServerError]:
    """The class for an error code or else for an HTTP status; a parent class for those without their own."""
    if code == "outside_recording":
        return OutsideRecording
    return _BY_STATUS.get(status, InvalidRequest if 400 <= status < 500 else ServerError)


def check_count(name: str, value: object, *, least: int) -> None:
    """Raises InvalidArgument unless the argument is an integer of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise InvalidArgument(f"{name} is not a count", got=repr(value), expected=f"an integer, {least} or more")
