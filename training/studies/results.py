"""The results of a study: a table, JSON and a figure. An interrupted study has those of the finished trainings."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.checkpoints.checkpoint import source_commit
from training.evaluation.evaluate import SCORES
from training.figures import COLORS, COLUMN, PAGE, save_figure, styled
from training.files import write_files
from training.studies.catalog import CEILING, Study
from training.studies.comparisons import comparisons_text, draw_stars, mice_tables, relative_column
from training.studies.lines import Line
from training.studies.runner import UPDATES
from training.tables import markdown_table, number, number_and_sd

__all__ = ["SHOWN", "results_table", "write_results"]

SHOWN = ("single_trial_correlation", "correlation_to_average", "feve")


def results_table(study: Study, lines: Sequence[Line]) -> str:
    """A Markdown table: mean (sd over seeds) of the mean over mice, and the share of the line of comparison."""
    names = [name for name in (*SHOWN, UPDATES) if any(np.isfinite(line.over_seeds(name)[0]) for line in lines)]
    shares = {
        f"of the {study.against}" if share else f"relative to {against}": column
        for against, share in ((study.against, True), *((label, False) for label in study.relative))
        if any(column := relative_column(lines, against, share=share))
    }
    rows = []
    for i, line in enumerate(lines):
        row = [line.label] + (["" if line.x is None else f"{line.x:g}"] if study.axis else [])
        row += [_cell(name, *line.over_seeds(name), len(line.seeds)) for name in names]
        row += [column[i] for column in shares.values()]
        seeds = "" if line.label == CEILING else str(len(line.seeds))
        rows.append([*row, seeds + (f" ({line.failed} diverged)" if line.failed else "")])
    return markdown_table(["", *([study.axis] if study.axis else []), *names, *shares, "seeds"], rows)


def _cell(name: str, mean: float, sd: float, n: int) -> str:
    if name == UPDATES and np.isfinite(mean):
        return f"{mean:,.0f}"
    return number_and_sd(mean, sd) if n > 1 else number(mean)


def write_results(
    folder: Path,
    name: str,
    study: Study,
    lines: Sequence[Line],
    *,
    notes: Sequence[str],
    about: Mapping[str, Any],
    caption: str,
) -> list[Path]:
    """Writes NAME.md, NAME.json, NAME.png and NAME.pdf.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    text = [
        f"# {study.question[0].upper()}{study.question[1:]}",
        f"Means over neurons, then mice. In brackets: standard deviation over seeds. {caption}",
        results_table(study, lines),
        *notes,
        *mice_tables(lines, SHOWN, axis=study.axis, relative=study.relative),
        *comparisons_text(study.tests, lines, SHOWN[0], axis=study.axis),
        f"The paper ({study.where}): {study.paper}",
    ]
    content = {
        "study": name,
        "commit": source_commit(),
        **about,
        "caption": caption,
        "lines": [
            {
                "label": line.label,
                "x": line.x,
                "mean_and_sd_over_seeds": {score: line.over_seeds(score) for score in (*SCORES, UPDATES)},
                "seeds": line.seeds,
                "seed_numbers": line.numbers or tuple(range(len(line.seeds))),
                "diverged": line.failed,
            }
            for line in lines
        ],
        "notes": list(notes),
    }
    paths = write_files(folder, {f"{name}.md": "\n\n".join(text) + "\n", f"{name}.json": content})
    return paths + save_figure(draw(study, lines), folder, name, caption=caption)


def draw(study: Study, lines: Sequence[Line]) -> Figure:
    """Single-trial correlation against the study's axis, or as a column of seeds per line; the noise ceiling dashed."""
    shown = [line for line in lines if line.label != CEILING]
    with styled():
        many = study.axis is None and len(shown) >= 5
        named = study.axis is not None and any(len(one + other) > 20 for one, other in study.tests)  # beside the stars
        figure = Figure(figsize=(PAGE if many or named else COLUMN, 2.4))
        axes = figure.subplots()
        if study.axis is None:
            _draw_columns(axes, shown)
        else:
            _draw_curves(axes, shown, study.axis)
        for line in lines:
            if line.label == CEILING:
                axes.axhline(line.over_seeds(SHOWN[0])[0], color="0.4", linestyle="--", linewidth=1, label=CEILING)
        if study.axis is not None:
            draw_stars(axes, study.tests, shown, SHOWN[0])  # last, as it fixes the axis
        axes.set_ylabel("single-trial correlation")
        handles, labels = axes.get_legend_handles_labels()
        # Above the axes, since curves may cross any place inside; the noise ceiling is last.
        entries = sorted(zip(handles, labels, strict=True), key=lambda entry: entry[1] == CEILING)
        if entries:
            columns = min(len(entries), 2 if figure.get_figwidth() < PAGE else 4)
            rows = -(-len(entries) // columns)
            figure.set_figheight(figure.get_figheight() + 0.14 * rows)
            figure.legend(*zip(*entries, strict=True), loc="outside upper center", ncols=columns)
    return figure


def _draw_columns(axes: Axes, lines: Sequence[Line]) -> None:
    for i, line in enumerate(lines):
        values = line.values(SHOWN[0])
        color = COLORS[i % len(COLORS)]
        seed, mean = ("a seed, mean over mice", "mean over seeds") if i == 0 else ("_", "_")
        axes.plot(np.full(len(values), i), values, "o", color=color, alpha=0.7, label=seed)
        axes.hlines(line.over_seeds(SHOWN[0])[0], i - 0.25, i + 0.25, color=color, linewidth=2, label=mean)
    crowded = len(lines) > 9
    labels = [_wrapped(line.label, 11 if crowded else 14) for line in lines]
    axes.set_xticks(range(len(lines)), labels)
    if crowded:
        axes.tick_params(axis="x", labelsize=5)
    axes.set_xlim(-0.6, len(lines) - 0.4)


def _wrapped(label: str, width: int) -> str:
    """A label in lines that fit under a column, with a line break after each comma and colon."""
    parts = label.replace(", ", ",\n").replace(": ", ":\n").split("\n")
    return "\n".join(line for part in parts for line in textwrap.wrap(part, width=width))


def _draw_curves(axes: Axes, lines: Sequence[Line], axis: str) -> None:
    labels = list(dict.fromkeys(line.label for line in lines))
    systems = list(dict.fromkeys(label.split(",")[0] for label in labels))
    for label in labels:
        system = label.split(",")[0]
        # Lines of one system, "V1T, from the trials" and "V1T, at random", have one colour; the later ones are dashed.
        first = label == next(other for other in labels if other.split(",")[0] == system)
        color = COLORS[systems.index(system) % len(COLORS)]
        filled, dashes = (color, "-") if first else ("white", "--")
        own = {line.x: line.over_seeds(SHOWN[0]) for line in lines if line.label == label and line.x is not None}
        x = np.array(sorted(own))
        means, sds = np.array([own[place] for place in x]).T
        axes.errorbar(
            x, means, sds, marker="o", markerfacecolor=filled, capsize=2, color=color, linestyle=dashes, label=label
        )
    axes.set_xlabel(axis)
    axes.set_title("mean over mice; bars: sd over seeds")
