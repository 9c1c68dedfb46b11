"""What glibc does with memory that is given back: it keeps little, so that a server's memory stays where it is.

With a pool for each of many threads, what one frees another does not find, and memory creeps up by some megabytes an
hour. Two pools serve all of ours, which are seldom at it together; a bundle that goes gives its pages to the system.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["give_back", "keep_little"]

_M_ARENA_MAX = -8  # of malloc.h
_POOLS = 2


def keep_little() -> None:
    """To be called before the threads start; nothing where the C repository is not glibc."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_ARENA_MAX, _POOLS)


def give_back() -> None:
    """Returns free pages to the system."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
