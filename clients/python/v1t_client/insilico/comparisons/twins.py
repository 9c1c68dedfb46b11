"""The receptive fields of two twins of one mouse, unit by unit (paper, Fig. 3a-b and A.2).

    sigma_x^2 = (major cos angle)^2 + (minor sin angle)^2      sigma_y^2 = (major sin angle)^2 + (minor cos angle)^2

are the horizontal and the vertical standard deviation of a fitted Gaussian. They do not depend on which of its axes is
called the major one, so units with round fields, whose angle is arbitrary, are compared as well.

Compared are units whose field is reliable in both twins. As in the paper (A.5), fits that are wide are taken for
failures: without the widest 5 % along x and along y, of either twin.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._answers.notes import Note
from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed
from v1t_client.insilico.comparisons.markdown import markdown_table
from v1t_client.insilico.comparisons.pairing import check_same_units, labels_of, other_differences, read_fields
from v1t_client.insilico.comparisons.statistics import PairedTest, holm, p_text, paired_test, stars
from v1t_client.insilico.framework.receipt import Receipt
from v1t_client.insilico.framework.result import ARRAYS, Result, variable

__all__ = ["QUANTITIES", "compare_twins", "comparison_text", "spread_along"]

Array = npt.NDArray[np.float64]
QUANTITIES = {
    "sigma_x": "horizontal sigma",
    "sigma_y": "vertical sigma",
    "center_x": "centre x",
    "center_y": "centre y",
}
WIDEST = 0.05  # share of the fits that count as failures, along each axis and for each twin (paper A.5)
SHOWN = 12  # units whose maps are kept, for the figure


def compare_twins(first: Path, second: Path, *, names: Sequence[str] = (), command: str = "") -> Result:
    """Compares two results of `ReceptiveFields` on the same units; needs no server.

    Args:
        first, second: folders of `v1t rf`, of the same mouse and the same neurons.
        names: of both twins, such as ("CNN", "V1T"); by default those of their models.
        command: for the receipt.

    Raises:
        InvalidArgument: these are not receptive fields of the same mouse, neurons and images, or no unit has a field in
            both.
    """
    folders = first, second
    results = [read_fields(folder) for folder in folders]
    for result, folder in zip(results, folders, strict=True):
        check_same_units(results[0], result, folder)
    data = [result.dataset.sortby("neuron") for result in results]
    spread = [spread_along(*(one[name].values for name in ("sigma_major", "sigma_minor", "angle"))) for one in data]
    columns: dict[str, list[Array]] = {
        "sigma_x": [of_twin[0] for of_twin in spread],
        "sigma_y": [of_twin[1] for of_twin in spread],
        **{name: [one[name].values for one in data] for name in ("center_x", "center_y", "fit_r2", "peak")},
    }
    reliable = [one["reliable"].values.astype(bool) for one in data]
    both = reliable[0] & reliable[1]
    if not both.any():
        counts = " and ".join(f"{of_twin.sum():,}" for of_twin in reliable)
        raise InvalidArgument(
            "no unit has a reliable receptive field in both results",
            got=f"{counts} of {len(both):,} units, none in both",
            hint="Map both twins with more noise images: v1t rf MOUSE --images N.",
        )
    compared = both & ~_widest([*columns["sigma_x"], *columns["sigma_y"]], both)
    labels = labels_of(results, folders, names)
    variables = {
        f"{name}_{i}": variable(values, "px" if name in QUANTITIES else "1", f"{label}: {_LONG_NAMES[name]}")
        for name, pair in columns.items()
        for i, (label, values) in enumerate(zip(labels, pair, strict=True), start=1)
    }
    for i, (label, of_twin) in enumerate(zip(labels, reliable, strict=True), start=1):
        variables[f"reliable_{i}"] = variable(of_twin, "1", f"{label}: fitted, and clear of noise")
    variables["compared"] = variable(compared, "1", "reliable in both, and not among the widest")
    variables |= _statistics({name: [values[compared] for values in columns[name]] for name in QUANTITIES})
    r2 = np.where(compared, np.minimum(*columns["fit_r2"]), -np.inf)  # of the worse of both fits
    shown = np.argsort(-r2, kind="stable")[: min(SHOWN, int(compared.sum()))]
    variables["shown"] = variable(data[0]["neuron"].values[shown], "1", "the best-fitted units, by id", dims="nth")
    for i, one in enumerate(data, start=1):
        variables[f"map_{i}"] = variable(one["map"].values[shown], "1", "noise map", dims=("nth", "y", "x"))
        for name in ("center_x", "center_y", "sigma_major", "sigma_minor", "angle"):
            variables[f"shown_{name}_{i}"] = variable(one[name].values[shown], one[name].attrs["units"], dims="nth")
    notes = other_differences(results, labels, [one.isel(neuron=compared) for one in data])
    attributes = {
        "mouse": data[0].attrs["mouse"],
        "first": labels[0],
        "second": labels[1],
        "image_height": data[0].attrs["image_height"],
        "image_width": data[0].attrs["image_width"],
        "standardized_inputs": int(all(one.attrs.get("standardized_inputs") for one in data)),
        **(
            {name: data[0].attrs[name] for name in ("state", "held")}
            if not any(note.code == "other_behavior" for note in notes)
            else {}
        ),
        "notes": "\n".join(map(str, notes)),
    }
    coords = {
        name: data[0][name] for name in ("neuron", "x_um", "y_um", "z_um", "x", "y") if name in data[0].coords
    } | {"quantity": ("quantity", list(QUANTITIES))}
    dataset = needed("xarray").Dataset(variables, coords=coords, attrs=attributes)
    return Result(dataset, _receipt(results, folders, labels, notes, command))


_LONG_NAMES = {
    "sigma_x": "horizontal standard deviation of the fitted Gaussian",
    "sigma_y": "vertical standard deviation of the fitted Gaussian",
    "center_x": "centre of the fitted Gaussian, right",
    "center_y": "centre of the fitted Gaussian, down",
    "fit_r2": "share of the map's variance that the fit explains",
    "peak": "highest element over its chance level",
}


def spread_along(major: Array, minor: Array, angle: Array) -> tuple[Array, Array]:
    """The standard deviations along x and y of Gaussians with these axes, turned by `angle` [deg] from x towards y."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return np.hypot(major * c, minor * s), np.hypot(major * s, minor * c)


def _widest(sigmas: Sequence[Array], both: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Units among the widest 5 % of those that are reliable in both twins, by any of these sigmas."""
    rows = np.flatnonzero(both)
    widest = np.zeros(len(both), dtype=bool)
    n = int(WIDEST * len(rows))
    for sigma in sigmas:
        widest[rows[np.argsort(sigma[rows], kind="stable")[len(rows) - n :]]] = True
    return widest


def _statistics(pairs: dict[str, list[Array]]) -> dict[str, Any]:
    """Mean and sd of both twins, and the test of the difference, per quantity."""
    tests: list[PairedTest] = [paired_test(*pair) for pair in pairs.values()]
    unit, dims = "px", "quantity"
    found = {
        **{
            f"{statistic}_{i + 1}": variable([float(f(pair[i])) for pair in pairs.values()], unit, dims=dims)
            for i in (0, 1)
            for statistic, f in (("mean", np.mean), ("sd", np.std))
        },
        "difference": variable([test.difference for test in tests], unit, "mean of first - second", dims=dims),
        "p_value": variable([test.p for test in tests], "1", "paired t-test, two-sided", dims=dims),
        "p_holm": variable(holm([test.p for test in tests]), "1", "corrected for these tests (Holm)", dims=dims),
        "effect": variable([test.effect for test in tests], "1", "d_z: difference / sd of differences", dims=dims),
        "correlation": variable([_correlation(*pair) for pair in pairs.values()], "1", "over units", dims=dims),
    }
    for i, end in enumerate(("low", "high")):
        about = "95 % confidence interval"
        found[f"difference_{end}"] = variable([test.interval[i] for test in tests], unit, about, dims=dims)
        found[f"effect_{end}"] = variable([test.effect_interval[i] for test in tests], "1", about, dims=dims)
    return found


def _correlation(a: Array, b: Array) -> float:
    if len(a) < 3 or min(np.ptp(a), np.ptp(b)) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def comparison_text(result: Result) -> str:
    """The summary in Markdown: how many units, mean and sd of both twins, and the tests."""
    data = result.dataset
    first, second = data.attrs["first"], data.attrs["second"]
    n, total = int(data["compared"].sum()), data.sizes["neuron"]
    reliable = [int(data[f"reliable_{i}"].sum()) for i in (1, 2)]
    rows = []
    for k, name in enumerate(data["quantity"].values):
        one = {str(key): float(data[key][k]) for key in data.data_vars if data[key].dims == ("quantity",)}
        known = np.isfinite(one["p_value"])
        interval = f" [{one['difference_low']:+.2f}, {one['difference_high']:+.2f}]" if known else ""
        effect = f"{one['effect']:+.2f} [{one['effect_low']:+.2f}, {one['effect_high']:+.2f}]"
        rows.append(
            [
                f"{QUANTITIES[str(name)]} [px]",
                *(f"{one[f'mean_{i}']:.2f} ± {one[f'sd_{i}']:.2f}" for i in (1, 2)),
                f"{one['difference']:+.2f}{interval}",
                p_text(one["p_value"]),
                p_text(one["p_holm"]),
                stars(one["p_holm"]),
                effect if np.isfinite(one["effect"]) else "-",
                f"{one['correlation']:.2f}" if np.isfinite(one["correlation"]) else "-",
            ]
        )
    header = ["", first, second, "difference [95 %]", "p", "Holm", "", "effect [95 %]", "r"]
    return "\n".join(
        [
            result.caption(),
            "",
            f"{n:,} of {total:,} units are compared: reliable in both twins ({first} {reliable[0]:,}, {second} "
            f"{reliable[1]:,}), without the widest 5 % along x and y of either",
            "",
            markdown_table(header, rows),
            "",
            f"Mean ± sd over units. Difference: {first} - {second}, paired by unit; p: two-sided paired t-test; Holm: "
            "corrected for these tests, with its stars; effect: d_z, difference / sd of the differences; r: "
            "correlation over units. The tests are over units of one mouse, and say nothing about other mice or other "
            "trainings.",
            *(f"\nNote: {note}." for note in data.attrs["notes"].splitlines()),
        ]
    )


def _receipt(
    results: Sequence[Result], folders: Sequence[Path], labels: Sequence[str], notes: Sequence[Note], command: str
) -> Receipt:
    models = [result.receipt.model for result in results]
    described = [
        model["name"] + (f"@{model['version']}" if model.get("version") else "") + f" {model['hash'][:12]}"
        for model in models
    ]
    return Receipt(
        experiment="compare",
        parameters={
            "results": [str(folder) for folder in folders],
            "sha256": [hashlib.sha256((folder / ARRAYS).read_bytes()).hexdigest() for folder in folders],
            "names": list(labels),
            "models": models,
        },
        model={
            "name": " and ".join(described),
            "hash": "",
            "members": sum(int(model.get("members", 1)) for model in models),
            "simulated": any(model.get("simulated") for model in models),
            "notice": "; ".join(dict.fromkeys(model["notice"] for model in models if model.get("notice"))) or None,
        },
        notes=[asdict(note) for note in notes],
        command=command,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
