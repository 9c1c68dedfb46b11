"""Scores a twin on trials that it has not seen: per neuron, per mouse, and over mice (paper, section 4.3)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.checkpoint import write_atomically
from training.ensemble import Ensemble, load_ensemble
from training.errors import RecordingError
from training.loop import predict_tier
from training.metrics import correlation_to_average, fev_feve, mean_feve, single_trial_correlation
from training.mouse import open_recordings
from training.recordings import Recording
from training.simulate import TRUTH

__all__ = ["MouseScores", "add_arguments", "check_known", "evaluate", "evaluate_mouse", "run"]


@dataclass(frozen=True, eq=False)
class MouseScores:
    """Scores of one mouse on one tier.

    Attributes:
        neurons: name -> (N,) per neuron.
        summary: name -> mean over neurons; FEVE over neurons with FEV of 0.15 or more.
        ceiling: for a simulated mouse, the single-trial correlation of the true rates, (N,): no model can do better.
    """

    mouse_id: str
    tier: str
    n_trials: int
    neurons: dict[str, np.ndarray]
    summary: dict[str, float]
    ceiling: np.ndarray | None


def evaluate_mouse(ensemble: Ensemble, recording: Recording, *, tier: str = "test") -> MouseScores:
    """Scores one mouse.

    Raises:
        ScoringError: the tier has no trials, or its responses are withheld.
    """
    trials = recording.scorable(tier)
    responses = recording.responses(trials.indices) / recording.response_std
    predictions = predict_tier(ensemble, recording, trials.indices, progress=f"mouse {recording.mouse_id}")
    neurons = {"single_trial_correlation": single_trial_correlation(responses, predictions)}
    summary = {"single_trial_correlation": float(np.nanmean(neurons["single_trial_correlation"]))}
    if len(np.unique(trials.image_ids)) < len(trials.image_ids):
        neurons["correlation_to_average"] = correlation_to_average(responses, predictions, trials.image_ids)
        neurons["fev"], neurons["feve"] = fev_feve(responses, predictions, trials.image_ids)
        summary["correlation_to_average"] = float(np.nanmean(neurons["correlation_to_average"]))
        summary["feve"] = mean_feve(neurons["fev"], neurons["feve"])
    ceiling = _simulated_ceiling(recording, trials.indices)
    if ceiling is not None:
        summary["ceiling"] = float(np.nanmean(ceiling))
    return MouseScores(recording.mouse_id, tier, len(trials), neurons, summary, ceiling)


def _simulated_ceiling(recording: Recording, indices: np.ndarray) -> np.ndarray | None:
    """(N,) single-trial correlation of the true expected responses; None for a real mouse, whose truth nobody knows."""
    path = recording.path / TRUTH
    if not recording.simulated or not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as truth:
        return single_trial_correlation(recording.responses(indices), truth["expected_responses"][indices])


def evaluate(ensemble: Ensemble, recordings: Sequence[Recording], *, tier: str = "test") -> dict[str, MouseScores]:
    """Scores every mouse of the ensemble that was recorded.

    Raises:
        RecordingError: see `check_known`.
    """
    check_known(ensemble, recordings)
    return {recording.mouse_id: evaluate_mouse(ensemble, recording, tier=tier) for recording in recordings}


def check_known(ensemble: Ensemble, recordings: Sequence[Recording]) -> None:
    """Refuses recordings that the ensemble cannot be asked about.

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
            )
        if mouse.n_neurons != recording.n_neurons:
            raise RecordingError(
                f"{recording.path} is another recording of mouse {recording.mouse_id!r}",
                got=f"{recording.n_neurons} neurons",
                expected=f"{mouse.n_neurons} neurons",
            )
        if mouse.standardized_inputs:
            raise RecordingError(
                f"the twin was imported without recordings and takes standardised inputs for mouse "
                f"{recording.mouse_id!r}",
                got=recording.path,
                hint="Import the weights again with --recordings.",
            )


def scores_table(scores: dict[str, MouseScores]) -> str:
    """A table in Markdown: a row per mouse, then mean and sd over mice."""
    names = list(next(iter(scores.values())).summary)
    rows = [["mouse", "trials", *names]]
    rows += [[m.mouse_id, str(m.n_trials), *(f"{m.summary[n]:.3f}" for n in names)] for m in scores.values()]
    values = np.array([[m.summary[name] for name in names] for m in scores.values()])  # (mice, names)
    rows.append(["mean (sd)", "", *(f"{m:.3f} ({s:.3f})" for m, s in zip(values.mean(0), values.std(0), strict=True))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def report(scores: dict[str, MouseScores]) -> dict[str, Any]:
    """The scores as JSON: summaries, and per-neuron lists (null where a neuron has no score)."""

    def values(array: np.ndarray) -> list[float | None]:
        return [float(value) if np.isfinite(value) else None for value in array]

    return {
        mouse.mouse_id: {
            "tier": mouse.tier,
            "trials": mouse.n_trials,
            "summary": mouse.summary,
            "neurons": {name: values(array) for name, array in mouse.neurons.items()},
        }
        for mouse in scores.values()
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoints", nargs="+", type=Path, help="a run, an ensemble, or checkpoints that make one")
    parser.add_argument("--recordings", nargs="+", required=True, type=Path, metavar="DIR", help="to score on")
    parser.add_argument("--tier", choices=["validation", "test"], default="test", help="default: test")
    parser.add_argument("--output", type=Path, metavar="JSON", help="write the scores, per neuron too")


def run(args: argparse.Namespace) -> int:
    ensemble = load_ensemble(args.checkpoints)
    scores = evaluate(ensemble, open_recordings(args.recordings), tier=args.tier)
    print(scores_table(scores))
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output, json.dumps(report(scores), indent=2).encode())
        print(f"per neuron: {args.output}")
    return 0
