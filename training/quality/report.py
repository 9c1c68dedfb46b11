"""The quality report of recordings: Markdown with a figure for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.data.leaks import leaks_text
from training.data.recordings import Recording
from training.figures import COLORS, PAGE, save_figure, styled
from training.files import write_files
from training.metrics import FEV_THRESHOLD
from training.quality.alignment import PRESENT, SHIFTS, Measure
from training.quality.checks import Quality
from training.tables import counted, markdown_table, number, simulated_note

__all__ = ["write_report"]

REPORT = "report.md"


def write_report(folder: Path, found: Sequence[tuple[Recording, Quality]]) -> list[Path]:
    """Writes report.md, and quality-MOUSE.png and .pdf for each recording.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    paths = write_files(folder, {REPORT: "\n".join(_text(found))})
    for recording, quality in found:
        paths += save_figure(_figure(quality), folder, _name(recording), caption=_caption(recording))
    return paths


def _name(recording: Recording) -> str:
    return f"quality-{recording.mouse_id}"


def _caption(recording: Recording) -> str:
    about = f"Mouse {recording.mouse_id}, {counted(recording.n_neurons, 'neuron')}, {recording.path.name}."
    return " ".join(filter(None, [about, simulated_note([recording.mouse_id] if recording.simulated else [])]))


def _text(found: Sequence[tuple[Recording, Quality]]) -> list[str]:
    lines = ["# Quality of recordings", ""]
    for recording, quality in found:
        lines += [f"## {recording.mouse_id}", "", _caption(recording), ""]
        lines += (
            ["Look at this before training:", "", *(f"- **{flag}**" for flag in quality.flags), ""]
            if (quality.flags)
            else ["Nothing that speaks against training on it was found.", ""]
        )
        lines += [f"![quality of {recording.mouse_id}]({_name(recording)}.png)", ""]
        lines += [markdown_table(("check", "found", "means"), _rows(recording, quality)), ""]
        if quality.coverage:
            header = ("behaviour", "1st percentile", "median", "99th percentile", "SD")
            rows = [(name, *(f"{value:.3g}" for value in values)) for name, values in quality.coverage.items()]
            lines += [markdown_table(header, rows), ""]
        if quality.leaks is not None:
            lines += ["```", leaks_text(quality.leaks), "```", ""]
    return lines


def _rows(recording: Recording, quality: Quality) -> list[tuple[str, str, str]]:
    rows = []
    if quality.reliability is None:
        rows.append(("split-half reliability", "-", "needs three images that were repeated"))
    else:
        fev = quality.fev if quality.fev is not None else np.empty(0)
        known = fev[np.isfinite(fev)]
        share = float((known >= FEV_THRESHOLD).mean()) if len(known) else float("nan")
        rows += [
            ("split-half reliability", number(float(quality.reliability.mean())), "of the mean over repeats"),
            ("FEV", number(float(known.mean()) if len(known) else None), "share of variance that images explain"),
            (f"neurons with FEV >= {FEV_THRESHOLD}", f"{share:.0%}", "those that the FEVE is reported of"),
        ]
    alignment = quality.alignment
    if alignment is not None:
        for name, measure in (("trials of an image agree", alignment.repeats), ("images predict", alignment.relation)):
            if measure is not None:
                rows.append((name, f"{measure.value:.3f}, z = {measure.z[SHIFTS]:.1f}", f"z below {PRESENT:g}: chance"))
    if len(quality.drift):
        first, last = quality.drift[:2].mean(), quality.drift[-2:].mean()
        rows.append(("drift", f"{last / first:.2f}", "mean response, last tenth over first tenth"))
    else:
        rows.append(("drift", "-", "the order of trials in time is not known"))
    rows += [
        (
            "neurons that do not respond",
            f"{len(quality.dead)} of {recording.n_neurons}",
            "std below 1 % of the mean std",
        ),
        ("trials with a saturated image", str(len(quality.saturated)), "half of the pixels black or white"),
        ("trials with a blank image", str(len(quality.blank)), "no contrast"),
    ]
    if quality.running is not None:
        rows.append(("trials in which the mouse runs", f"{quality.running:.0%}", "at 1 cm/s or more"))
    return rows


def _figure(quality: Quality) -> Figure:
    with styled():
        figure = Figure(figsize=(PAGE, 1.9))
        reliability, shifts, drift, behavior = figure.subplots(1, 4)
        if quality.reliability is None:
            _nothing(reliability, "no repeated images")
        else:
            reliability.hist(quality.reliability.clip(-0.5, 1), bins=np.linspace(-0.5, 1, 31), color=COLORS[0])
        reliability.set(xlabel="split-half reliability", ylabel="neurons", title="Reliability")
        _draw_shifts(shifts, quality)
        if len(quality.drift):
            drift.plot((np.arange(len(quality.drift)) + 0.5) / len(quality.drift), quality.drift)
            drift.axhline(1, color="0.7", linewidth=0.6, zorder=0)
            drift.set_ylim(0, max(2.0, 1.1 * float(quality.drift.max())))
        else:
            _nothing(drift, "order in time not known")
        drift.set(xlabel="part of the session", ylabel="relative", title="Mean response")
        if quality.coverage:
            names = list(quality.coverage)
            for place, (low, middle, high, std) in enumerate(quality.coverage.values()):
                ends = [(low - middle) / max(std, 1e-12), (high - middle) / max(std, 1e-12)]
                behavior.plot(ends, [place, place], color=COLORS[0], linewidth=2)
                behavior.plot([0], [place], "o", color=COLORS[1], markersize=3)
            behavior.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
            behavior.set_ylim(len(names) - 0.5, -0.5)
        else:
            _nothing(behavior, "not recorded")
        behavior.set(xlabel="from the median [SD]", title="Behaviour")
    return figure


def _draw_shifts(axes: Axes, quality: Quality) -> None:
    alignment = quality.alignment
    measures: list[tuple[str, Measure | None]] = []
    if alignment is not None:
        measures = [("trials of an image", alignment.repeats), ("image predicts", alignment.relation)]
    for (name, measure), color in zip(measures, COLORS, strict=False):
        if measure is not None:
            axes.plot(range(-SHIFTS, SHIFTS + 1), measure.values, ".-", color=color, label=name)
    axes.axvline(0, color="0.7", linewidth=0.6, zorder=0)
    axes.set(xlabel="shift of images [trials]", ylabel="correlation", title="Trials and images")
    if axes.lines[1:]:
        axes.set_ylim(top=1.45 * max(float(m.values.max()) for _, m in measures if m is not None) + 0.01)
        axes.legend(loc="upper left")


def _nothing(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, fontsize=6)
    axes.set(xticks=[], yticks=[])
