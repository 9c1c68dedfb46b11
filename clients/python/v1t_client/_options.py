"""The values of options on the command line: numbers, counts and lists, refused with what they should be."""

from __future__ import annotations

import argparse
import math

__all__ = ["count", "integers", "number", "numbers"]


def number(text: str) -> float:
    """An option's finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value


def count(text: str) -> int:
    """An option's whole number from 0; `500_000` and `500,000` are fine."""
    digits = text.replace("_", "").replace(",", "")
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no count (0, 1, 2, ...)")
    return int(digits)


def integers(text: str) -> tuple[int, ...]:
    """An option's list of whole numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 12,99,7") from None


def numbers(text: str) -> tuple[float, ...]:
    """An option's list of finite numbers."""
    return tuple(number(part) for part in text.split(","))
