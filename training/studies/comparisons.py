"""Lines of a study compared: relative columns, tables of every mouse, and tests with stars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from training.evaluation.statistics import Comparison, TTest, compare, stars
from training.studies.lines import Line
from training.tables import markdown_table, mean_and_sd, number, number_and_sd

__all__ = ["comparisons_text", "draw_stars", "mice_tables", "reference", "relative_column"]

MAIN = "single_trial_correlation"

TESTS_NOTE = (
    "difference: mean over seeds of the first minus the second, with its 95 % interval from pairs of equal seeds. "
    "t-test: two-sided, of independent samples: **** p < 0.0001, *** p < 0.001, ** p < 0.01, "
    "* p < 0.05. paired: t-test of pairs of equal seeds, which draw the same training trials; Holm: that p corrected "
    "for all comparisons of this table. effect: difference / sd of the differences, with Hedges' correction for few "
    "seeds, and its 95 % interval. Seeds are trainings, not animals: a difference holds for these mice."
)


def reference(lines: Sequence[Line], line: Line, label: str) -> Line | None:
    """The line that `line` is compared with: that of this label, at its place on the axis.

    In a study with several systems, such as "CNN: direct" and "V1T: direct", it is the one of its own system.
    """
    system = line.label.partition(": ")[0]
    wanted = f"{system}: {label}" if ": " in line.label else label
    return next((other for other in lines if other.label == wanted and other.x in (line.x, None)), None)


def relative_column(lines: Sequence[Line], label: str, *, share: bool) -> list[str]:
    """For each line its score as a share of the line with this label, or its relative difference; "" for itself."""
    return [_relative(line, reference(lines, line, label), share=share) for line in lines]


def _relative(line: Line, against: Line | None, *, share: bool, mouse_id: str | None = None) -> str:
    if against is None or against is line:
        return ""
    own, other = (
        one.over_seeds(MAIN)[0] if mouse_id is None else one.of_mouse(mouse_id, MAIN)[0] for one in (line, against)
    )
    if not (np.isfinite(own) and other > 0):  # a share of a correlation below 0 says nothing
        return ""
    return f"{100 * own / other:.1f} %" if share else f"{100 * (own / other - 1):+.1f} %"


def mice_tables(
    lines: Sequence[Line], scores: Sequence[str], *, axis: str | None, relative: Sequence[str] = ()
) -> list[str]:
    """For each score a table with a column per mouse: mean over seeds (sd over seeds), and the mean (sd) over mice.

    Args:
        relative: labels of lines; each mouse's relative difference to them in single-trial correlation is a table, too.
    """
    mice = list(dict.fromkeys(mouse for line in lines for seed in line.seeds for mouse in seed))
    if len(mice) < 2:
        return []
    header = ["", *([] if axis is None else [axis]), *mice]
    parts = []
    for score in scores:
        rows = []
        for line in lines:
            of_mice = [line.of_mouse(mouse, score) for mouse in mice]
            cells = [number_and_sd(*one) if len(line.seeds) > 1 else number(one[0]) for one in of_mice]
            rows.append([*_head(line, axis), *cells, number_and_sd(*mean_and_sd([mean for mean, _ in of_mice]))])
        if any(cell != "-" for row in rows for cell in row[len(header) - len(mice) :]):
            about = f"{score}, mean (sd) over seeds of every mouse, and mean (sd) over mice:"
            parts += [about, markdown_table([*header, "mean (sd) over mice"], rows)]
    for label in relative:
        rows = []
        for line in lines:
            against = reference(lines, line, label)
            cells = [_relative(line, against, share=False, mouse_id=mouse) for mouse in mice]
            if any(cells):
                rows.append([*_head(line, axis), *cells])
        if rows:
            parts += [f"{MAIN} of every mouse, relative to {label}:", markdown_table(header, rows)]
    return parts


def _head(line: Line, axis: str | None) -> list[str]:
    return [line.label] + ([] if axis is None else ["" if line.x is None else f"{line.x:g}"])


def compared(
    tests: Sequence[tuple[str, str]], lines: Sequence[Line], score: str
) -> list[tuple[Line, Line, Comparison]]:
    """The pairs of lines that a study tests, at every place of its axis where both have two or more seeds."""
    pairs = [
        (a, b)
        for one, other in tests
        for a in lines
        if a.label == one and (b := next((b for b in lines if (b.label, b.x) == (other, a.x)), None)) is not None
        if min(len(a.by_seed(score)), len(b.by_seed(score))) > 1
    ]
    found = compare([(a.by_seed(score), b.by_seed(score)) for a, b in pairs])
    return [(a, b, comparison) for (a, b), comparison in zip(pairs, found, strict=True)]


def comparisons_text(
    tests: Sequence[tuple[str, str]], lines: Sequence[Line], score: str, *, axis: str | None
) -> list[str]:
    """The tests of a study as a table with its note; empty if no pair has two seeds."""
    rows = []
    for a, b, found in compared(tests, lines, score):
        where = [] if axis is None else ["" if a.x is None else f"{a.x:g}"]
        paired = found.paired
        rows.append(
            [
                f"{a.label} - {b.label}",
                *where,
                str(paired.n),
                f"{paired.difference:+.3f}{_interval(paired, paired.interval, 3)}",
                _p(found.independent.p),
                _p(paired.p),
                _p(found.p_holm),
                _effect(paired),
            ]
        )
    if not rows:
        return []
    header = ["", *([] if axis is None else [axis]), "pairs", "difference", "t-test", "paired", "Holm", "effect"]
    return [f"Tests of the {score.replace('_', ' ')} over seeds:", markdown_table(header, rows), TESTS_NOTE]


def _effect(test: TTest) -> str:
    return f"{test.effect:.1f}{_interval(test, test.effect_interval, 1)}" if np.isfinite(test.effect) else "-"


def _interval(test: TTest, interval: tuple[float, float], places: int) -> str:
    return f" [{interval[0]:+.{places}f}, {interval[1]:+.{places}f}]" if np.isfinite(test.p) else ""


def _p(p: float) -> str:
    return "-" if not np.isfinite(p) else f"{p:.3f} {stars(p)}" if p >= 0.001 else f"{p:.1e} {stars(p)}"


def draw_stars(axes: Axes, tests: Sequence[tuple[str, str]], lines: Sequence[Line], score: str) -> None:
    """A row of stars for each pair of systems under the curves: the t-test of independent samples, as in the paper."""
    found = compared(tests, lines, score)
    drawn = list(dict.fromkeys((a.label, b.label) for a, b, _ in found))
    if not drawn:
        return
    low, high = axes.get_ylim()
    step = 0.07 * (high - low)
    axes.set_ylim(low - step * (len(drawn) + 0.5), high)
    for row, pair in enumerate(drawn):
        y = low - step * (row + 0.5)
        axes.annotate(
            f"{pair[0]} - {pair[1]}", (1, y), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            fontsize=5, va="center",
        )  # fmt: skip
        for a, b, comparison in found:
            if (a.label, b.label) == pair and a.x is not None:
                axes.text(a.x, y, stars(comparison.independent.p), fontsize=5, ha="center", va="center")
