"""The parts of a reply: its JSON, its header, its arrays and their fields, each checked."""

from __future__ import annotations

import functools
import io
import json
import math
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from v1t_client._errors import ReplyInvalid, V1TError
from v1t_client._http_library import httpx
from v1t_client._protocol.requests import NPY

__all__ = ["OTHER_PROGRAM", "field", "header", "invalid", "json_object", "npy_arrays", "reader", "retry_after"]

REPLY_HEADER = "V1T-Reply"
OTHER_PROGRAM = "Is this the URL of a v1t server, of the same major version as this client?"

T = TypeVar("T")
P = ParamSpec("P")


def reader(read: Callable[P, T]) -> Callable[P, T]:
    """Any failure of reading a reply is a ReplyInvalid."""

    @functools.wraps(read)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except V1TError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise invalid(f"it cannot be read: {error}", None, None) from error

    return checked


def field(reply: dict[str, Any], name: str, kind: type[T]) -> T:
    value = reply.get(name)
    if not isinstance(value, kind):
        raise invalid(f"field {name!r} is missing or of another type", type(value).__name__, kind.__name__)
    return value


def json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        reply = response.json()
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise invalid(
            f"{response.request.url} did not answer with a JSON object", content_type(response), "application/json"
        )
    return reply


def header(response: httpx.Response) -> dict[str, Any]:
    try:
        reply = json.loads(response.headers.get(REPLY_HEADER, ""))
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise invalid(f"the reply has no readable {REPLY_HEADER} header", content_type(response), NPY)
    return reply


def npy_arrays(response: httpx.Response, n_arrays: int) -> list[npt.NDArray[np.float32]]:
    """The arrays of the body, one .npy after another."""
    if content_type(response) != NPY:
        raise invalid("the reply is of another type", content_type(response), NPY)
    stream = io.BytesIO(response.content)
    try:
        arrays = [np.load(stream, allow_pickle=False) for _ in range(n_arrays)]
    except (ValueError, EOFError, OSError) as error:
        size = f"{len(response.content)} bytes"
        raise invalid(f"the array cannot be read: {error}", size, f"{n_arrays} .npy") from error
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            raise invalid("the array has another dtype", getattr(array, "dtype", "an archive"), "float32")
    return arrays


def content_type(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "no content type")).split(";")[0].strip()


def retry_after(value: str | None) -> float | None:
    """Seconds, from a number or an HTTP date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def invalid(message: str, got: Any, expected: Any) -> ReplyInvalid:
    return ReplyInvalid(f"unexpected reply: {message}", got=got, expected=expected, hint=OTHER_PROGRAM)
