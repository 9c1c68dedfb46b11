"""Scores a recording of a pack: how well the predictions hold, and whether each unit prefers its own image."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._answers.prediction import count as counted
from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed
from v1t_client._file_types import load_npy
from v1t_client.insilico.framework.plotting import ACCENT, INK, axes_grid
from v1t_client.insilico.framework.receipt import Receipt
from v1t_client.insilico.framework.result import Result, variable
from v1t_client.insilico.inception_loop.pack import MANIFEST, PREDICTIONS, TRIALS

__all__ = ["Pack", "confusion", "read_responses", "score_figures", "score_pack", "summary_of"]

N_PERMUTATIONS = 10_000


@dataclass(frozen=True, eq=False)
class Pack:
    """A pack, as written by `v1t pack`.

    Attributes:
        order: (n_trials,), the frame of each trial.
        predictions: (n, F), in the manifest's order of units and frames.
    """

    manifest: dict[str, Any]
    order: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.float32]

    @classmethod
    def load(cls, folder: Path) -> Pack:
        """Reads the folder of a pack.

        Raises:
            InvalidArgument: this is not a pack.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            with (folder / TRIALS).open(encoding="utf-8", newline="") as stream:
                order = np.array([int(row["frame"]) for row in csv.DictReader(stream)], dtype=np.int64)
            predictions = load_npy(folder / PREDICTIONS)
            whole = predictions.shape == (len(manifest["units"]), len(manifest["frames"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidArgument(
                f"this is not a pack: {error}", got=folder, expected="a folder of `v1t pack`"
            ) from error
        if not whole or len(order) != manifest["n_trials"]:
            raise InvalidArgument("the files of the pack do not match", got=folder, hint="Make the pack again.")
        return cls(manifest, order, predictions)

    @property
    def units(self) -> list[int]:
        return [int(unit["unit"]) for unit in self.manifest["units"]]


def read_responses(path: Path, pack: Pack) -> npt.NDArray[np.float64]:
    """(n_trials, n): the recorded responses in the order of trials.csv; NaN for units that were not found again.

    Args:
        path: a .npy file of (n_trials, n) in the manifest's order of units, or a CSV with a column per unit, headed by
            its id, and a row per trial. A column `trial` numbers the rows if they are in another order.

    Raises:
        InvalidArgument: the responses do not fit the pack.
    """
    n_trials, units = len(pack.order), pack.units
    try:
        if path.suffix.lower() == ".npy":
            table = load_npy(path).astype(np.float64)
            if table.shape != (n_trials, len(units)):
                raise InvalidArgument(
                    "the responses do not fit the pack", got=f"{table.shape}", expected=f"{(n_trials, len(units))}"
                )
            return table
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        trials = [int(row["trial"]) for row in rows] if rows and "trial" in rows[0] else list(range(len(rows)))
        if sorted(trials) != list(range(n_trials)):
            raise InvalidArgument(
                "the responses do not contain each trial once",
                got=f"{len(rows)} rows",
                expected=f"trials 0-{n_trials - 1}",
            )
        table = np.full((n_trials, len(units)), np.nan)
        for column, unit in enumerate(units):
            if str(unit) in rows[0]:
                table[trials, column] = [float(row[str(unit)] or "nan") for row in rows]
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(f"the responses cannot be read: {error}", got=path, expected=".npy or .csv") from error
    if np.isnan(table).all():
        raise InvalidArgument(
            "no unit of the pack is in the responses", got=path.name, expected=f"columns such as {units[0]}"
        )
    return table


def confusion(responses: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float64], float, float]:
    """How specifically images excite their own units.

    Args:
        responses: (n units, n images); image j belongs to unit j.

    Returns:
        The responses of each unit z-scored over images (n, n); the share of units that respond most to their own image;
        and the p-value of the mean of the diagonal under random assignment of images to units (one-sided).
    """
    deviation = responses - responses.mean(1, keepdims=True)
    z = deviation / np.maximum(responses.std(1, keepdims=True), 1e-12)
    n = len(z)
    own = np.diag(z).mean()
    rng = np.random.default_rng(0)
    chance = np.array([z[np.arange(n), rng.permutation(n)].mean() for _ in range(N_PERMUTATIONS)])
    p_value = (1 + (chance >= own - 1e-12).sum()) / (1 + N_PERMUTATIONS)
    return z, float((z.argmax(1) == np.arange(n)).mean()), float(p_value)


def score_pack(folder: Path, responses: Path, *, command: str = "") -> Result:
    """Compares a recording of a pack with its predictions, per unit and as a confusion matrix of units and images."""
    pack = Pack.load(folder)
    table = read_responses(responses, pack)
    n_units, n_frames = pack.predictions.shape
    blocks = np.full((len(table) // n_frames, n_frames, n_units), np.nan)  # (R, F, n)
    seen = np.zeros(n_frames, dtype=int)
    for trial, frame in enumerate(pack.order):
        blocks[seen[frame], frame] = table[trial]
        seen[frame] += 1
    recorded = blocks.mean(0).T  # (n, F)
    variables: dict[str, Any] = {
        "recorded": variable(recorded, "recording", "mean over repeats", dims=("neuron", "frame")),
        "predicted": variable(pack.predictions, "response std", dims=("neuron", "frame")),
        "correlation": variable(
            _rowwise(recorded, pack.predictions), "1", "of recorded mean and prediction, over frames"
        ),
        "reliability": variable(
            _reliability(blocks), "1", "mean correlation of one repeat with the mean of the others"
        ),
    }
    found = np.flatnonzero(np.isfinite(recorded).all(1))
    own = {frame["unit"]: frame["frame"] for frame in pack.manifest["frames"] if frame["kind"] == "mei"}
    if len(found) > 1 and own:
        images = np.array([own[pack.units[row]] for row in found])
        z, share, p_value = confusion(recorded[found][:, images])
        predicted, _, _ = confusion(pack.predictions[found][:, images].astype(np.float64))
        square = ("confused", "image_of")
        variables |= {
            "confusion": variable(z, "1", "z-scored recorded response to each unit's image", dims=square),
            "predicted_confusion": variable(predicted, "1", dims=square),
            "own_image_strongest": variable(share, "1", "share of units", dims=()),
            "own_image_p_value": variable(p_value, "1", "permutations, one-sided", dims=()),
        }
    ids = np.array(pack.units)
    frames = pack.manifest["frames"]
    dataset = needed("xarray").Dataset(
        variables,
        coords={
            "neuron": ("neuron", ids),
            "frame": ("frame", np.arange(n_frames)),
            "kind": ("frame", [frame["kind"] for frame in frames]),
            "unit": ("frame", [frame["unit"] for frame in frames]),
            "confused": ("confused", ids[found]),
            "image_of": ("image_of", ids[found]),
        },
        attrs={
            "mouse": pack.manifest["mouse"],
            "model": pack.manifest["model"]["name"],
            "model_hash": pack.manifest["model"]["hash"],
            "simulated": int(pack.manifest["model"].get("simulated", False)),
        },
    )
    receipt = Receipt(
        experiment="score",
        parameters={
            "pack": str(folder),
            "pack_sha256": _sha256(folder / MANIFEST),
            "responses": str(responses),
            "responses_sha256": _sha256(responses),
        },
        model=pack.manifest["model"],
        command=command,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    return Result(dataset, receipt)


def summary_of(result: Result) -> str:
    """A few lines for the terminal."""
    dataset = result.dataset
    correlation, reliability = dataset["correlation"].values, dataset["reliability"].values
    found = np.isfinite(correlation)
    lines = [f"found {int(found.sum())} of {counted(len(found), 'unit')} again"]
    if found.any():
        repeated = np.isfinite(reliability)
        beside = f"; reliability {np.median(reliability[repeated]):.3f}" if repeated.any() else ""
        lines.append(f"correlation with the prediction {np.median(correlation[found]):.3f} (median over units{beside})")
    if "own_image_strongest" in dataset:
        n = dataset.sizes["confused"]
        share, p_value = dataset["own_image_strongest"].item(), dataset["own_image_p_value"].item()
        lines.append(f"own image is the strongest for {share:.0%} of units (chance {1 / n:.0%}), p = {p_value:.2g}")
    return "\n".join(lines)


def score_figures(result: Result) -> dict[str, Any]:
    """score: correlation against reliability, and the confusion matrices of units and images."""
    dataset = result.dataset
    square = "confusion" in dataset
    figure, axes = axes_grid(3 if square else 1, columns=3, height=2.3)
    known = int((np.isfinite(dataset["reliability"]) & np.isfinite(dataset["correlation"])).sum())
    axes[0].plot(dataset["reliability"], dataset["correlation"], ".", color=INK, label="a unit")
    axes[0].plot([0, 1], [0, 1], color=ACCENT, linewidth=0.8, label="equal")
    axes[0].legend()
    axes[0].set_title(f"n = {known:,} units")
    axes[0].set_xlabel("reliability over repeats (correlation)")
    axes[0].set_ylabel("correlation with the prediction")
    if square:
        bound = max(float(np.abs(dataset["confusion"]).max()), float(np.abs(dataset["predicted_confusion"]).max()))
        for axis, name in zip(axes[1:], ("confusion", "predicted_confusion"), strict=True):
            image = axis.imshow(dataset[name], cmap="RdBu_r", vmin=-bound, vmax=bound)
            axis.set_title("recorded" if name == "confusion" else "predicted")
            axis.set_xlabel("image of unit (its row)")
            axis.set_ylabel("response of unit (its row)")
        figure.colorbar(image, ax=axes[1:], shrink=0.8).set_label("response, z-scored over images")
    return {"score": figure}


def _rowwise(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(n,): Pearson's correlation of each row; NaN where a row is missing or constant."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    length = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    product = (a * b).sum(1)
    return np.divide(product, length, out=np.full(len(a), np.nan), where=length > 0).astype(np.float64)


def _reliability(blocks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n,) from (R, F, n); NaN with one repeat."""
    n_repeats = len(blocks)
    if n_repeats < 2:
        return np.full(blocks.shape[2], np.nan)
    total = blocks.sum(0)
    each = [_rowwise(block.T, ((total - block) / (n_repeats - 1)).T) for block in blocks]
    return np.mean(each, axis=0)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
