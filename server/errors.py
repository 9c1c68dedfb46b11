"""Errors that a user can act on: what was received, what was expected, and what to do.

Every error is a `TwinError` with the status and the code of its reply.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any, ClassVar

__all__ = [
    "BundleError",
    "Busy",
    "DeadlineExceeded",
    "Forbidden",
    "HeadTooLarge",
    "InvalidInput",
    "MalformedBody",
    "MethodNotAllowed",
    "NotAcceptable",
    "NotFound",
    "NotReady",
    "OutsideRecording",
    "Overloaded",
    "Refused",
    "RequestTimeout",
    "TooLarge",
    "TwinError",
    "Unauthorized",
    "UnsupportedMedia",
    "brief",
    "out_of_time",
    "too_busy",
]


def brief(value: Any, limit: int = 80) -> str:
    """A short, printable, ASCII summary of any value, for `got`. Cheap also for a list of a million numbers."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = limit  # reprlib cuts the middle out of texts of more than 30 characters
    try:
        text = short.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a very large {type(value).__name__}"
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class TwinError(Exception):
    """Base of all errors for users; on its own, an internal error.

    Args:
        message: what is wrong, in one sentence.
        got: what was received, as a short printable value.
        expected: what would have been accepted.
        hint: what to do next.
        retry_after: seconds after which the same request may succeed.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init_subclass__(cls, *, code: str, status: int) -> None:
        cls.code, cls.status = code, status

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


class InvalidInput(TwinError, code="invalid_input", status=422):
    """A field is missing, or of a wrong type, shape or range."""


class OutsideRecording(InvalidInput, code="outside_recording", status=422):
    """An input lies outside of what was recorded, and the request is strict."""


class MalformedBody(InvalidInput, code="malformed_body", status=400):
    """The body cannot be read at all."""


class UnsupportedMedia(InvalidInput, code="unsupported_media_type", status=415):
    """The body is of a type that the server does not read."""


class Unauthorized(TwinError, code="unauthorized", status=401):
    """The API key is missing or unknown."""


class Forbidden(TwinError, code="forbidden", status=403):
    """A web page of another origin sends the request, or it is meant for another host."""


class NotFound(TwinError, code="not_found", status=404):
    """There is no such mouse, model, neuron or route."""


class MethodNotAllowed(TwinError, code="method_not_allowed", status=405):
    """The route does not have this method."""


class NotAcceptable(TwinError, code="not_acceptable", status=406):
    """The server does not write replies of the type that was asked for."""


class Refused(TwinError, code="refused", status=409):
    """Bundles on disk cannot be served; those that were served still are."""


class TooLarge(TwinError, code="too_large", status=413):
    """Over a limit on bytes, pixels, images or neurons."""


class HeadTooLarge(TwinError, code="head_too_large", status=431):
    """Over a limit on the header fields of a request."""


class RequestTimeout(TwinError, code="request_timeout", status=408):
    """The request did not arrive in time."""


class Busy(TwinError, code="busy", status=429):
    """The queue is full; carries Retry-After."""


class NotReady(TwinError, code="not_ready", status=503):
    """No bundle is loaded and warm yet, or the server is stopping; carries Retry-After."""


class DeadlineExceeded(TwinError, code="deadline_exceeded", status=504):
    """The request's deadline passed before its answer was computed; carries Retry-After."""


class Overloaded(DeadlineExceeded, code="overloaded", status=503):
    """The deadline passed because other requests were computed first; carries Retry-After."""


class BundleError(TwinError, code="bad_bundle", status=500):
    """A bundle cannot be served; the message names it. Raised on loading, never a reply."""


_RETRY_HINT = "Send fewer images at a time, or try again when the server is less busy."


def out_of_time(seconds: float) -> DeadlineExceeded:
    """The error of a request whose deadline passed though nothing else was computed before it."""
    message = "the request's time was up before its answer was computed"
    return DeadlineExceeded(
        message, expected=f"at most {seconds:g} s", hint=_RETRY_HINT, retry_after=_retry_after(seconds)
    )


def too_busy(seconds: float) -> Overloaded:
    """The error of a request whose deadline passed because of other requests; it may be tried again."""
    message = "the server was too busy to answer in the request's time"
    return Overloaded(message, expected=f"at most {seconds:g} s", hint=_RETRY_HINT, retry_after=_retry_after(seconds))


def _retry_after(seconds: float) -> int:
    """Seconds to wait where a request could not be answered in this time."""
    return min(max(1, math.ceil(seconds)), 60)
