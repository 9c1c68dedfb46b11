"""Notes: what a server says about the inputs of a prediction, such as that they are outside what was recorded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

__all__ = ["Note", "merged"]


@dataclass(frozen=True)
class Note:
    """A note of the server.

    Attributes:
        code: `outside_recording` or `standardized_inputs`; later servers may have more.
        input: which input it is about, such as "image" or "running_speed"; None for the whole request.
        message: the note in words.
        count: how many replies had a note of this code about this input; `message` is that of the first.
    """

    code: str
    input: str | None
    message: str
    count: int = 1

    def __str__(self) -> str:
        more = self.count - 1
        return self.message if more == 0 else f"{self.message} (and in {more:,} more repl{'y' if more == 1 else 'ies'})"


def merged(notes: Iterable[Note]) -> tuple[Note, ...]:
    """One note per code and input, with the sum of their counts, in the order of their first occurrence."""
    found: dict[tuple[str, str | None], Note] = {}
    for note in notes:
        key = (note.code, note.input)
        found[key] = replace(found[key], count=found[key].count + note.count) if key in found else note
    return tuple(found.values())
