"""Errors that a user can act on: what we got, what we expected, what to do.

TwinError
├── InvalidInput        422  a field is missing, of the wrong type, shape or range
│   ├── MalformedBody   400  the body cannot be read at all
│   └── UnsupportedMedia 415 the body's type is not one that we read
├── Unauthorized        401  no key, or a wrong one
├── NotFound            404  no such mouse, model, neuron or route
├── MethodNotAllowed    405  the route exists, not under this method
├── NotAcceptable       406  the reply was asked for in a type that we do not write
├── Refused             409  what is on disk cannot be served; what was served still is
├── TooLarge            413  over a limit on bytes, pixels, images or neurons
├── Busy                429  the queue is full; carries Retry-After
├── NotReady            503  no twin is loaded and warm yet; carries Retry-After
├── DeadlineExceeded    504  the request's deadline passed before it was computed
│   └── Overloaded      503  because others were computed first; carries Retry-After
└── BundleError         500  a bundle cannot be served (start-up only, never a reply)
"""

from __future__ import annotations

import math
import reprlib
from typing import Any, ClassVar

__all__ = [
    "BundleError",
    "Busy",
    "DeadlineExceeded",
    "InvalidInput",
    "MalformedBody",
    "MethodNotAllowed",
    "NotAcceptable",
    "NotFound",
    "NotReady",
    "Overloaded",
    "Refused",
    "TooLarge",
    "TwinError",
    "Unauthorized",
    "UnsupportedMedia",
    "brief",
    "out_of_time",
    "too_busy",
]


def brief(value: Any, limit: int = 80) -> str:
    """A short, printable, ASCII summary of any value, for `got`; a list of a million numbers costs nothing."""
    try:
        text = reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a very large {type(value).__name__}"
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class TwinError(Exception):
    """Base of every error that we raise for a user.

    Args:
        message: one sentence that says what is wrong.
        got: what was received, as a short printable value.
        expected: what would have been accepted.
        hint: what to do next.
        retry_after: seconds after which the same request may succeed.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        got: Any = None,
        expected: Any = None,
        hint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.got = got
        self.expected = expected
        self.hint = hint
        self.retry_after = retry_after

    def __str__(self) -> str:
        parts = [self.message]
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        text = "; ".join(parts)
        return f"{text}. {self.hint}" if self.hint else text

    def body(self) -> dict[str, Any]:
        """The one error body of the HTTP contract."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "got": self.got,
                "expected": self.expected,
                "hint": self.hint,
            }
        }


class InvalidInput(TwinError):
    code = "invalid_input"
    status = 422


class MalformedBody(InvalidInput):
    code = "malformed_body"
    status = 400


class UnsupportedMedia(InvalidInput):
    code = "unsupported_media_type"
    status = 415


class Unauthorized(TwinError):
    code = "unauthorized"
    status = 401


class NotFound(TwinError):
    code = "not_found"
    status = 404


class MethodNotAllowed(TwinError):
    code = "method_not_allowed"
    status = 405


class NotAcceptable(TwinError):
    code = "not_acceptable"
    status = 406


class Refused(TwinError):
    code = "refused"
    status = 409


class TooLarge(TwinError):
    code = "too_large"
    status = 413


class Busy(TwinError):
    code = "busy"
    status = 429


class NotReady(TwinError):
    code = "not_ready"
    status = 503


class DeadlineExceeded(TwinError):
    code = "deadline_exceeded"
    status = 504


class Overloaded(DeadlineExceeded):
    code = "overloaded"
    status = 503


_LESS = "Send fewer images at a time, or ask again when the server is less busy."


def out_of_time(seconds: float, before: str = "its answer was computed") -> DeadlineExceeded:
    """A request was given so many seconds, and they were up before something had happened."""
    message = f"the request's time was up before {before}"
    return DeadlineExceeded(message, expected=f"at most {seconds:g} s", hint=_LESS)


def too_busy(seconds: float) -> Overloaded:
    """The same, because of others: it may be asked again."""
    message = "the server was too busy to answer in the request's time"
    retry_after = min(max(1, math.ceil(seconds)), 60)
    return Overloaded(message, expected=f"at most {seconds:g} s", hint=_LESS, retry_after=retry_after)


class BundleError(TwinError):
    """A bundle that we refuse to serve; the message names it and the reason."""

    code = "bad_bundle"
    status = 500
