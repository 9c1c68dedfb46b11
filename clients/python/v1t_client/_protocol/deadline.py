"""The deadline of a blocking exchange, which everything that it does on the network keeps to.

httpx limits each read and write; a reply that drips in, byte after byte, has no limit. The connections of
`v1t_client._protocol.connections` give every operation only the time that is left. (The client for asyncio cancels the
exchange instead.)
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

__all__ = ["deadline_after", "time_left"]


class _Deadline(threading.local):
    at: float | None = None  # monotonic seconds


_deadline = _Deadline()


@contextlib.contextmanager
def deadline_after(seconds: float) -> Iterator[None]:
    """Ends the exchanges of this thread inside the block after so many seconds, with an `httpx.TimeoutException`."""
    _deadline.at = time.monotonic() + seconds
    try:
        yield
    finally:
        _deadline.at = None


def time_left(timeout: float | None, error: type[Exception]) -> float | None:
    """Seconds for one operation: the timeout, or less if less is left. Raises the error if nothing is."""
    if _deadline.at is None:
        return timeout
    left = _deadline.at - time.monotonic()
    if left <= 0:
        raise error("the time of the whole call is over")
    return left if timeout is None else min(left, timeout)
