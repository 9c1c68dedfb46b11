"""Receptive fields that a server sums up: asked as `POST /receptive_fields`, watched, and asked again when it breaks.

The reply is a stream of events, each a line of JSON and as many bytes after it as its `bytes` says.
"""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import numpy as np

from v1t_client._answers.prediction import Prediction
from v1t_client._client import Client
from v1t_client._errors import ConnectionFailed, ReplyInvalid, ServerError, V1TError, server_error_class
from v1t_client._protocol.replies import read_about, read_refusal
from v1t_client._protocol.retry import RETRIED_ERRORS, RETRIED_STATUSES
from v1t_client.insilico.stimuli.noise import NoiseSums

__all__ = ["server_sums"]

_EVENTS = "application/x-v1t-stream"
_ATTEMPTS = 5
_LONGEST_PAUSE = 30.0  # seconds


def server_sums(
    client: Client, question: Mapping[str, Any], *, progress: Callable[[int], object] = lambda n: None
) -> tuple[NoiseSums, Prediction]:
    """The sums, and what the reply says beside them as a prediction without responses.

    Args:
        question: the fields of the request.
        progress: told of every few images that are done. When the server breaks off and is asked again, they are
            counted once.

    Raises:
        ServerError: the server refused.
        ConnectionFailed: it went away, and did not come back.
    """
    seen = 0
    for attempt in range(_ATTEMPTS):
        try:
            for event, body, reply in _events(client, question):
                if event["event"] == "progress":
                    if int(event["done"]) > seen:
                        progress(int(event["done"]) - seen)
                        seen = int(event["done"])
                elif event["event"] == "part":
                    return _read(body, int(event["n_images"])), read_about(reply, mouse=question["mouse"])
            raise ReplyInvalid("unexpected reply: the stream ended without its sums")
        except V1TError as error:
            passes = getattr(error, "status", None) in RETRIED_STATUSES or isinstance(error, ConnectionFailed)
            if not passes or attempt == _ATTEMPTS - 1:
                raise
            wait = getattr(error, "retry_after", None) or 2.0**attempt * random.uniform(0.5, 1)
            time.sleep(min(wait, _LONGEST_PAUSE))
    raise AssertionError  # the last attempt returned or raised


def _events(client: Client, question: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], bytes, httpx.Response]]:
    """Each event with its body."""
    try:
        with client._stream("/receptive_fields", question, accept=_EVENTS) as response:
            if response.status_code != 200:
                response.read()
                raise read_refusal(response)
            for line, body in _lines(response.iter_bytes()):
                if line.get("event") == "error":
                    raise _refusal(line)
                yield line, body, response
    except RETRIED_ERRORS as error:
        raise ConnectionFailed(
            f"the connection broke: {error}", hint="Is the server running? Its log may say more."
        ) from error
    except httpx.TimeoutException as error:
        raise ConnectionFailed("the server went silent", hint="Its log may say more.") from error


def _lines(chunks: Iterator[bytes]) -> Iterator[tuple[dict[str, Any], bytes]]:
    buffer = bytearray()
    line: dict[str, Any] | None = None
    for chunk in chunks:
        buffer += chunk
        while True:
            if line is None:
                end = buffer.find(b"\n")
                if end < 0:
                    break
                line = json.loads(buffer[:end])
                del buffer[: end + 1]
            size = int(line.get("bytes", 0))
            if len(buffer) < size:
                break
            yield line, bytes(memoryview(buffer)[:size])
            del buffer[:size]
            line = None
    if line is not None or buffer:
        raise ConnectionFailed("the stream stopped in the middle")


def _refusal(line: dict[str, Any]) -> ServerError:
    """An error that ends a stream."""
    error, status = line.get("error") or {}, int(line.get("status", 500))
    return server_error_class(status)(
        str(error.get("message") or f"HTTP {status}"),
        status=status,
        code=str(error.get("code") or "error"),
        got=error.get("got"),
        expected=error.get("expected"),
        hint=error.get("hint"),
        request_id=line.get("request_id"),
        retry_after=line.get("retry_after"),
    )


def _read(body: bytes, n_images: int) -> NoiseSums:
    stream = io.BytesIO(body)
    try:
        maps, noise, total, squares = (np.load(stream, allow_pickle=False).astype(np.float64) for _ in range(4))
    except (ValueError, EOFError, OSError) as error:
        raise ReplyInvalid(f"unexpected reply: the sums cannot be read: {error}") from error
    return NoiseSums(n_images, maps, noise, total, squares)
