"""When to ask again, and after how long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from v1t_client._errors import InvalidArgument

__all__ = ["RETRIED_ERRORS", "RETRIED_STATUSES", "Retry"]

# A full queue, a proxy without its server, a server that starts or was too late: all may pass.
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
# No connection, or one that broke before the reply was whole. Nothing that we ask changes the server, so asking twice
# is harmless.
RETRIED_ERRORS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential backoff with full jitter (each pause is uniform from 0 to the backoff), inside one total deadline.

    Args:
        retries: how often to ask again after the first time.
        timeout: seconds for the whole call, pauses and retries included.
        base, cap: the backoff doubles from `base` up to `cap` seconds.
        rng: where the jitter comes from.
        clock: monotonic seconds.
    """

    retries: int = 3
    timeout: float = 60.0
    base: float = 0.25
    cap: float = 8.0
    rng: random.Random = field(default_factory=random.Random)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if not isinstance(self.retries, int) or self.retries < 0:
            raise InvalidArgument("retries is no count", got=repr(self.retries), expected="an integer, 0 or more")
        if not (isinstance(self.timeout, (int, float)) and 0 < self.timeout < float("inf")):
            raise InvalidArgument("timeout is no duration", got=repr(self.timeout), expected="seconds above 0")

    def pause(self, attempt: int, *, elapsed: float, retry_after: float | None = None) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 0) failed, or None to give up.

        A server's Retry-After is a lower bound: the jitter comes on top, so that those who were told the same number
        do not come back together.
        """
        if attempt >= self.retries:
            return None
        pause = (retry_after or 0.0) + self.rng.uniform(0.0, min(self.cap, self.base * 2.0 ** min(attempt, 50)))
        return pause if elapsed + pause < self.timeout else None
