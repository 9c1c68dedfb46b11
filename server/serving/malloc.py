"""Settings of glibc's allocator that keep a server's memory from growing.

With an arena for each of many threads, what one thread frees is not found by another, and memory grows by some MB an
hour. Two arenas serve all threads of this process, which seldom allocate at the same time.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["limit_arenas", "trim"]

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


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
