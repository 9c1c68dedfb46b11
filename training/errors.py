"""Errors of the training package that a user can act on: what was got, what was expected, and what to do.

    TrainingError
    ├── RecordingError   a recording cannot be read, or is inconsistent
    ├── ScoringError     trials cannot be scored, for example because the competition withholds their responses
    ├── ConfigError      an invalid option, or options that contradict each other
    ├── CheckpointError  a checkpoint, run or result cannot be read, written or trusted
    └── DivergenceError  training produced NaN or infinity; the last good weights are kept

They have the form of `server.errors`, but only `training.export` may import the server.
"""

from __future__ import annotations

from typing import Any

__all__ = ["CheckpointError", "ConfigError", "DivergenceError", "RecordingError", "ScoringError", "TrainingError"]


class TrainingError(Exception):
    """Base class of the errors of this package.

    Args:
        message: what is wrong, in one sentence.
        got: the value that was found, in short.
        expected: what would have been accepted.
        hint: what to do next.
    """

    def __init__(self, message: str, *, got: Any = None, expected: Any = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.got = got
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        text = "; ".join(parts)
        return f"{text}. {self.hint}" if self.hint else text


class RecordingError(TrainingError):
    """A recording cannot be used; the message names the recording and the file."""

    def within(self, recording: str) -> RecordingError:
        """The same error, with the recording named before the file unless the message names it already."""
        if recording in self.message:
            return self
        return RecordingError(f"{recording}: {self.message}", got=self.got, expected=self.expected, hint=self.hint)


class ScoringError(TrainingError):
    """Trials cannot be scored."""


class ConfigError(TrainingError):
    """A model or a run cannot be built from its configuration."""


class CheckpointError(TrainingError):
    """A checkpoint, run or result cannot be read, written or trusted."""


class DivergenceError(TrainingError):
    """The loss or a weight became NaN or infinite; the message names the batch."""
