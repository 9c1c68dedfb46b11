"""How many requests of one caller are handled at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Busy

__all__ = ["ConcurrencyLimiter"]


class ConcurrencyLimiter:
    """Bounds the requests of each caller that are handled at the same time.

    Args:
        limit: per caller; None: unlimited.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._inside: Counter[str] = Counter()
        self.n_discarding = 0  # requests that were refused and whose bodies still arrive

    @contextmanager
    def slot(self, caller: str) -> Iterator[None]:
        """Counts a request of this caller while it is handled.

        Raises:
            Busy: the caller has reached the limit.
        """
        if self._limit is not None and self._inside[caller] >= self._limit:
            raise Busy(
                "too many of your requests are being handled",
                got=f"{self._inside[caller] + 1} at once",
                expected=f"at most {self._limit}",
                hint="Wait for a reply before you send the next request, or send more images in one request.",
                retry_after=1,
            )
        self._inside[caller] += 1
        try:
            yield
        finally:
            self._inside[caller] -= 1
            if not self._inside[caller]:
                del self._inside[caller]

    @contextmanager
    def discarding(self) -> Iterator[None]:
        """Counts a refused request while the rest of its body is discarded."""
        self.n_discarding += 1
        try:
            yield
        finally:
            self.n_discarding -= 1
