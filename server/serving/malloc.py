"""Settings of glibc's allocator that keep a server's memory from growing.

With an arena for each of many threads, what one thread frees is not found by another, and memory grows by some MB an
hour. Two arenas serve all threads of this process, which seldom allocate at the same time.
"""

from __future__ import annotations

import ctypes
import math
import sys

__all__ = ["bytes_in_use", "limit_arenas", "trim"]

_M_ARENA_MAX = -8  # of malloc.h
_ARENAS = 2


def limit_arenas() -> None:
    """Limits the number of arenas; to be called before threads start. Does nothing without glibc."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Returns free pages to the system."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def bytes_in_use() -> float:
    """Bytes that are allocated and not freed; NaN without glibc 2.33. Unlike resident memory, without fragments."""
    libc = _glibc()
    if libc is None or not hasattr(libc, "mallinfo2"):
        return math.nan
    libc.mallinfo2.restype = _MallInfo
    info = libc.mallinfo2()
    return float(info.uordblks + info.hblkhd)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
