"""Counts of replies: statuses, wrong replies, lost requests and times; and the report of a run."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reliability.protocols import Reply
from reliability.questions import Question

__all__ = ["Report", "Tally", "markdown", "percentile"]

_SHOWN = 10


@dataclass(frozen=True)
class Report:
    """The result of a run.

    Attributes:
        text: Markdown, for docs/reliability.md.
        problems: violations of what the run checks; empty if it passed.
    """

    text: str
    problems: Sequence[str]


@dataclass
class Row:
    """The counts of one protocol."""

    requests: int = 0
    images: int = 0
    wrong: int = 0
    lost: int = 0
    seconds: list[float] = field(default_factory=list)  # of each answered request


@dataclass
class Tally:
    """The counts of one run.

    Attributes:
        problems: messages for the first few problems.
    """

    start: float = field(default_factory=time.perf_counter)
    rows: defaultdict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    statuses: Counter[int] = field(default_factory=Counter)
    hashes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0
    without_retry_after: int = 0

    def take(self, protocol: str, question: Question, reply: Reply, seconds: float) -> None:
        """Counts a reply, and compares it with the answer of the bundle whose hash it states."""
        row = self.rows[protocol]
        row.requests += 1
        self.statuses[reply.status] += 1
        if reply.arrays is None:
            if reply.status in (429, 503) and reply.retry_after is None:
                self.without_retry_after += 1
            return
        row.images += len(question)
        row.seconds.append(seconds)
        self.hashes[reply.hash] += 1
        answer = question.answers.get(reply.hash)
        problem = f"unknown bundle {reply.hash[:12]}" if answer is None else answer.differs(reply.arrays)
        if reply.mouse != question.mouse:
            problem = f"mouse {reply.mouse} instead of {question.mouse}"
        if problem is not None:
            row.wrong += 1
            self.complain(f"{protocol}, {question.kind}, {len(question)} images: {problem}")

    def lose(self, protocol: str, error: BaseException) -> None:
        """Counts a request without a reply."""
        self.rows[protocol].requests += 1
        self.rows[protocol].lost += 1
        self.complain(f"{protocol}: {type(error).__name__}: {error}")

    def complain(self, problem: str) -> None:
        self.problem_count += 1
        if len(self.problems) < _SHOWN:
            self.problems.append(problem)

    def allow(self, *statuses: int) -> None:
        """Reports every other status as a problem."""
        for status, count in self.statuses.items():
            if status not in statuses:
                self.complain(f"status {status}, {count} times")

    @property
    def seconds(self) -> list[float]:
        return [one for row in self.rows.values() for one in row.seconds]

    @property
    def wrong(self) -> int:
        return sum(row.wrong for row in self.rows.values())

    @property
    def lost(self) -> int:
        return sum(row.lost for row in self.rows.values())

    def table(self) -> str:
        """A Markdown table, one row per protocol."""
        duration = time.perf_counter() - self.start
        total = Row()
        lines = []
        for name, row in [*self.rows.items(), ("**all**", total)]:
            lines.append(
                (
                    name,
                    f"{row.requests:,}",
                    f"{row.images:,}",
                    f"{row.requests / duration:,.1f}",
                    f"{row.images / duration:,.1f}",
                    f"{1e3 * percentile(row.seconds, 50):,.0f}",
                    f"{1e3 * percentile(row.seconds, 99):,.0f}",
                    row.wrong,
                    row.lost,
                )
            )
            total.requests += row.requests
            total.images += row.images
            total.seconds += row.seconds
            total.wrong += row.wrong
            total.lost += row.lost
        head = ("protocol", "requests", "images", "requests/s", "images/s", "p50 ms", "p99 ms", "wrong", "lost")
        counts = ", ".join(f"{status}: {count:,}" for status, count in sorted(self.statuses.items()))
        return f"{markdown(head, lines)}\n\nStatuses: {counts}."


def markdown(head: Iterable[object], lines: Iterable[Iterable[object]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    head = list(head)
    rows = [f"| {' | '.join(map(str, row))} |" for row in [head, *lines]]
    rows.insert(1, "|" + "|".join(["---", *["--:"] * (len(head) - 1)]) + "|")
    return "\n".join(rows)


def percentile(values: list[float], percent: int) -> float:
    """A percentile of the values; 0 if there are none."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
