"""Submission files of the Sensorium 2022 competition, for its two mice whose test responses are withheld.

    S0/submission_file_live_test.csv    tier test: scored while the competition ran
    S0/submission_file_final_test.csv   tier final_test
    S0/submission.json                  which weights, which data, and how the twin was asked

A row is a trial: `trial_indices,image_ids,prediction,neuron_ids`, the last two as lists in brackets; predictions are
standardised, as the competition's ground truth is (response / std, the std floored at 1 % of the mean std). Rows are in
the order of the recording's files; the evaluation finds them by their trial index, a hashed string.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.checkpoints.checkpoint import source_commit
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.data.mouse import open_recordings
from training.data.recordings import Recording
from training.errors import CheckpointError, RecordingError, ScoringError
from training.evaluation.evaluate import check_known
from training.evaluation.withheld import how_asked
from training.files import write_atomically
from training.trainer.loop import predict_tier
from training.trainer.run import device_named

__all__ = ["COMPETITION", "TIERS", "Submission", "add_arguments", "run", "submit"]

# data key -> track. Sensorium+ gives behaviour, Sensorium does not.
COMPETITION = {"26872-17-20": "Sensorium", "27204-5-13": "Sensorium+"}
# tier on disk -> the competition's name of it
TIERS = {"test": "live_test", "final_test": "final_test"}


@dataclass(frozen=True)
class Submission:
    """What was written for one mouse.

    Attributes:
        files: path -> number of trials.
        asked: which inputs the twin was given, a sentence.
    """

    mouse_id: str
    track: str
    files: dict[Path, int]
    asked: str


def submit(ensemble: Ensemble, recording: Recording, folder: Path) -> Submission:
    """Writes the submission files of one mouse into `folder`/MOUSE.

    Raises:
        RecordingError: not a mouse of the competition, not known to the twin, or without test trials.
        ScoringError: a prediction is not finite.
        CheckpointError: the folder cannot be written.
    """
    if recording.data_key not in COMPETITION:
        raise RecordingError(
            f"mouse {recording.mouse_id!r} is not in the competition",
            got=recording.data_key,
            expected=list(COMPETITION),
        )
    check_known(ensemble, [recording])
    twin, asked = how_asked(ensemble, recording)
    tiers = {tier: trials for tier in TIERS if len(trials := recording.tier(tier))}
    if not tiers:
        raise RecordingError(f"{recording.path} has no test trials", expected=" or ".join(TIERS))
    mouse_folder = folder / recording.mouse_id
    files: dict[Path, int] = {}
    for tier, trials in tiers.items():
        predictions = predict_tier(twin, recording, trials.indices, progress=f"mouse {recording.mouse_id}, {tier}")
        if not np.isfinite(predictions).all():
            wrong = trials.indices[~np.isfinite(predictions).all(1)]
            raise ScoringError(f"mouse {recording.mouse_id!r}: predictions are not finite", got=f"trials {wrong[:5]}")
        path = mouse_folder / f"submission_file_{TIERS[tier]}.csv"
        _write(path, _rows(trials.trial_ids, trials.image_ids, predictions, recording.neuron_ids))
        files[path] = len(trials)
    about = {
        "mouse": recording.mouse_id,
        "track": COMPETITION[recording.data_key],
        "asked": asked,
        "trials": {path.name: n for path, n in files.items()},
        "weights": [member.weights_hash for member in ensemble.members],
        "data": recording.data_hash,
        "commit": source_commit(),
    }
    _write(mouse_folder / "submission.json", json.dumps(about, indent=2))
    return Submission(recording.mouse_id, COMPETITION[recording.data_key], files, asked)


def _rows(trial_ids: np.ndarray, image_ids: np.ndarray, predictions: np.ndarray, neuron_ids: np.ndarray) -> str:
    """The CSV. predictions: (T, N)."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["trial_indices", "image_ids", "prediction", "neuron_ids"])
    neurons = str(neuron_ids.tolist())
    for trial_id, image_id, row in zip(trial_ids, image_ids, predictions, strict=True):
        # Nine digits are a float32 exactly; `repr` of its double would be twice as long.
        writer.writerow([trial_id, image_id, str([float(f"{value:.9g}") for value in row.tolist()]), neurons])
    return content.getvalue()


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error


EPILOG = """example:
  python -m training submit runs/v1t --recordings path/to/sensorium --output submission

Sensorium (S0) withholds behaviour: a twin that uses it is asked at the mouse's training mean, and the command says so.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("checkpoints", nargs="+", type=Path, help="a run, an ensemble, or checkpoints that make one")
    parser.add_argument("--recordings", nargs="+", required=True, type=Path, metavar="DIR", help="S0, S1, or both")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="gets a folder per mouse")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda (default: cpu)")


def run(args: argparse.Namespace) -> int:
    ensemble = load_ensemble(args.checkpoints).to(device_named(args.device))
    recordings = open_recordings(args.recordings)
    entered = [recording for recording in recordings if recording.data_key in COMPETITION]
    if not entered:
        raise RecordingError(
            "none of these mice is in the competition",
            got=[recording.data_key for recording in recordings],
            expected=" or ".join(COMPETITION),
        )
    check_known(ensemble, entered)  # before any file is written
    for recording in entered:
        submission = submit(ensemble, recording, args.output)
        print(f"mouse {submission.mouse_id} ({submission.track}): {submission.asked}")
        for path, n_trials in submission.files.items():
            print(f"  {path}: {n_trials} trials")
    if passed := [recording.mouse_id for recording in recordings if recording not in entered]:
        print(f"passed over, not in the competition: {', '.join(passed)}")
    return 0
