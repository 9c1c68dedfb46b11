"""The memory that a JSON body and its values take, told from its bytes before it is parsed."""

from __future__ import annotations

import numpy as np

from server.errors import TooLarge

__all__ = ["json_memory"]

MAX_VALUES = 8_000_000  # in one JSON body: the parser holds Python's lock, so that nothing else runs meanwhile
MAX_CONTAINERS = 250_000  # a row of an image is one
# Bytes that a value takes while it is parsed and after, measured with CPython 3.11 and orjson 3.11: a list, an object,
# any value (a number, its place in a list, and its copies in float64 and float32), a key, and half of a string.
_LIST, _OBJECT, _VALUE, _KEY, _QUOTE = 96, 256, 56, 96, 44

_SHORT, _MOST = 4096, 112  # bytes of a body that is not worth counting, and what each may take: {},{},...
_BLOCK = 256 * 1024  # bytes that are counted at a time


def json_memory(body: bytes | memoryview) -> int:
    """Bytes of a JSON body and of the values that are parsed from it.

    Raises:
        TooLarge: there are too many values.
    """
    if len(body) <= _SHORT:
        return _MOST * len(body)
    n = dict.fromkeys('[{,:"', 0)
    is_latin = True
    whole = np.frombuffer(body, dtype=np.uint8)
    for start in range(0, len(whole), _BLOCK):
        letters = whole[start : start + _BLOCK]
        for letter in n:
            n[letter] += int(np.count_nonzero(letters == ord(letter)))
        is_latin &= bool(letters.max() < 128)
    if n["["] + n["{"] > MAX_CONTAINERS or n[","] > MAX_VALUES:
        raise TooLarge(
            "the JSON holds too many values",
            got=f"{n['['] + n['{']:,} lists and objects, and {n[',']:,} commas",
            expected=f"at most {MAX_CONTAINERS:,} and {MAX_VALUES:,}",
            hint="Send fewer images at a time, or as .npy, which is smaller than JSON.",
        )
    # Python stores a text with one letter that is not Latin at four bytes a letter; the parser makes a copy of all.
    text = len(body) * (2 if is_latin and b"\\u" not in bytes(body) else 5)
    parsed = _LIST * n["["] + _OBJECT * n["{"] + _VALUE * n[","] + _KEY * n[":"] + _QUOTE * n['"']
    return len(body) + text + parsed
