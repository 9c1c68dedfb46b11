"""Figures of scores: their distribution over neurons, and each neuron's score against its noise ceiling."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from training.evaluation.evaluate import MouseScores
from training.figures import COLORS, COLUMN, PAGE, styled, violin
from training.metrics import FEV_THRESHOLD
from training.tables import mean_and_sd

__all__ = ["counted_values", "draw_ceiling", "draw_distributions"]

PANELS = {
    "single_trial_correlation": "single-trial correlation",
    "correlation_to_average": "correlation to average",
    "feve": "FEVE",
    "ccnorm": "CCnorm",
}
RELIABLE_ONLY = ("feve", "ccnorm")  # meaningless where there is no variance to explain
SHOWN = (1, 99)  # percentiles of the outline: a few outliers would stretch the axis


def draw_distributions(systems: Mapping[str, Mapping[str, MouseScores]]) -> Figure:
    """A panel per score: each mouse's distribution over neurons with quartiles and median, in a colour per system."""
    mice = list(dict.fromkeys(mouse_id for scores in systems.values() for mouse_id in scores))
    all_scores = [mouse for scores in systems.values() for mouse in scores.values()]
    names = [name for name in PANELS if any(name in mouse.neurons for mouse in all_scores)]
    columns = min(len(names), 2 if len(mice) * len(systems) <= 10 else 1)
    rows = -(-len(names) // columns)
    with styled():
        figure = Figure(figsize=(PAGE if len(names) > 1 else COLUMN, 2.1 * rows))
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(grid, names, strict=False):
            for i, scores in enumerate(systems.values()):
                place = (i - (len(systems) - 1) / 2) * 0.8 / len(systems)
                for k, mouse_id in enumerate(mice):
                    values = counted_values(scores.get(mouse_id), name)
                    if len(values) > 1:
                        color = COLORS[i % len(COLORS)]
                        low, high = np.percentile(values, SHOWN)
                        inner = values[(values >= low) & (values <= high)]
                        violin(axes, k + place, inner, width=0.75 / len(systems), color=color, alpha=0.45)
                        _quartiles(axes, k + place, values, color)
            axes.set_xticks(range(len(mice)), mice)
            axes.set_xlim(-0.6, len(mice) - 0.4)
            axes.set(xlabel="mouse", ylabel=PANELS[name])
            first = next(iter(systems.values())).values()
            n = sum(len(counted_values(mouse, name)) for mouse in first)
            axes.set_title(f"n = {n:,} neurons" + (f" with FEV ≥ {FEV_THRESHOLD}" if name in RELIABLE_ONLY else ""))
            axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        handles: list[Artist] = [
            Patch(color="0.5", alpha=0.45, label=f"percentiles {SHOWN[0]} to {SHOWN[1]}"),
            Line2D([], [], color="0.5", linewidth=3, label="middle half"),
            Line2D([], [], color="0.5", marker="o", markerfacecolor="white", linestyle="", label="median"),
        ]
        if len(systems) > 1:
            handles += [Patch(color=COLORS[i % len(COLORS)], label=name) for i, name in enumerate(systems)]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5))
    return figure


def counted_values(mouse: MouseScores | None, name: str) -> np.ndarray:
    """A score of the neurons that its mean in the mouse's summary is over."""
    if mouse is None or name not in mouse.neurons:
        return np.zeros(0)
    values = mouse.neurons[name]
    if name in RELIABLE_ONLY:
        values = values[mouse.neurons["fev"] >= FEV_THRESHOLD]
    return values[np.isfinite(values)]


def _quartiles(axes: Axes, place: float, values: np.ndarray, color: str) -> None:
    low, median, high = np.percentile(values, (25, 50, 75))
    axes.plot([place, place], [low, high], color=color, linewidth=3, solid_capstyle="butt")
    axes.plot(place, median, "o", color="white", markeredgecolor=color, markersize=4)


def draw_ceiling(systems: Mapping[str, Mapping[str, MouseScores]]) -> Figure | None:
    """Per mouse, each neuron's single-trial correlation against its ceiling; None if no ceiling is known.

    The ceiling of a simulated mouse is the score of its true expected responses. That of a real mouse is estimated from
    repeats, as sqrt(FEV): the best that the image alone can do, so a twin that uses behaviour can exceed it.
    """
    panels = [
        (system, mouse, known)
        for system, scores in systems.items()
        for mouse in scores.values()
        if (known := _ceiling(mouse)) is not None
    ]
    if not panels:
        return None
    worst = min(float(np.nanmin(mouse.neurons["single_trial_correlation"])) for _, mouse, _ in panels)
    lowest = min(worst - 0.03, -0.1)
    most = max(len(scores) for scores in systems.values())
    columns = min(len(panels), 4 if 1 in (len(systems), most) else most)  # otherwise a row per system
    rows = -(-len(panels) // columns)
    with styled():
        width = PAGE if columns > 1 else COLUMN
        figure = Figure(figsize=(width, rows * min(width / columns, COLUMN) + 0.3))
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (system, mouse, (ceiling, label)) in zip(grid, panels, strict=False):
            reached = mouse.neurons["single_trial_correlation"]
            both = np.isfinite(ceiling) & np.isfinite(reached)
            size = float(np.clip(3000 / len(reached), 2, 16))
            axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, zorder=0, label="equal")
            marks = {"s": size, "color": COLORS[0], "alpha": 0.5, "linewidths": 0, "rasterized": True}
            axes.scatter(ceiling[both], reached[both], **marks, label=f"a neuron (n = {both.sum():,})")
            means = mouse.summary["single_trial_correlation"], mean_and_sd(ceiling.tolist())[0]  # as in the table
            title = f"mouse {mouse.mouse_id}: mean {means[0]:.3f} of {means[1]:.3f}"
            axes.set_title(f"{system}\n{title}" if len(systems) > 1 else title)
            axes.set(xlabel=label, ylabel="single-trial correlation", aspect="equal")
            axes.tick_params(labelbottom=True, labelleft=True)
            axes.set(xlim=(lowest, 1), ylim=(lowest, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axes.legend(loc="upper left")
    return figure


def _ceiling(mouse: MouseScores) -> tuple[np.ndarray, str] | None:
    if mouse.ceiling is not None:
        return mouse.ceiling, "ceiling: the true responses"
    if "fev" in mouse.neurons:
        return np.sqrt(np.maximum(mouse.neurons["fev"], 0)), "ceiling from repeats, √FEV"
    return None
