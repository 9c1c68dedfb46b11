"""Types of command line options: each converts the text of an option, or refuses it with an example."""

from __future__ import annotations

import argparse
import math

__all__ = ["count", "integers", "named_number", "number", "numbers", "positive", "words"]


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def named_number(text: str) -> tuple[str, float]:
    """A name and a finite number, such as whisking=0.3."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as whisking=0.3")
    return name, number(value)


def positive(text: str) -> float:
    """A finite number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def count(text: str) -> int:
    """A whole number from 0; `500_000` and `500,000` are fine."""
    digits = text.replace("_", "").replace(",", "")
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a count (0, 1, 2, ...)")
    return int(digits)


def integers(text: str) -> tuple[int, ...]:
    """A list of whole numbers, separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 12,99,7") from None


def numbers(text: str) -> tuple[float, ...]:
    """A list of finite numbers, separated by commas."""
    return tuple(number(part) for part in text.split(","))


def words(text: str) -> tuple[str, ...]:
    """A list of words, separated by commas."""
    return tuple(text.split(","))
