"""Compressed bodies: gzip and deflate, as clients of the Open Inference Protocol send and ask for them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Literal, TypeAlias

from server.errors import MalformedBody, TooLarge, UnsupportedMedia, brief

__all__ = ["Encoding", "compressed", "content_encoding", "decompressed", "wanted_encoding"]

Encoding: TypeAlias = Literal["gzip", "deflate"]

_ENCODINGS: dict[str, Encoding] = {"gzip": "gzip", "deflate": "deflate"}
_WINDOW: dict[Encoding, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_PART = 1024**2  # bytes that are decompressed at a time
_LEVEL = 1  # responses compress little, and higher levels take several times as long


def content_encoding(header: str | None) -> Encoding | None:
    """How a body is compressed, by its Content-Encoding header; None: not at all."""
    encoding = (header or "identity").strip().lower()
    if encoding not in (*_ENCODINGS, "identity"):
        raise UnsupportedMedia(
            "the body is compressed in a way that the server does not read",
            got=brief(header),
            expected="gzip, deflate, or no Content-Encoding",
        )
    return _ENCODINGS.get(encoding)


def wanted_encoding(header: str | None) -> Encoding | None:
    """The compression that a client asks for: an Accept-Encoding of gzip or deflate alone, as tritonclient sends it.

    HTTP libraries send a list of all that they can read; replies to those are not compressed, as that would take longer
    than it takes to send them.
    """
    return _ENCODINGS.get((header or "").strip().lower())


def compressed(content: bytes, encoding: Encoding) -> bytes:
    if encoding == "gzip":
        return gzip.compress(content, _LEVEL, mtime=0)
    return zlib.compress(content, _LEVEL)


def decompressed(
    body: bytes, encoding: Encoding, max_bytes: int, reserve: Callable[[int], None] = lambda _: None
) -> bytes:
    """The content of a compressed body, of which no more than the limit is ever in memory.

    Args:
        reserve: reserves memory for the content, in bytes, while it grows.

    Raises:
        TooLarge: the content has more than `max_bytes`.
        MalformedBody: the body is damaged, or ends too early.
    """
    stream = zlib.decompressobj(_WINDOW[encoding])
    parts, size, rest = [], 0, body
    try:
        while size <= max_bytes and not stream.eof:
            reserve(2 * (size + _PART))  # the parts, and the whole
            part = stream.decompress(rest, min(_PART, max_bytes + 1 - size))
            if not part and not stream.unconsumed_tail:
                break
            parts.append(part)
            size, rest = size + len(part), stream.unconsumed_tail
    except zlib.error as error:
        raise MalformedBody(f"the body is not {encoding} data", got=brief(str(error))) from None
    content = b"".join(parts)
    if size > max_bytes:
        raise TooLarge(
            "the body is too large once it is decompressed",
            got=f"more than {max_bytes} bytes, from {len(body)}",
            expected=f"at most {max_bytes} bytes",
            hint="Send fewer images at a time.",
        )
    if not stream.eof:
        raise MalformedBody(f"the {encoding} data of the body ends too early", got=f"{len(body)} bytes")
    if stream.unused_data:
        raise MalformedBody(f"the body has bytes after its {encoding} data", got=f"{len(stream.unused_data)} bytes")
    return content
