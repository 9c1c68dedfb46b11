"""How far a student can be trusted in its teacher's place: per neuron and kind of stimulus, on questions it never saw.

neurons.parquet   a row per mouse and neuron, with the columns of `COLUMNS`
agreement.json    the same over neurons, as the manifest of a bundle states it
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.checkpoints.ensemble import Ensemble
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.distillation.most_exciting import most_exciting, responses_to
from training.distillation.questions import DIRECTIONS, HELD_OUT, MAP_SHAPE, TUNING_SHAPE, Questions, map_grid
from training.errors import ScoringError
from training.files import write_files
from training.metrics import single_trial_correlation, split_half_reliability
from training.tables import markdown_table, number
from training.trainer.loop import predict_trials

__all__ = [
    "AGREEMENT",
    "COLUMNS",
    "Neurons",
    "agreement_of",
    "centers",
    "orientations",
    "summarize",
    "summary_table",
    "write",
]

AGREEMENT = "agreement"
RELIABLE = 0.5  # split-half reliability on repeats of the recording's test images
SELECTIVE = 0.2  # orientation selectivity below which a preferred orientation means little
SEARCHED = 20  # neurons whose most exciting inputs are compared, evenly from the reliable ones
FLOOR = 0.2  # of the largest response: what a map has below is not part of the receptive field

# The columns of a neuron, and what they mean.
COLUMNS = {
    **{kind: f"correlation of student and teacher over held-out {kind} images" for kind in HELD_OUT},
    "center_x": "the teacher's receptive field centre, x [px of the recording's image]",
    "center_y": "the teacher's receptive field centre, y [px]",
    "center_distance": "from there to the student's centre [px]",
    "orientation": "the teacher's preferred orientation: the direction of the wave [degrees, 0 to 180]",
    "orientation_selectivity": "of the teacher: 1 - circular variance, 0 to 1",
    "orientation_difference": "between the preferred orientations of student and teacher [degrees, 0 to 90]",
    "running_modulation": "of the teacher: (running - rest) / (running + rest), over natural images",
    "running_difference": "the student's running modulation minus the teacher's",
    "mei_response": "the teacher's response to the student's most exciting input, divided by that to its own; NaN for "
    "neurons that were not searched",
    "reliability": "split-half reliability of the recorded responses; NaN where it is not known",
}
Neurons = dict[str, np.ndarray]


def agreement_of(
    student: Ensemble,
    teacher: Ensemble,
    questions: Questions,
    answers: Recording,
    recording: Recording | None = None,
) -> Neurons:
    """(N,) values for every column of `COLUMNS`, of one mouse.

    Args:
        answers: the teacher's answers, as `asked` opens them.
        recording: of the mouse, for the reliability of its neurons.
    """
    kinds, tiers = questions.column("kind"), questions.column("tier")
    rows = {kind: np.flatnonzero((tiers == "test") & (kinds == kind)) for kind in np.unique(kinds[tiers == "test"])}
    pairs = {
        kind: (answers.responses(some), predict_trials(student, answers, some, progress=f"student on {kind}"))
        for kind, some in rows.items()
    }
    neurons: Neurons = {kind: single_trial_correlation(*pairs[kind]) for kind in HELD_OUT}
    theirs, ours = (centers(responses, questions.mouse.image_shape) for responses in pairs["map"])
    neurons |= {"center_x": theirs[:, 0], "center_y": theirs[:, 1]}
    neurons["center_distance"] = np.hypot(*(ours - theirs).T)
    frequency = best_frequency(pairs["tuning"][0])
    (theirs, selectivity), (ours, _) = (orientations(responses, frequency) for responses in pairs["tuning"])
    difference = np.abs((ours - theirs + 90) % 180 - 90)
    neurons |= {"orientation": theirs, "orientation_selectivity": selectivity, "orientation_difference": difference}
    theirs, ours = (_running_modulation(responses) for responses in pairs["running"])
    neurons |= {"running_modulation": theirs, "running_difference": ours - theirs}
    neurons["reliability"] = _reliability(recording, questions.mouse.n_neurons)
    neurons["mei_response"] = np.full(questions.mouse.n_neurons, np.nan)
    some = np.flatnonzero(_reliable(neurons))
    some = some[np.linspace(0, len(some) - 1, min(SEARCHED, len(some))).round().astype(int)]
    if len(some):
        neurons["mei_response"][some] = _mei_response(student, teacher, questions.mouse, some)
    return {name: neurons[name] for name in COLUMNS}


def centers(responses: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(N, 2) receptive field centres, x and y [px]: where small Gabors change the response, whatever its sign.

    Args:
        responses: (places * Gabors, N), to the questions of kind "map".
    """
    x, y = map_grid(shape)
    maps = responses.astype(np.float64).reshape(len(y) * len(x), int(np.prod(MAP_SHAPE)), -1)
    energy = np.square(maps - np.median(maps, axis=(0, 1))).mean(1)  # (places, N)
    weight = np.maximum(energy - FLOOR * energy.max(0), 0)
    places = np.stack([values.ravel() for values in np.meshgrid(x, y)], axis=1)  # (places, 2)
    with np.errstate(invalid="ignore"):  # a neuron that nothing drives has no centre
        return np.asarray(weight.T @ places / weight.sum(0)[:, None])


def best_frequency(responses: np.ndarray) -> np.ndarray:
    """(N,) index of the spatial frequency at which orientation matters most."""
    tuning = responses.astype(np.float64).reshape(*TUNING_SHAPE, -1).mean(2)  # (directions, frequencies, N)
    return np.asarray(tuning.var(0).argmax(0))


def orientations(responses: np.ndarray, frequency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) preferred orientations [degrees, 0 to 180] at these frequencies, and their selectivity, over phases."""
    tuning = responses.astype(np.float64).reshape(*TUNING_SHAPE, -1).mean(2)
    at = tuning[:, frequency, np.arange(len(frequency))]  # (directions, N)
    vector = (at * np.exp(2j * DIRECTIONS)[:, None]).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.rad2deg(np.angle(vector) / 2) % 180, np.abs(vector) / at.sum(0)


def _running_modulation(responses: np.ndarray) -> np.ndarray:
    rest, running = responses[0::2].mean(0, dtype=np.float64), responses[1::2].mean(0, dtype=np.float64)
    return np.asarray((running - rest) / np.maximum(running + rest, 1e-9))


def _mei_response(student: Ensemble, teacher: Ensemble, mouse: Mouse, neurons: np.ndarray) -> np.ndarray:
    ours, theirs = (
        responses_to(teacher, mouse, neurons, most_exciting(system, mouse, neurons)) for system in (student, teacher)
    )
    return np.asarray(ours / np.maximum(theirs, 1e-9))


def _reliability(recording: Recording | None, n: int) -> np.ndarray:
    if recording is None:
        return np.full(n, np.nan)
    try:
        trials = recording.scorable("test")
        return split_half_reliability(recording.responses(trials.indices), trials.image_ids)
    except ScoringError:
        return np.full(n, np.nan)


def summarize(neurons: Neurons) -> dict[str, float]:
    """One mouse in a few numbers. Centres and orientations are over reliable neurons, or over all if none are known."""
    reliable = _reliable(neurons)
    selective = reliable & (neurons["orientation_selectivity"] >= SELECTIVE)
    mapped = reliable & np.isfinite(neurons["center_distance"])
    summary = {f"{kind}_median": float(np.median(neurons[kind])) for kind in HELD_OUT}
    summary |= {
        "natural_10th_percentile": float(np.percentile(neurons["natural"], 10)),
        "center_distance_median_px": _median(neurons["center_distance"][mapped]),
        "center_within_1_px": _share(neurons["center_distance"][mapped] <= 1),
        "orientation_difference_median_degrees": _median(neurons["orientation_difference"][selective]),
        "orientation_within_5_degrees": _share(neurons["orientation_difference"][selective] <= 5),
        "running_difference_median": _median(np.abs(neurons["running_difference"])),
        "mei_response_median": _median(neurons["mei_response"][np.isfinite(neurons["mei_response"])]),
    }
    return {name: value for name, value in summary.items() if np.isfinite(value)}


def _reliable(neurons: Neurons) -> np.ndarray:
    """Which neurons are reliable, or all if that is not known of any."""
    known = np.isfinite(neurons["reliability"]).any()
    return neurons["reliability"] >= RELIABLE if known else np.ones(len(neurons["reliability"]), bool)


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def summary_table(summaries: Mapping[str, Mapping[str, float]]) -> str:
    """A table in Markdown: a row per number, and a column per mouse, or per what else the summaries are of."""
    names = list(dict.fromkeys(name for summary in summaries.values() for name in summary))
    rows = [[name.replace("_", " "), *(number(one.get(name)) for one in summaries.values())] for name in names]
    return markdown_table(["agreement with the teacher", *summaries], rows)


def write(folder: Path, neurons: Mapping[str, Neurons], neuron_ids: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Writes the table of neurons and the summaries; returns the summaries by mouse.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    columns: dict[str, Any] = {
        "mouse": np.concatenate([np.repeat(mouse_id, len(ids)) for mouse_id, ids in neuron_ids.items()]),
        "neuron_id": np.concatenate(list(neuron_ids.values())),
    }
    columns |= {name: np.concatenate([one[name] for one in neurons.values()]) for name in COLUMNS}
    table = io.BytesIO()
    pq.write_table(pa.table(columns), table, compression="zstd")
    summaries = {mouse_id: summarize(one) for mouse_id, one in neurons.items()}
    content = {"columns": COLUMNS, "mice": summaries}
    write_files(folder / AGREEMENT, {"neurons.parquet": table.getvalue(), "agreement.json": content})
    return summaries
