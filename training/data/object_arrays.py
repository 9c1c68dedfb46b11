"""Strings in object arrays: numpy saves them as pickles, which are read here without executing any.

`np.save("tiers.npy", np.array(["train", ...], dtype=object))` is what becomes of a pandas column.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

__all__ = ["read_words"]

MAX_LENGTH = 1000  # of a string: an array takes the longest for each

# The opcodes of plain values. Those that allocate what a number in the pickle says, such as BYTEARRAY8, are not here.
_NAMES = """
    PROTO FRAME STOP GLOBAL STACK_GLOBAL REDUCE BUILD MARK POP POP_MARK MEMOIZE BINPUT BINGET LONG_BINGET LONG_BINPUT
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 SHORT_BINBYTES BINBYTES SHORT_BINUNICODE BINUNICODE
    SHORT_BINSTRING BINSTRING EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
"""
_OPCODES = frozenset(_NAMES.split())


class _Array:
    """Stands in for the array: keeps its values."""

    values: list[Any] | None = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        *_, self.values = state


class _Type:
    """Stands in for a dtype: keeps its name and byte order."""

    order = "<"

    def __init__(self, name: str = "", *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


def _scalar(kind: _Type, content: bytes) -> Any:
    """A numpy string."""
    if kind.name.startswith("U"):
        return content.decode("utf-32-be" if kind.order == ">" else "utf-32-le").rstrip("\0")
    return None


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")  # how Python 3 writes bytes for Python 2


_ALLOWED: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise ValueError(f"its pickle loads {module}.{name}") from None


def read_words(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The array of strings (or of integers) of this shape, from the pickle behind the header of an object array.

    Raises:
        ValueError: it holds anything else. Nothing in it was executed.
    """
    try:
        for opcode, argument, _ in pickletools.genops(content):
            allocates = opcode.name == "LONG_BINPUT" and (argument or 0) > len(content)
            if opcode.name not in _OPCODES or allocates:
                raise ValueError(f"its pickle holds more than strings ({opcode.name})")
        array = _Unpickler(io.BytesIO(content), encoding="latin-1").load()
    except ValueError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(f"its pickle cannot be read ({type(error).__name__})") from error
    values = array.values if isinstance(array, _Array) else None
    if not isinstance(values, list) or len(values) != math.prod(shape) or len({type(value) for value in values}) > 1:
        raise ValueError("its pickle does not hold one list of strings")
    if not all(isinstance(value, str) or type(value) is int for value in values):
        raise ValueError(f"it holds objects of type {type(values[0]).__name__}, expected strings")
    if any(isinstance(value, str) and len(value) > MAX_LENGTH for value in values):
        raise ValueError(f"it holds a string of more than {MAX_LENGTH} characters")
    return np.array(values).reshape(shape)
