"""Receptive fields that the server accumulates: `POST /receptive_fields`, with progress, and retried if it breaks.

The reply is a stream of events. Each is a line of JSON, followed by as many bytes as its field `bytes` says.
"""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from v1t_client._answers.prediction import Prediction
from v1t_client._client import Client
from v1t_client._errors import ConnectionFailed, ReplyInvalid, V1TError
from v1t_client._http_library import httpx
from v1t_client._protocol.deadline import deadline_after
from v1t_client._protocol.exchange import read_bounded
from v1t_client._protocol.replies import read_metadata, read_refusal, refusal_of
from v1t_client._protocol.retry import RETRIED_ERRORS, RETRIED_STATUSES
from v1t_client.insilico.stimuli.noise import NoiseSums

__all__ = ["server_sums"]

_EVENTS = "application/x-v1t-stream"
_ATTEMPTS = 5
_LONGEST_PAUSE = 30.0  # seconds
_LONGEST_LINE = 4 * 1024**2  # bytes
_LARGEST_BODY = 8 * 1024**3  # bytes; the maps of 8,000 neurons at 144 x 256 are 2.4 GB


def server_sums(
    client: Client, arguments: Mapping[str, Any], *, progress: Callable[[int], object] = lambda n: None
) -> tuple[NoiseSums, Prediction]:
    """The sums, and the metadata of the reply as a prediction without responses.

    Args:
        arguments: the fields of the request.
        progress: called with the number of images that were finished since the last call. After a retry no image is
            counted twice.

    Raises:
        ServerError: the server refused.
        ConnectionFailed: the connection broke, and so did the retries.
    """
    seen = 0
    for attempt in range(_ATTEMPTS):
        try:
            for event, body, reply in _events(client, arguments):
                if event["event"] == "progress":
                    if int(event["done"]) > seen:
                        progress(int(event["done"]) - seen)
                        seen = int(event["done"])
                elif event["event"] == "part":
                    return _read(body, int(event["n_images"])), read_metadata(reply, event, mouse=arguments["mouse"])
            raise ReplyInvalid("unexpected reply: the stream ended without its sums")
        except V1TError as error:
            is_temporary = getattr(error, "status", None) in RETRIED_STATUSES or isinstance(error, ConnectionFailed)
            if not is_temporary or attempt == _ATTEMPTS - 1:
                raise
            wait = getattr(error, "retry_after", None) or 2.0**attempt * random.uniform(0.5, 1)
            time.sleep(min(wait, _LONGEST_PAUSE))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ReplyInvalid(f"unexpected reply: an event cannot be read: {error!r}") from error
    raise AssertionError  # the last attempt returned or raised


def _events(client: Client, arguments: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], bytes, httpx.Response]]:
    """Each event with its body, and the reply."""
    try:
        with client._stream("/receptive_fields", arguments, accept=_EVENTS) as response:
            if response.status_code != 200:
                raise read_refusal(read_bounded(response, _LONGEST_LINE))
            for line, body in _lines(response.iter_bytes(), client._timeout):
                if line.get("event") == "error":
                    raise refusal_of(
                        line.get("error") or {},
                        status=int(line.get("status", 500)),
                        request_id=line.get("request_id"),
                        retry_after=line.get("retry_after"),
                    )
                yield line, body, response
    except RETRIED_ERRORS as error:
        raise ConnectionFailed(
            f"the connection broke: {error}", hint="Is the server running? Its log may say more."
        ) from error
    except httpx.RequestError as error:
        raise ConnectionFailed(
            f"the server stopped sending: {error or type(error).__name__}", hint="Its log may say more."
        ) from error


def _lines(chunks: Iterator[bytes], timeout: float) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each line with its body; each has to arrive within the timeout."""
    buffer = bytearray()
    line: dict[str, Any] | None = None
    begun = time.monotonic()
    while True:
        with deadline_after(begun + timeout - time.monotonic()):
            chunk = next(chunks, None)
        if chunk is None:
            break
        buffer += chunk
        while True:
            if line is None:
                end = buffer.find(b"\n")
                if max(end, len(buffer) if end < 0 else 0) > _LONGEST_LINE:
                    raise ReplyInvalid("unexpected reply: a line of the stream is too long")
                if end < 0:
                    break
                line = json.loads(buffer[:end])
                del buffer[: end + 1]
            size = int(line.get("bytes", 0))
            if not 0 <= size <= _LARGEST_BODY:
                raise ReplyInvalid("unexpected reply: a body of the stream is too large", got=f"{size} bytes")
            if len(buffer) < size:
                break
            yield line, bytes(memoryview(buffer)[:size])
            del buffer[:size]
            line, begun = None, time.monotonic()
    if line is not None or buffer:
        raise ConnectionFailed("the stream stopped in the middle")


def _read(body: bytes, n_images: int) -> NoiseSums:
    stream = io.BytesIO(body)
    try:
        maps, noise, total, squares = (np.load(stream, allow_pickle=False).astype(np.float64) for _ in range(4))
    except (ValueError, EOFError, OSError) as error:
        raise ReplyInvalid(f"unexpected reply: the sums cannot be read: {error}") from error
    return NoiseSums(n_images, maps, noise, total, squares)
