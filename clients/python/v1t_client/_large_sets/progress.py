"""The progress line of a long call: one line on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from v1t_client._answers.prediction import count

__all__ = ["Progress"]

_EVERY = 0.2  # seconds between two updates of the line


class Progress:
    """A line with the number of images done, the rate and the time left.

    Args:
        total: number of images; None where it is not known.
        done: images that an earlier call has done.
        shown: whether to print; None: only if the stream is a terminal.
    """

    def __init__(
        self, total: int | None, *, done: int = 0, shown: bool | None = None, stream: TextIO | None = None
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty() if shown is None else shown
        self._total, self._first, self._done = total, done, done
        self._start = time.monotonic()
        self._next = self._start + _EVERY

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def update(self, done: int) -> None:
        """Sets how many images are done, and prints the line if the last one is old enough."""
        self._done = done
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + _EVERY
            self._stream.write(f"\r\x1b[K{self.line(now)}")
            self._stream.flush()

    def line(self, now: float) -> str:
        """`3,200 of 10,000 images, 412/s, 17 s left`."""
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        if self._total is None:
            return f"{count(self._done, 'image')}, {rate:.3g}/s"
        left = "" if rate <= 0 else f", {_duration((self._total - self._done) / rate)} left"
        return f"{self._done:,} of {count(self._total, 'image')}, {rate:.3g}/s{left}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
