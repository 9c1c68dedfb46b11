"""Errors of the training package that a user can act on: what we got, what we expected, what to do.

    TrainingError
    ├── RecordingError   a recording cannot be read, or what it holds contradicts itself
    ├── ScoringError     trials that must not or cannot be scored (the competition keeps their responses)
    ├── ConfigError      a configuration value, or two that contradict each other
    ├── CheckpointError  a checkpoint cannot be read, written or trusted
    └── DivergenceError  training produced NaN or infinity; the last good weights are kept

The same shape as `server.errors`, kept apart because only `training.export` may know the server.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DivergenceError",
    "RecordingError",
    "ScoringError",
    "TrainingError",
]


class TrainingError(Exception):
    """Base of every error that we raise for a user.

    Args:
        message: one sentence that says what is wrong.
        got: what was found, as a short printable value.
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
    """A recording that cannot be used; the message names the file."""


class ScoringError(TrainingError):
    """Trials whose responses must not be compared with predictions."""


class ConfigError(TrainingError):
    """A configuration that no model or run can be built from."""


class CheckpointError(TrainingError):
    """A checkpoint that cannot be read, written or trusted."""


class DivergenceError(TrainingError):
    """NaN or infinity in the loss; the message names the batch."""
