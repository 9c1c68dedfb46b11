"""Scores of a twin on held-out trials: per neuron, per mouse, and over mice (paper, equations 5 and 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.checkpoints.ensemble import Ensemble
from training.data.layout import TRUTH, behavior_text
from training.data.recordings import Recording
from training.errors import RecordingError, ScoringError
from training.evaluation.image_kinds import monochrome_trials
from training.evaluation.missing_inputs import predictor_for
from training.metrics import (
    FEV_THRESHOLD,
    ccnorm,
    correlation_to_average,
    fev_feve,
    mean_feve,
    single_trial_correlation,
)
from training.tables import counted, markdown_table, mean_and_sd, number, number_and_sd
from training.trainer.loop import predict_trials

__all__ = [
    "SCORES",
    "MouseScores",
    "check_known",
    "evaluate",
    "evaluate_mouse",
    "over_mice",
    "perfect_scores",
    "scorable",
    "score_names",
    "scores_table",
    "simulated_ceiling",
]

LEAST = 4  # trials of each kind of image; a correlation over fewer is meaningless

# The scores that a mouse's summary may contain, in the order of tables.
SCORES = {
    "single_trial_correlation": "single-trial correlation (equation 5)",
    "correlation_to_average": "correlation to average (equation 6)",
    "fev": "fraction of explainable variance (FEV)",
    "feve": f"explained share of the explainable variance (FEVE), neurons with FEV of {FEV_THRESHOLD} or more",
    "ccnorm": f"CCnorm (Schoppe et al. 2016), neurons with FEV of {FEV_THRESHOLD} or more",
    "colored": "single-trial correlation over the trials of coloured images, of a recording with both kinds",
    "monochrome": "single-trial correlation over the trials of monochrome images, of a recording with both kinds",
    "ceiling": "single-trial correlation of a simulated mouse's true expected responses: no model can do better",
}


@dataclass(frozen=True, eq=False)
class MouseScores:
    """Scores of one mouse on one tier.

    Attributes:
        neurons: score -> (N,) per neuron; NaN where a neuron has none.
        summary: score -> mean over neurons; FEVE and CCnorm over neurons with FEV of 0.15 or more.
        ceiling: (N,) single-trial correlation of a simulated mouse's true expected responses: no model can do better.
        neuron_ids: (N,). neuron_coordinates: (N, 3) [um].
        notes: which scores were left out, and which inputs the twin was given, one sentence each.
        simulated: no animal was recorded.
    """

    mouse_id: str
    tier: str
    n_trials: int
    neurons: dict[str, np.ndarray]
    summary: dict[str, float]
    ceiling: np.ndarray | None
    neuron_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    neuron_coordinates: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    notes: tuple[str, ...] = ()
    simulated: bool = False


def evaluate(ensemble: Ensemble, recordings: Sequence[Recording], *, tier: str = "test") -> dict[str, MouseScores]:
    """Scores every recording whose responses are known; see `scorable` for the others.

    Raises:
        RecordingError: see `check_known`.
        ScoringError: no recording can be scored.
    """
    check_known(ensemble, recordings)
    found, refused = scorable(recordings, tier)
    if not found:
        raise ScoringError("; ".join(refused.values()) or "no recording was given")
    return {recording.mouse_id: evaluate_mouse(ensemble, recording, tier=tier) for recording in found}


def scorable(recordings: Sequence[Recording], tier: str) -> tuple[list[Recording], dict[str, str]]:
    """The recordings whose tier can be scored, and for each other mouse why it cannot."""
    found, refused = [], {}
    for recording in recordings:
        try:
            recording.scorable(tier)
        except ScoringError as error:
            refused[recording.mouse_id] = str(error)
        else:
            found.append(recording)
    return found, refused


def check_known(ensemble: Ensemble, recordings: Sequence[Recording]) -> None:
    """Checks that the ensemble can predict the trials of these recordings.

    Raises:
        RecordingError: a recording is of a mouse, or of neurons, that the ensemble does not know; or the ensemble takes
            standardised inputs, which a recording does not hold.
    """
    for recording in recordings:
        mouse = ensemble.mice.get(recording.mouse_id)
        if mouse is None:
            raise RecordingError(
                f"the twin does not know mouse {recording.mouse_id!r}",
                got=recording.path,
                expected=sorted(ensemble.mice),
                hint="If it has another name there: --recordings NAME=PATH.",
            )
        if mouse.n_neurons != recording.n_neurons:
            raise RecordingError(
                f"{recording.path} is another recording of mouse {recording.mouse_id!r}",
                got=counted(recording.n_neurons, "neuron"),
                expected=counted(mouse.n_neurons, "neuron"),
            )
        if not mouse.standardized_inputs and not np.array_equal(mouse.neuron_ids, recording.neuron_ids):
            raise RecordingError(
                f"{recording.path} is of other neurons of mouse {recording.mouse_id!r}, or has them in another order",
                hint="Give the recording that the twin was trained on.",
            )
        if recording.has_behavior and mouse.behavior_channels != recording.behavior_channels:
            raise RecordingError(
                f"{recording.path} has other behaviour channels than the twin of mouse {recording.mouse_id!r}",
                got=behavior_text(recording.behavior_channels),
                expected=behavior_text(mouse.behavior_channels),
                hint="Give the recording that the twin was trained on, with the same meta/behavior.json.",
            )
        if mouse.standardized_inputs:
            raise RecordingError(
                "the twin was imported without recordings and takes standardised inputs for mouse "
                f"{recording.mouse_id!r}",
                got=recording.path,
                hint="Import the weights again with --recordings.",
            )


def evaluate_mouse(ensemble: Ensemble, recording: Recording, *, tier: str = "test") -> MouseScores:
    """Scores one mouse.

    Raises:
        ScoringError: the tier has no trials, or its responses are withheld.
    """
    trials = recording.scorable(tier)
    responses = recording.responses(trials.indices) / recording.response_std
    predictor, inputs = predictor_for(ensemble, recording)
    predictions = predict_trials(predictor, recording, trials.indices, progress=f"mouse {recording.mouse_id}")
    neurons, summary, notes = score_trials(responses, predictions, trials.image_ids)
    monochrome = monochrome_trials(recording, trials.indices)
    if min(monochrome.sum(), (~monochrome).sum()) >= LEAST:
        for name, kind in (("colored", ~monochrome), ("monochrome", monochrome)):
            neurons[name] = single_trial_correlation(responses[kind], predictions[kind])
            summary[name] = _mean(neurons[name])
        notes.append(f"{counted(int(monochrome.sum()), 'trial')} of {len(trials)} had a monochrome image")
    ceiling = simulated_ceiling(recording, trials.indices)
    if ceiling is not None:
        summary["ceiling"] = _mean(ceiling)
    return MouseScores(
        mouse_id=recording.mouse_id,
        tier=tier,
        n_trials=len(trials),
        neurons=neurons,
        summary=summary,
        ceiling=ceiling,
        neuron_ids=recording.neuron_ids,
        neuron_coordinates=recording.neuron_coordinates,
        notes=(inputs, *notes),
        simulated=recording.simulated,
    )


def score_trials(
    responses: np.ndarray, predictions: np.ndarray, image_ids: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, float], list[str]]:
    """All scores that these trials allow: per neuron, their means over neurons, and notes on what was left out.

    Args:
        responses, predictions: (T, N).
        image_ids: (T,).
    """
    notes = []
    neurons = {"single_trial_correlation": single_trial_correlation(responses, predictions)}
    repeats = np.unique(image_ids, return_counts=True)[1]
    if repeats.max() > 1:
        neurons["correlation_to_average"] = correlation_to_average(responses, predictions, image_ids)
    else:
        notes.append("no image was repeated: only the single-trial correlation can be computed")
    summary = {name: _mean(values) for name, values in neurons.items()}
    if repeats.max() > 1 and repeats.min() == 1:
        once = counted(int((repeats == 1).sum()), "image was", "images were")
        notes.append(f"{once} shown once: FEV, FEVE and CCnorm are left out")
    elif repeats.min() > 1:
        neurons["fev"], neurons["feve"] = fev_feve(responses, predictions, image_ids)
        summary["fev"] = _mean(neurons["fev"])
        summary["feve"] = mean_feve(neurons["fev"], neurons["feve"])
        if repeats.min() == repeats.max():
            neurons["ccnorm"] = ccnorm(responses, predictions, image_ids)
            summary["ccnorm"] = _mean(neurons["ccnorm"][neurons["fev"] >= FEV_THRESHOLD])
        else:
            notes.append(
                f"images were shown {repeats.min()} to {repeats.max()} times: CCnorm is left out, as it needs the same "
                "number of repeats of every image"
            )
    return neurons, summary, notes


def _mean(values: np.ndarray) -> float:
    """Over the neurons that have a value; NaN where none has."""
    return mean_and_sd(values.tolist())[0]


def simulated_ceiling(recording: Recording, indices: np.ndarray) -> np.ndarray | None:
    """(N,) single-trial correlation of a simulated mouse's true expected responses; None for a real mouse."""
    expected = _expected_responses(recording, indices)
    return None if expected is None else single_trial_correlation(recording.responses(indices), expected)


def perfect_scores(recording: Recording) -> dict[str, float] | None:
    """The test scores of a perfect model of a simulated mouse: its true expected responses. None for a real mouse."""
    trials = recording.scorable("test")
    expected = _expected_responses(recording, trials.indices)
    if expected is None:
        return None
    return score_trials(recording.responses(trials.indices), expected, trials.image_ids)[1]


def _expected_responses(recording: Recording, indices: np.ndarray) -> np.ndarray | None:
    """(T, N), of a simulated mouse."""
    path = recording.path / TRUTH
    if not recording.simulated or not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as truth:
        return truth["expected_responses"][indices]


def score_names(scores: Mapping[str, MouseScores]) -> list[str]:
    """The scores that any of the mice has, in the order of tables."""
    return [name for name in SCORES if any(name in mouse.summary for mouse in scores.values())]


def over_mice(scores: Mapping[str, MouseScores]) -> dict[str, tuple[float, float]]:
    """name -> mean and standard deviation over the mice that have this score."""
    return {
        name: mean_and_sd([mouse.summary.get(name, float("nan")) for mouse in scores.values()])
        for name in score_names(scores)
    }


def scores_table(scores: Mapping[str, MouseScores]) -> str:
    """A table in Markdown: a row per mouse, then mean and sd over mice."""
    names = score_names(scores)
    rows = [
        [mouse.mouse_id, str(mouse.n_trials), *(number(mouse.summary.get(name)) for name in names)]
        for mouse in scores.values()
    ]
    means = (number_and_sd(*values) for values in over_mice(scores).values())
    return markdown_table(["mouse", "trials", *names], [*rows, ["mean (sd)", "", *means]])
