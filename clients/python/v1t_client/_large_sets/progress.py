"""The progress line of a long call: one line on a terminal, nothing elsewhere."""

from __future__ import annotations

import shutil
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
        label: what is done, at the beginning of the line. It then says what is counted.
        at_most: the call may end before the total.
    """

    def __init__(
        self,
        total: int | None,
        *,
        done: int = 0,
        shown: bool | None = None,
        stream: TextIO | None = None,
        label: str = "",
        at_most: bool = False,
    ) -> None:
        self._stream: TextIO | None = sys.stderr if stream is None else stream  # None without a console
        self._shown = self._stream is not None and (self._stream.isatty() if shown is None else shown)
        self._total, self._first, self._done = total, done, done
        self._label, self._at_most = label, at_most
        self._start = time.monotonic()
        self._next = self._start + _EVERY

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._write("")

    def update(self, done: int) -> None:
        """Sets how many images are done, and prints the line if the last one is old enough."""
        self._done = done
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + _EVERY
            self._write(self.line(now)[: shutil.get_terminal_size().columns - 1])

    def advance(self, n: int) -> None:
        """As `update`, with the number that was done since."""
        self.update(self._done + n)

    def line(self, now: float) -> str:
        """`3,200 of 10,000 images, 412/s, 17 s left`; with a label, `sizes: 32 of 150, 4/s, 30 s left`."""
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        number = f"{self._label}: {{:,}}".format if self._label else lambda n: count(n, "image")
        if self._total is None:
            return f"{number(self._done)}, {rate:.3g}/s"
        bound = "at most " if self._at_most else ""
        left = "" if rate <= 0 else f", {bound}{_duration((self._total - self._done) / rate)} left"
        if self._label:
            return f"{number(self._done)} of {bound}{self._total:,}, {rate:.3g}/s{left}"
        return f"{self._done:,} of {bound}{number(self._total)}, {rate:.3g}/s{left}"

    def _write(self, line: str) -> None:
        if self._shown and self._stream is not None:
            try:
                self._stream.write(f"\r\x1b[K{line}")
                self._stream.flush()
            except (OSError, ValueError):  # the terminal was closed; the call continues
                self._shown = False


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
