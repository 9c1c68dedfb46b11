"""Nested lists of JSON numbers to arrays. An element that is not a finite number is refused with its position."""

from __future__ import annotations

from typing import Any

import numpy as np

from server.errors import InvalidInput, brief

__all__ = ["as_float32", "is_number", "shape_of"]

_MAX_DEPTH = 4  # (B, C, H, W)


def is_number(value: Any) -> bool:
    """Whether the value is a JSON number; a bool is not."""
    return type(value) in (int, float)


def shape_of(value: Any, where: str, depth: int = 0) -> tuple[int, ...]:
    """The shape of a nested list of numbers. Raises InvalidInput if it is ragged or empty or holds something else."""
    if not isinstance(value, list):
        raise InvalidInput(f"{where} is not a list", got=brief(value), expected="lists of equal depth")
    if not value:
        raise InvalidInput(f"{where} is an empty list", got="[]", expected="numbers")
    if depth >= _MAX_DEPTH:
        raise InvalidInput(f"{where} is nested too deeply", expected=f"at most {_MAX_DEPTH} levels")
    if isinstance(value[0], list):
        first = shape_of(value[0], f"{where}[0]", depth + 1)
        for i, part in enumerate(value[1:], start=1):
            shape = shape_of(part, f"{where}[{i}]", depth + 1)
            if shape != first:
                raise InvalidInput(
                    f"{where} is ragged: {where}[{i}] differs from {where}[0]", got=shape, expected=first
                )
        return (len(value), *first)
    if not set(map(type, value)) <= {int, float}:
        i = next(i for i, number in enumerate(value) if not is_number(number))
        raise InvalidInput(f"{where}[{i}] is not a number", got=brief(value[i]), expected="a number")
    return (len(value),)


def as_float32(array: np.ndarray, where: str) -> np.ndarray:
    """The array in float32. Raises InvalidInput if a value is not finite there."""
    with np.errstate(over="ignore", invalid="ignore"):
        narrowed = array.astype(np.float32)
    if not np.isfinite(narrowed).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(narrowed))[0])
        raise InvalidInput(
            f"{where} holds a value that is not finite in float32",
            got=f"{array[index]} at {list(index)}" if index else brief(float(array)),
            expected="finite numbers",
        )
    return narrowed
