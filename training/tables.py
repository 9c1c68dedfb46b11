"""Results as text: Markdown tables, scores and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["caption", "counted", "markdown_table", "mean_and_sd", "number", "number_and_sd", "simulated_note"]


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A count that agrees with its noun: "1 mouse", "2 mice"."""
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def simulated_note(mice: Sequence[str]) -> str | None:
    """A sentence that says which mice are simulated; None if there are none."""
    if not mice:
        return None
    if len(mice) == 1:
        return f"Mouse {mice[0]} is simulated: no animal was recorded."
    return f"Mice {', '.join(mice[:-1])} and {mice[-1]} are simulated: no animal was recorded."


def caption(model: str, neurons: Mapping[str, int], *, trials: str, simulated: Sequence[str]) -> str:
    """What a figure shows, for its foot: the model, the mice and their numbers of neurons, and which are simulated.

    Args:
        neurons: mouse_id -> the number of neurons.
        trials: such as "test trials".
    """
    mice = ", ".join(f"{mouse_id} ({counted(n, 'neuron')})" for mouse_id, n in neurons.items())
    about = f"{model}; {'mouse' if len(neurons) == 1 else 'mice'} {mice}; {trials}."
    return " ".join(filter(None, [about, simulated_note(simulated)]))


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
