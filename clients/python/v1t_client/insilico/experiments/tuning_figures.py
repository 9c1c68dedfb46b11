"""Figures of tuning: orientation curves of single neurons, and the preferences of the population."""

from __future__ import annotations

from typing import Any

import numpy as np

from v1t_client.insilico.framework import plotting as figures
from v1t_client.insilico.framework.result import Result

__all__ = ["draw"]

SHOWN = 20


def draw(result: Result) -> dict[str, Any]:
    """File name -> figure."""
    drawn = {"orientation": _orientation(result), "population": _population(result)}
    if "size_response" in result.dataset:
        drawn["sizes"] = _sizes(result)
    return drawn


def _orientation(result: Result) -> Any:
    """Response by orientation at the best frequency, over one period, of the neurons with the highest OSI.

    The last row is of neurons with two peaks, whose OSI is low, if there are any.
    """
    data = result.dataset
    order = np.argsort(-data["osi"].values, kind="stable")
    is_double = np.isfinite(data["second_orientation"].values[order])
    doubles = order[is_double][:5]
    rows = [*order[~is_double][: SHOWN - len(doubles)], *doubles]
    made, axes = figures.axes_grid(len(rows), columns=5, height=1.05)
    degrees = data["orientation"].values
    for axis, row in zip(axes, rows, strict=True):
        one = data.isel(neuron=row)
        best = int(one["response"].max("orientation").argmax("frequency"))
        curve = one["response"].values[:, best]
        axis.plot([*degrees, 180], [*curve, curve[0]], color=figures.INK, marker=".", label="response")
        marks = (("preferred_orientation", "-", "preferred orientation"), ("second_orientation", "--", "second peak"))
        for name, style, label in marks:
            if np.isfinite(one[name]):
                axis.axvline(float(one[name]), color=figures.ACCENT, linewidth=0.8, linestyle=style, label=label)
        axis.set_ylim(0, None)
        axis.set_xticks([0, 90, 180])
        peaks = ", two peaks" if np.isfinite(one["second_orientation"]) else ""
        axis.set_title(f"{int(one['neuron'])}  OSI {float(one['osi']):.2f}{peaks}", fontsize=6)
    figures.shared_legend(made, axes)
    figures.common_labels(made, "orientation of a grating at the neuron's best frequency [deg]", "response [std]")
    return made


def _population(result: Result) -> Any:
    data = result.dataset
    made = figures.figure(figures.PAGE, 1.8)
    axes = made.subplots(1, 4)
    tuned = ((data["osi_p"] < 0.01) & data["orientation_ok"]).values
    unit = data["frequency"].attrs["units"]
    edges = np.geomspace(data["frequency"].values[0] / 1.2, data["frequency"].values[-1] * 1.2, 13)
    panels = (
        (
            data["preferred_orientation"].values[tuned],
            np.linspace(0, 180, 13),
            "preferred orientation [deg]\n(tuned, one peak)",
        ),
        (data["osi"].values, np.linspace(0, 1, 21), "OSI"),
        (data["preferred_frequency"].values, edges, f"preferred frequency\n[{unit}]"),
        (
            data["c50"].values[data["contrast_ok"].values],
            np.linspace(0, 1, 21),
            "c50, Michelson contrast\n(saturating fit)",
        ),
    )
    for axis, (values, bins, label) in zip(axes, panels, strict=True):
        figures.histogram(axis, values, bins)
        axis.set_xlabel(label)
        axis.set_title(f"n = {np.isfinite(values).sum():,}")
    axes[2].set_xscale("log")
    axes[2].minorticks_off()
    ticks = data["frequency"].values[[0, len(data["frequency"]) // 2, -1]]
    axes[2].set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    for axis in axes[1:]:
        axis.set_ylabel("")
    return made


def _sizes(result: Result) -> Any:
    data = result.dataset
    order = np.argsort(-np.nan_to_num(data["suppression_index"].values, nan=-1), kind="stable")
    rows = order[data["size_ok"].values[order]][:SHOWN]
    made, axes = figures.axes_grid(max(len(rows), 1), columns=5, height=1.05)
    for axis, row in zip(axes, rows, strict=False):
        one = data.isel(neuron=row)
        axis.plot(data["diameter"], one["size_response"], color=figures.INK, marker=".", label="response")
        axis.axhline(
            float(one["blank_response"]), color=figures.GREY, linewidth=0.8, label="response to the blank screen"
        )
        preferred = float(one["preferred_diameter"])
        axis.axvline(preferred, color=figures.ACCENT, linewidth=0.8, label="preferred diameter")
        axis.set_ylim(0, None)
        axis.set_title(f"{int(one['neuron'])}  SI {float(one['suppression_index']):.2f}", fontsize=6)
    figures.shared_legend(made, axes)
    figures.common_labels(made, f"diameter [{data['diameter'].attrs['units']}]", "response [std]")
    return made
