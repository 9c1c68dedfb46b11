"""Inception-loop packs: most exciting inputs as frames to show to the same mouse again.

A pack is a folder of manifest.json (units, frames with their hashes, how they were made), frames.npy and frames/*.png
(uint8), trials.csv (the order of presentation) and predictions.npy (the twin's predictions for exactly these frames).
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from v1t_client._answers.prediction import count as counted
from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed
from v1t_client._predictor import Predictor
from v1t_client._version import __version__
from v1t_client.insilico.framework.checkpoint import new_folder
from v1t_client.insilico.framework.experiment import STATE
from v1t_client.insilico.framework.result import Result
from v1t_client.insilico.framework.subject import Subject

if TYPE_CHECKING:
    import xarray

__all__ = ["MANIFEST", "PREDICTIONS", "TRIALS", "PackOptions", "choose_units", "make_pack", "matched", "trial_order"]

MANIFEST, TRIALS, FRAMES, PREDICTIONS = "manifest.json", "trials.csv", "frames.npy", "predictions.npy"
KINDS = ("mei", "lei", "exciting_surround", "suppressing_surround", "diverse")


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """The options of a pack.

    Attributes:
        n_units: most units, the best by `score` first.
        score: test score of the result to choose by; None: the first that is known, or else the response to the unit's
            own image. `score_min`: only units with at least this score.
        min_distance_um: smallest distance in cortex between two units, where positions are known.
        kinds: which images of a unit, of `KINDS`; None: all in the result.
        luminance: mean level of every frame; None: the training images' mean.
        contrast: std of the levels of every frame; None: the median over the images.
        repeats: presentations of each frame. `seed`: of the order.
    """

    n_units: int = 50
    score: str | None = None
    score_min: float | None = None
    min_distance_um: float = 25.0
    kinds: tuple[str, ...] | None = None
    luminance: float | None = None
    contrast: float | None = None
    repeats: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_units < 1 or self.repeats < 1 or self.min_distance_um < 0:
            raise InvalidArgument(
                "n_units, repeats or min_distance_um is too small",
                got=f"{self.n_units}, {self.repeats}, {self.min_distance_um:g}",
                expected="at least 1, 1, 0",
            )


def make_pack(result: Result, predictor: Predictor, output: Path, options: PackOptions) -> dict[str, Any]:
    """Writes a pack, completely or not at all, and returns its manifest.

    Args:
        result: a result of `v1t mei`.
        predictor: predicts the responses to the frames as they are written, with the result's behaviour.

    Raises:
        InvalidArgument: the output exists, the result has no images, no unit is left, or grey levels are not known.
    """
    if output.exists():
        raise InvalidArgument("the output exists already", got=output, hint="Choose another name.")
    dataset, receipt = result.dataset, result.receipt
    if "mei" not in dataset:
        raise InvalidArgument("the result has no most exciting inputs", got=receipt.experiment, expected="of `v1t mei`")
    rows, chosen_by, scores = choose_units(dataset, options)
    units = dataset.isel(neuron=rows)
    ids = tuple(int(neuron) for neuron in units["neuron"].values)
    state = {name: receipt.parameters.get(name) for name in STATE if name != "strict"}
    subject = Subject.of(
        predictor, str(receipt.parameters["mouse"]), model=receipt.parameters.get("model"), neuron_ids=ids, state=state
    )
    if subject.mouse.standardized_inputs:
        raise InvalidArgument(
            f"mouse {subject.mouse.mouse_id!r} takes standardised images, so its grey levels are not known",
            hint="Import the twin with its recording (--recordings).",
        )
    images, frames = _images(units, options.kinds)  # (F, C, H, W)
    luminance = subject.screen.luminance if options.luminance is None else options.luminance
    contrast = float(np.median(images.std((1, 2, 3)))) if options.contrast is None else options.contrast
    shown = matched(images, luminance, contrast)
    predictions = subject.respond(shown).T  # (n, F)
    order = trial_order(len(frames), options.repeats, np.random.default_rng(options.seed))
    for number, (frame, levels) in enumerate(zip(frames, shown, strict=True)):
        frame |= {
            "frame": number,
            "file": f"frames/{number:04d}_{frame['kind']}_{frame['unit']}.png",
            "mean": round(float(levels.mean()), 3),
            "std": round(float(levels.std()), 3),
            "sha256": hashlib.sha256(levels.tobytes()).hexdigest(),
        }
    manifest = {
        "schema_version": 1,
        "client_version": __version__,
        "mouse": subject.mouse.mouse_id,
        "data_key": subject.mouse.data_key,
        "model": asdict(subject.model),
        "made_from": asdict(receipt),
        "same_bundle": subject.model.hash == receipt.model.get("hash"),
        "options": asdict(options),
        "luminance": luminance,
        "contrast": contrast,
        "image_shape": list(shown.shape[1:]),
        "chosen_by": chosen_by,
        "assumed": subject.assumed,
        "notes": [str(note) for note in subject.notes],
        "held": subject.held,
        "units": [
            {
                "unit": unit,
                "score": None if np.isnan(score) else float(score),
                "um": [None if np.isnan(x) else float(x) for x in place],
            }
            for unit, score, place in zip(ids, scores, subject.neurons.coordinates_um, strict=True)
        ],
        "frames": frames,
        "n_trials": int(order.size),
    }
    with new_folder(output) as made:
        _write(made, manifest, shown, predictions, order)
    return manifest


def choose_units(dataset: xarray.Dataset, options: PackOptions) -> tuple[list[int], str, npt.NDArray[np.float64]]:
    """Rows of the chosen units, the name of the score, and their scores: best first, none too close to a better one."""
    own = ("neuron", "x_um", "y_um", "z_um")
    known = [
        str(name)
        for name, values in dataset.coords.items()
        if name not in own and values.dims == ("neuron",) and np.isfinite(values.values).any()
    ]
    if options.score is not None and options.score not in known:
        raise InvalidArgument("the result has no such score", got=options.score, expected=", ".join(known) or "none")
    name = options.score or (known[0] if known else "response")
    scores = dataset[name].values.astype(np.float64)
    places = np.stack([dataset[f"{axis}_um"].values for axis in "xyz"], axis=1)  # (n, 3)
    rows: list[int] = []
    for row in np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable"):
        if options.score_min is not None and not scores[row] >= options.score_min:
            continue
        distance = np.sqrt(((places[rows] - places[row]) ** 2).sum(1))  # NaN where a place is unknown
        if not (distance < options.min_distance_um).any():
            rows.append(int(row))
        if len(rows) == options.n_units:
            break
    if not rows:
        raise InvalidArgument(
            "no unit is left", got=f"the best {name} is {np.nanmax(scores):.3g}", expected=f"{options.score_min}"
        )
    return rows, name, scores[rows]


def _images(units: xarray.Dataset, kinds: Iterable[str] | None) -> tuple[npt.NDArray[np.float64], list[dict[str, Any]]]:
    """(F, C, H, W) in the recording's units, and the kind and unit of each frame."""
    available = [kind for kind in KINDS if kind in units]
    wanted = available if kinds is None else list(kinds)
    if missing := [kind for kind in wanted if kind not in available]:
        raise InvalidArgument("the result has no such images", got=", ".join(missing), expected=", ".join(available))
    images, frames = [], []
    for kind in wanted:
        for row, unit in enumerate(units["neuron"].values):
            values = units[kind][row].values
            several = values if values.ndim == 4 else values[None]
            images += list(several)
            frames += [{"kind": kind, "unit": int(unit), "nth": nth} for nth in range(len(several))]
    return np.stack(images).astype(np.float64), frames


def matched(images: npt.NDArray[np.floating], luminance: float, contrast: float) -> npt.NDArray[np.uint8]:
    """Frames (F, C, H, W) with the same mean and std of levels, as far as 0 to 255 and rounding allow."""
    if not 0 < luminance < 255 or not contrast > 0:
        raise InvalidArgument(
            "luminance or contrast is out of range", got=f"{luminance:g}, {contrast:g}", expected="0-255"
        )
    axes = (1, 2, 3)
    deviation = images - images.mean(axes, keepdims=True)
    flat = deviation.std(axes, keepdims=True) == 0
    if flat.any():
        raise InvalidArgument("an image has no contrast to scale", got=counted(int(flat.sum()), "uniform image"))
    gain, offset = contrast / deviation.std(axes, keepdims=True), np.full(flat.shape, float(luminance))
    for _ in range(20):  # the other pixels compensate for those clipped at black and white
        shown = np.clip(offset + gain * deviation, 0, 255)
        offset = offset + luminance - shown.mean(axes, keepdims=True)
        gain = gain * contrast / np.maximum(shown.std(axes, keepdims=True), 1e-9)
    return np.clip(np.rint(offset + gain * deviation), 0, 255).astype(np.uint8)


def trial_order(n_frames: int, repeats: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(repeats, n_frames): every frame once per block, so that slow drift affects all alike, and never twice in a
    row."""
    blocks: list[np.ndarray] = []
    for _ in range(repeats):
        block = rng.permutation(n_frames)
        if blocks and n_frames > 1 and block[0] == blocks[-1][-1]:
            block = np.roll(block, -1)
        blocks.append(block)
    return np.stack(blocks).astype(np.int64)


def _write(
    made: Path, manifest: dict[str, Any], shown: npt.NDArray[np.uint8], predictions: np.ndarray, order: np.ndarray
) -> None:
    (made / "frames").mkdir(parents=True)
    np.save(made / FRAMES, shown)
    np.save(made / PREDICTIONS, predictions)
    if shown.shape[1] in (1, 3):
        picture = needed("PIL.Image")
        for frame, levels in zip(manifest["frames"], shown, strict=True):
            pixels = levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)
            picture.fromarray(pixels).save(made / frame["file"])
    with (made / TRIALS).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["trial", "block", "frame", "kind", "unit", "file"])
        for trial, frame_number in enumerate(order.ravel()):
            frame = manifest["frames"][frame_number]
            writer.writerow([trial, trial // order.shape[1], frame_number, frame["kind"], frame["unit"], frame["file"]])
    (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
