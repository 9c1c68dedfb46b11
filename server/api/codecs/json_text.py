"""JSON bodies to plain data; an error says where the text is wrong, and names NaN and Infinity."""

from __future__ import annotations

import contextlib
import re
import threading
from typing import Any

import orjson

from server.errors import MalformedBody, brief

__all__ = ["parse_json"]

_NOT_JSON = re.compile(r"-?(?:NaN|Infinity|nan|inf)\b")
_LONG = 1024**2  # bytes; of longer texts one is parsed at a time: the parser holds Python's lock until it is done
_PARSING = threading.Lock()
_SHOWN = 24  # characters on each side of the place


def parse_json(text: bytes | memoryview, where: str) -> Any:
    """The value of a JSON text.

    Args:
        where: what to call the text in an error.

    Raises:
        MalformedBody: names the place, and quotes what stands there.
    """
    try:
        with _PARSING if len(text) > _LONG else contextlib.nullcontext():
            return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        doc, at = str(error.doc), int(error.pos)
        signed = at > 0 and doc[at - 1] == "-"  # the parser stops after a sign
        found = _NOT_JSON.match(doc, at - signed)
        place = f"line {error.lineno}, column {error.colno - signed}"
        if found is not None:
            raise MalformedBody(
                f"{where} is not valid JSON: JSON has no {found.group()}",
                got=f"{found.group()} at {place}, after {brief(doc[max(0, found.start() - _SHOWN) : found.start()])}",
                expected="finite numbers; null for a value that is left out",
            ) from None
        raise MalformedBody(
            f"{where} is not valid JSON",
            got=f"{error.msg}, before {brief(doc[at : at + _SHOWN])}" if doc[at:] else str(error.msg),
            expected="a JSON object",
        ) from None
