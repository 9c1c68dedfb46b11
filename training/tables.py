"""Results as text: Markdown tables, scores and counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["counted", "markdown_table", "mean_and_sd", "number", "number_and_sd"]


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A count that agrees with its noun: "1 mouse", "2 mice"."""
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def number(value: float | None) -> str:
    """A score to three places; "-" where there is none."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"


def number_and_sd(mean: float, sd: float) -> str:
    """Mean and standard deviation to three places; "-" where there is none."""
    return f"{mean:.3f} ({sd:.3f})" if np.isfinite(mean) else "-"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, *rows)
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (divided by their number) of the finite values; NaN without any."""
    known = np.array([value for value in values if np.isfinite(value)])
    return (float(known.mean()), float(known.std())) if len(known) else (float("nan"), float("nan"))
