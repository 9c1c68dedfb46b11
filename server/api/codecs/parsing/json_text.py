"""JSON to plain data; an error says where the text is wrong, and names NaN, Infinity, and a key that occurs twice."""

from __future__ import annotations

import contextlib
import re
import threading
from typing import Any

import numpy as np
import orjson

from server.errors import InvalidInput, MalformedBody, TooLarge, brief

__all__ = ["check_keys", "parse_json"]

_NOT_JSON = re.compile(r"-?(?:NaN|Infinity|nan|inf)\b")
_LONG = 1024**2  # bytes; of longer texts one is parsed at a time: the parser holds Python's lock until it is done
_PARSING = threading.Lock()
_SHOWN = 24  # characters on each side of the place
_MAX_SEARCHED = 10_000  # strings and braces of a text that is searched, far more than a request has: each takes a while
_MARK = re.compile(rb'["{}]')
_STRING = re.compile(rb'("(?:[^"\\]++|\\.)*+")(\s*:)?', re.DOTALL)  # and whether it is a key


def parse_json(text: bytes | memoryview, where: str) -> Any:
    """The value of a JSON text.

    Args:
        where: what to call the text in an error.

    Raises:
        MalformedBody: names the place, and quotes what stands there.
        InvalidInput: a key occurs twice in an object.
    """
    try:
        with _PARSING if len(text) > _LONG else contextlib.nullcontext():
            value = orjson.loads(text)
            check_keys(text, value, where)
            return value
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


def check_keys(text: bytes | memoryview, value: Any, where: str) -> None:
    """Refuses a key that occurs twice in an object: the parser keeps the last, and the sender may have meant the first.

    A text with as many colons as the parsed objects have keys repeats none. Any other text, such as one with a colon in
    a string, is searched.

    Args:
        value: what the text was parsed to.

    Raises:
        InvalidInput: names the key and the place where it occurs again.
        TooLarge: the text that is searched has too many strings and objects.
    """
    if np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == ord(":")) == _n_keys(value):
        return
    objects: list[set[str]] = []  # keys of each object that is open here
    n_searched = end = 0
    while (mark := _MARK.search(text, end)) is not None:
        n_searched += 1
        if n_searched > _MAX_SEARCHED:
            raise TooLarge(
                f"{where} has too many strings and objects",
                got=f"more than {_MAX_SEARCHED:,} strings and braces",
                expected=f"at most {_MAX_SEARCHED:,}",
            )
        end = mark.end()
        if mark[0] == b"{":
            objects.append(set())
            continue
        if mark[0] == b"}":
            objects.pop()
            continue
        token = _STRING.match(text, mark.start())
        assert token is not None, "the parser accepted the text"
        end = token.end()
        if token[2]:
            key = orjson.loads(token[1])
            if key in objects[-1]:
                before = bytes(text[: token.start()])
                line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
                raise InvalidInput(
                    f"{where} has a key twice in one object",
                    got=f"{brief(key)} again at line {line}, column {column}",
                    expected="each key once in an object",
                    hint="Leave out one of the two; several values are one list, such as [1, 2].",
                )
            objects[-1].add(key)


def _n_keys(value: Any) -> int:
    """Keys of the objects that a request may have: a list of numbers is not searched for objects."""
    n, left = 0, [value]
    while left:
        found = left.pop()
        if isinstance(found, dict):
            n += len(found)
            left += found.values()
        elif isinstance(found, list) and found and isinstance(found[0], dict):
            left += found
    return n
