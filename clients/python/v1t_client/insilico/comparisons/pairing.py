"""Two results of receptive fields on the same units: read, checked, named, and what differs beside the twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v1t_client._answers.notes import Note
from v1t_client._errors import InvalidArgument
from v1t_client.insilico.experiments.receptive_field_figures import described_bias, size_bias
from v1t_client.insilico.framework.result import Result

if TYPE_CHECKING:
    import xarray

__all__ = ["check_same_units", "labels_of", "other_differences", "read_fields"]

WORTH_A_NOTE = 0.02  # between the biases of both twins' sizes, relative
SAME_UM = 1.0


def read_fields(folder: Path) -> Result:
    result = Result.load(folder)
    if result.receipt.experiment != "rf":
        raise InvalidArgument(
            "these are not receptive fields",
            got=f"{folder}, a result of v1t {result.receipt.experiment}",
            expected="folders of v1t rf",
        )
    return result


def check_same_units(first: Result, other: Result, folder: Path) -> None:
    """Refuses fields of another mouse, of other neurons, or on other images."""
    a, b = first.dataset, other.dataset
    if a.attrs["mouse"] != b.attrs["mouse"]:
        raise InvalidArgument(
            "the receptive fields are of two mice",
            got=f"mouse {b.attrs['mouse']} in {folder}",
            expected=f"mouse {a.attrs['mouse']}, as in the first result",
            hint="Map the same mouse with both twins; both bundles must contain it by the same id.",
        )
    in_both = np.intersect1d(a["neuron"], b["neuron"])
    if not len(in_both) == a.sizes["neuron"] == b.sizes["neuron"]:
        raise InvalidArgument(
            "the receptive fields are of other neurons",
            got=f"{b.sizes['neuron']:,} neurons in {folder}, {len(in_both):,} of them in the first result",
            expected=f"the {a.sizes['neuron']:,} neurons of the first result",
            hint="Map all neurons with both twins, or give both the same --neuron-ids.",
        )
    places = [
        np.stack([one.sortby("neuron")[f"{axis}_um"].values for axis in "xyz"]).astype(np.float64) for one in (a, b)
    ]
    if not np.allclose(places[0], places[1], rtol=0, atol=SAME_UM, equal_nan=True):
        raise InvalidArgument(
            "the neurons have the same ids, but other positions in cortex: they are of another recording",
            got=f"up to {np.nanmax(np.abs(places[0] - places[1])):.0f} um apart",
            expected=f"within {SAME_UM:g} um",
            hint="Import published weights with --recordings, which gives them the recording's neurons.",
        )
    shapes = [(one.attrs["image_height"], one.attrs["image_width"], one.sizes["y"], one.sizes["x"]) for one in (a, b)]
    if shapes[0] != shapes[1]:
        images = ["{} x {} px with noise of {} x {}".format(*shape) for shape in shapes]
        raise InvalidArgument(
            "the receptive fields are on other images",
            got=f"{images[1]} in {folder}",
            expected=f"{images[0]}, as in the first result",
            hint="Map both with the same --rows."
            if shapes[0][:2] == shapes[1][:2]
            else "Train both twins on recordings of the same image size.",
        )


def labels_of(results: Sequence[Result], folders: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Two names that differ: those given, or of the models, with as much of version, hash or folder as it takes."""
    if names:
        if len(names) != 2 or names[0] == names[1]:
            raise InvalidArgument("two twins need two names", got=", ".join(names), expected="--names CNN,V1T")
        return list(names)
    models = [result.receipt.model for result in results]
    candidates = (
        [model["name"] for model in models],
        [f"{model['name']}@{model.get('version')}" for model in models],
        [f"{model['name']} {model['hash'][:6]}" for model in models],
        [f"{model['name']} ({folder.name})" for model, folder in zip(models, folders, strict=True)],
    )
    found = next((pair for pair in candidates if pair[0] != pair[1]), None)
    return found or [f"{models[0]['name']} ({folder})" for folder in folders]


def other_differences(results: Sequence[Result], labels: Sequence[str], data: Sequence[xarray.Dataset]) -> list[Note]:
    """What else differs between both results than the twin, and what each result says of itself."""
    notes = []
    receipts = [result.receipt for result in results]
    noise = [
        f"{one.attrs['n_images']:,} images of {one.attrs.get('noise', 'white')} noise of contrast "
        f"{receipt.parameters.get('contrast', 1):g}"
        for one, receipt in zip(data, receipts, strict=True)
    ]
    if noise[0] != noise[1]:
        notes.append(Note("other_noise", None, f"the noise differs, on which sizes depend: {' and '.join(noise)}"))
    if not _same_values(receipts[0].held, receipts[1].held):
        states = [one.attrs.get("held") or one.attrs.get("state", "?") for one in data]
        notes.append(Note("other_behavior", None, f"behaviour was held at other values: {' and '.join(states)}"))
    biases = [
        size_bias(one["sigma_half"].values, ((one["sigma_major"] + one["sigma_minor"]) / 2).values) for one in data
    ]
    if not abs(biases[0][0] - biases[1][0]) < WORTH_A_NOTE:
        words = [f"{label} {described_bias(*bias)}" for label, bias in zip(labels, biases, strict=True)]
        notes.append(Note("other_bias", None, f"part of a difference in size is noise: {'; '.join(words)}"))
    for label, receipt in zip(labels, receipts, strict=True):
        notes += [
            Note(note["code"], note["input"], f"{label}: {note['message']}")
            for note in receipt.notes
            if note["code"] != "size_depends_on_images"  # above, for the units that are compared
        ]
    return notes


def _same_values(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return a.keys() == b.keys() and bool(np.allclose([a[name] for name in a], [b[name] for name in a], rtol=1e-4))
