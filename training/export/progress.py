"""The progress of an export: which graph, how long it took, and how long the rest will take."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from training.tables import counted

__all__ = ["Progress"]

# What a graph of each kind costs the first time, relative to the others, as measured; later ones take its template.
COSTS = {"core_gradient": 8.0, "core": 2.0, "readout_gradient": 2.0, "twin": 8.0}
FROM_TEMPLATE = 0.05


class Progress:
    """Prints where an export is: on one line that changes in a terminal, and otherwise on a line per group of graphs.

    Args:
        paths: of all graphs, in their order.
    """

    def __init__(self, paths: Iterable[str], stream: TextIO | None = None) -> None:
        self.costs: dict[str, float] = {}
        seen: Counter[str] = Counter()
        for path in paths:
            kind = _kind(path)
            self.costs[path] = FROM_TEMPLATE if seen[kind] else COSTS.get(kind, 1.0)
            seen[kind] += 1
        self.stream = sys.stderr if stream is None else stream
        self.started = time.monotonic()
        self.done = 0.0
        self.n_done = 0
        self.group = ""
        self.group_started = self.started

    def before(self, path: str) -> None:
        if self.stream.isatty():
            about = f"[{self.n_done + 1}/{len(self.costs)}] {_words(path)}, {self.seconds:.0f} s{self.rest()}"
            self.stream.write(f"\r\033[K{about}")
            self.stream.flush()
        elif self.group not in ("", _group(path)):
            self.end_group()
        self.group = _group(path)

    def after(self, path: str) -> None:
        self.done += self.costs[path]
        self.n_done += 1

    def finish(self) -> None:
        if self.stream.isatty():
            self.stream.write("\r\033[K")
        elif self.group:
            self.end_group()
        print(f"{counted(self.n_done, 'graph')} exported in {self.seconds:.1f} s", file=self.stream, flush=True)

    def end_group(self) -> None:
        now = time.monotonic()
        where = f"[{self.n_done}/{len(self.costs)}]"
        print(f"{where} {self.group}: {now - self.group_started:.1f} s{self.rest()}", file=self.stream, flush=True)
        self.group_started = now

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def rest(self) -> str:
        """The time left, from the time so far."""
        left = sum(self.costs.values()) - self.done
        return f", about {self.seconds / self.done * left:.0f} s left" if self.done and left > 1e-9 else ""


def _kind(path: str) -> str:
    """ "mice/A/member0.readout.onnx" -> "readout"."""
    return path.rsplit("/", 1)[-1].removesuffix(".onnx").split(".")[-1]


def _group(path: str) -> str:
    folder, name = path.split("/")[:2]
    return f"mouse {name}" if folder == "mice" else "cores"


def _words(path: str) -> str:
    """ "mice/A/member0.readout.onnx" -> "mouse A, member 0: readout"."""
    folder, name, file = path.split("/", 2)
    words = _kind(path).replace("_", " ")
    if folder == "members":
        return f"member {name}: {words}"
    member = file.split(".")[0].removeprefix("member")
    return f"mouse {name}, member {member}: {words}" if member.isdecimal() else f"mouse {name}: {words}"
