"""The served twin against a recording: what `python -m training evaluate` computes, of the deployment.

A wrong deployment (another bundle, inputs in other units, neurons in another order) shows as a lower score than that of
the checkpoint. Recordings are folders in the Sensorium 2022 layout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._answers.mice import SENSORIUM_BEHAVIOR
from v1t_client._answers.notes import Note, merged
from v1t_client._errors import InvalidArgument
from v1t_client._predictor import Predictor
from v1t_client._protocol.arguments import channel_arguments

__all__ = ["Scores", "evaluate"]

BATCH = 64  # trials of one request


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of the served twin on one tier.

    Attributes:
        neuron_ids: (n,).
        single_trial_correlation: (n,) over trials; 0 for a neuron that never responds.
        correlation_to_average: (n,) over images of the means over repeats; None if no image was repeated.
        assumed, notes: of the replies.
    """

    n_trials: int
    neuron_ids: npt.NDArray[np.int64]
    single_trial_correlation: npt.NDArray[np.float64]
    correlation_to_average: npt.NDArray[np.float64] | None
    assumed: tuple[str, ...]
    notes: tuple[Note, ...]


def evaluate(
    predictor: Predictor, mouse: str, recording: Path, *, tier: str = "test", model: str | None = None
) -> Scores:
    """Predicts the trials of a tier as they were recorded, and correlates them with the recorded responses.

    Raises:
        InvalidArgument: the folder is not a recording, or is of other neurons, or the tier has no responses.
    """
    trials = _trials(recording, tier)
    recorded_ids = _array(recording / "meta/neurons/unit_ids.npy")
    image_ids = next(
        (_array(path)[trials] for name in ("frame_image_id", "colorframeprojector_image_id")
         if (path := recording / f"meta/trials/{name}.npy").exists()), np.arange(len(trials))
    )  # fmt: skip
    responses = _stacked(recording, "responses", trials)  # (T, N)
    if not responses.any():
        hint = "The competition withholds them: choose --tier validation."
        raise InvalidArgument(f"the {tier} responses of {recording} are all zero", hint=hint)
    place = {int(neuron): i for i, neuron in enumerate(recorded_ids)}
    predicted, neuron_ids = [], np.zeros(0, np.int64)
    assumed: dict[str, None] = {}
    notes: tuple[Note, ...] = ()
    for start in range(0, len(trials), BATCH):
        part = trials[start : start + BATCH]
        found = predictor.predict(mouse, _stacked(recording, "images", part), **_inputs(recording, part, model))
        predicted.append(found.responses)
        neuron_ids = np.asarray(found.neuron_ids)
        assumed |= dict.fromkeys(found.assumed)
        notes = merged([*notes, *found.notes])
    if {int(neuron) for neuron in neuron_ids} != set(place):
        raise InvalidArgument(
            f"{recording} is not a recording of the neurons of mouse {mouse!r}: "
            f"{len(set(place) & {int(n) for n in neuron_ids})} of the twin's {len(neuron_ids)} neurons are in it",
            hint="Give the recording that the twin was trained on.",
        )
    responses = responses[:, [place[int(neuron)] for neuron in neuron_ids]]  # in the order of the twin
    predictions = np.concatenate(predicted).astype(np.float64)
    repeated = len(np.unique(image_ids)) < len(image_ids)
    return Scores(
        n_trials=len(trials),
        neuron_ids=neuron_ids,
        single_trial_correlation=_correlate(responses, predictions),
        correlation_to_average=_correlate(_means(responses, image_ids), _means(predictions, image_ids))
        if repeated
        else None,
        assumed=tuple(assumed),
        notes=notes,
    )


def _trials(recording: Path, tier: str) -> npt.NDArray[np.int64]:
    tiers = _array(recording / "meta/trials/tiers.npy").astype(str)
    trials = np.flatnonzero(tiers == tier)
    if len(trials) == 0:
        held = ", ".join(sorted(set(tiers.tolist())))
        raise InvalidArgument(f"{recording} has no trials of tier {tier!r}; it has {held}")
    return trials


def _inputs(recording: Path, trials: npt.NDArray[np.int64], model: str | None) -> dict[str, Any]:
    """Behaviour and gaze of the trials. What was not recorded is at the training mean, as in `training evaluate`."""
    inputs: dict[str, Any] = {"state": "mean"} | ({} if model is None else {"model": model})
    if (recording / "data/behavior").is_dir():
        behavior = _stacked(recording, "behavior", trials).reshape(len(trials), -1)  # (B, K)
        inputs |= channel_arguments(dict(zip(_channels(recording, behavior.shape[1]), behavior.T, strict=True)))
    if (recording / "data/pupil_center").is_dir():
        inputs["pupil_center"] = _stacked(recording, "pupil_center", trials).reshape(len(trials), 2)
    return inputs


def _channels(recording: Path, K: int) -> list[str]:
    """The names of the behaviour channels, in the order of the columns."""
    path = recording / "meta/behavior.json"
    try:
        names = [str(one["name"]) for one in json.loads(path.read_text())] if path.exists() else [*SENSORIUM_BEHAVIOR]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InvalidArgument(
            f"{path} cannot be read: {error!r}", expected='[{"name": ..., "unit": ...}, ...]'
        ) from error
    if len(names) != K:
        hint = "meta/behavior.json names the columns of data/behavior."
        raise InvalidArgument(
            f"the behaviour of {recording} has another number of channels",
            got=K,
            expected=f"{len(names)}: {', '.join(names)}",
            hint=hint,
        )
    return names


def _stacked(recording: Path, name: str, trials: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    arrays = [_array(recording / f"data/{name}/{trial}.npy") for trial in trials]
    if name == "responses":
        arrays = [array.reshape(-1) for array in arrays]
    return np.stack(arrays).astype(np.float32)


def _array(path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        hint = "Give the unpacked folder of a recording in the Sensorium 2022 layout."
        raise InvalidArgument(f"{path} cannot be read: {error}", hint=hint) from error


def _means(values: npt.NDArray[Any], image_ids: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(I, N) over the trials of each image."""
    return np.stack([values[image_ids == image].mean(0, dtype=np.float64) for image in np.unique(image_ids)])


def _correlate(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(N,) over the first axis; 0 where either is constant."""
    a, b = (x - x.mean(0) for x in (a.astype(np.float64), b.astype(np.float64)))
    scale = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return np.divide((a * b).sum(0), scale, out=np.zeros_like(scale), where=scale > 0)
