"""The memory budget: bytes for all requests that are being received, parsed, answered, or whose replies are unread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from server.errors import Busy, TooLarge
from server.serving.telemetry.metrics import Metrics
from server.settings import PREFIX

__all__ = ["Ended", "MemoryBudget", "Reservation", "default_budget"]

T = TypeVar("T")

_SMALL = 1024**2  # bytes of a request that may use the last quarter of the budget
_RETRY_AFTER = 2.0  # seconds
_UNLIMITED = 1 << 60  # what cgroup v1 says where there is no limit is more
_LEAST = 128 * 1024**2

_CGROUP_V2 = "memory.max"
_CGROUP_V1 = "memory.limit_in_bytes"


class Ended(Exception):
    """The request has ended, and nobody waits for what a thread does for it."""


class MemoryBudget:
    """Counts bytes that requests reserve before they use them. Threads may share it.

    Large requests leave a quarter of it to small ones, which are so answered beside them.

    Args:
        total: bytes.
    """

    def __init__(self, total: int, metrics: Metrics) -> None:
        self.total = total
        self.used = 0
        self._lock = threading.Lock()
        metrics.memory.set_function(lambda: self.used)

    def reservation(self) -> Reservation:
        """A new reservation of 0 bytes, to be released at the end."""
        return Reservation(self)

    def _change(self, before: int, after: int, what: str | None) -> None:
        """Replaces a reservation by another one.

        Raises:
            TooLarge, Busy: it does not fit; never where `what` is None.
        """
        with self._lock:
            allowed = self.total if after <= _SMALL else self.total * 3 // 4
            used = self.used - before + after
            if what is not None and after > before and used > allowed:
                raise self._refusal(after, allowed, what)
            self.used = used

    def _refusal(self, size: int, allowed: int, what: str) -> TooLarge | Busy:
        got = f"{what} of about {_megabytes(size)}"
        hint = "Send fewer images at a time, or as .npy, which takes less memory than JSON."
        if size > allowed:
            hint += f" The server's operator may raise {PREFIX}MEMORY."
            return TooLarge("the request is too large", got=got, expected=f"at most {_megabytes(allowed)}", hint=hint)
        left = max(0, allowed - self.used)
        return Busy(
            "the server's memory is in use by other requests",
            got=got,
            expected=f"at most {_megabytes(left)} at the moment",
            hint=f"Try again later. {hint}",
            retry_after=_RETRY_AFTER,
        )


class Reservation:
    """The bytes of one request. Released while threads still work for it, it lasts until the last of them ends."""

    __slots__ = ("_budget", "_is_released", "_threads", "size")

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._threads = 0
        self._is_released = False
        self.size = 0

    def set(self, size: int, what: str = "a body") -> None:
        """Changes the reservation.

        Args:
            size: bytes in all; less than before is always granted.
            what: needs the bytes, for the error.

        Raises:
            TooLarge: the budget never has so much for one request.
            Busy: it has not so much at the moment.
            Ended: the reservation was released.
        """
        if self._is_released:
            raise Ended
        if size != self.size:
            self._budget._change(self.size, size, what)
            self.size = size

    def count(self, size: int) -> None:
        """Changes the reservation without a check, for bytes that there are already."""
        self._budget._change(self.size, size, None)
        self.size = size

    def release(self) -> None:
        with self._budget._lock:
            self._is_released = True
            if self._threads:
                return
        self.count(0)

    def used_by(self, function: Callable[..., T]) -> Callable[..., T]:
        """The function, to be called in a thread, which may outlast the request."""

        def in_thread(*arguments: Any) -> T:
            with self._budget._lock:
                if self._is_released:
                    raise Ended
                self._threads += 1
            try:
                return function(*arguments)
            finally:
                with self._budget._lock:
                    self._threads -= 1
                    is_last = self._is_released and not self._threads
                if is_last:
                    self.count(0)

        return in_thread


def default_budget(roots: Iterable[Path] = (Path("/sys/fs/cgroup"),), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes: half of the container's memory if it is limited, otherwise a quarter of the machine's.

    Args:
        roots: where control groups are mounted.
        own: the file that names those of this process.
    """
    machine: int = psutil.virtual_memory().total
    limits = [limit for limit in map(_limit, _limit_files(roots, own)) if limit is not None and limit < _UNLIMITED]
    container = min(limits, default=machine)
    return max(_LEAST, container // 2 if container < machine else machine // 4)


def _limit_files(roots: Iterable[Path], own: Path) -> list[Path]:
    """The files that may limit this process, of its control groups and those above them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    files = []
    for root in roots:
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            base, name = (root / "memory", _CGROUP_V1) if controllers else (root, _CGROUP_V2)
            group = base / path.strip("/")
            files += [folder / name for folder in (group, *group.parents) if folder.is_relative_to(base)]
    return files


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such group, as inside a container; or "max"
        return None


def _megabytes(size: int) -> str:
    return f"{size / 1024**2:.1f} MB"
