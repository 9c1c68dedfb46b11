"""When to send a request again, and after how long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from v1t_client._errors import InvalidArgument, check_count
from v1t_client._http_library import httpx

__all__ = ["RETRIED_ERRORS", "RETRIED_STATUSES", "Retry"]

# A full queue, a proxy whose server is down, a server that is starting or exceeded a deadline: temporary conditions.
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
# No connection, or one that broke before the reply was complete. No request changes the server, so sending one twice is
# harmless.
RETRIED_ERRORS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential backoff with full jitter (each pause is uniform from 0 to the backoff), inside one total deadline.

    Args:
        retries: how often to send a request again after the first attempt.
        timeout: seconds for the whole call, pauses and retries included.
        base, cap: the backoff doubles from `base` up to `cap` seconds.
        rng: random numbers for the jitter.
        clock: monotonic seconds.
        started: when the call began, on the clock; None before it begins.
    """

    retries: int = 3
    timeout: float = 60.0
    base: float = 0.25
    cap: float = 8.0
    rng: random.Random = field(default_factory=random.Random)
    clock: Callable[[], float] = time.monotonic
    started: float | None = None

    def __post_init__(self) -> None:
        check_count("retries", self.retries, least=0)
        if not (isinstance(self.timeout, (int, float)) and 0 < self.timeout < float("inf")):
            raise InvalidArgument("timeout is not a duration", got=repr(self.timeout), expected="seconds above 0")

    def begin(self) -> Retry:
        """The same for a call that begins now; a call that has begun keeps its deadline."""
        return self if self.started is not None else replace(self, started=self.clock())

    @property
    def elapsed(self) -> float:
        """Seconds since the call began."""
        return 0.0 if self.started is None else self.clock() - self.started

    def pause(self, attempt: int, *, retry_after: float | None = None) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 0) failed, or None to stop retrying.

        A server's Retry-After is a lower bound: the jitter is added to it, so that clients that received the same
        number do not return at the same time.
        """
        if attempt >= self.retries:
            return None
        pause = (retry_after or 0.0) + self.rng.uniform(0.0, min(self.cap, self.base * 2.0 ** min(attempt, 50)))
        return pause if self.elapsed + pause < self.timeout else None
