"""Submission files for the two mice of the Sensorium 2022 competition, whose test responses are withheld.

    S0/submission_file_live_test.csv    tier test: scored while the competition ran
    S0/submission_file_final_test.csv   tier final_test
    S0/submission.json                  receipt: weights, data, and the inputs that the twin was given

A row is a trial: `trial_indices,image_ids,prediction,neuron_ids`, the last two as lists in brackets. Predictions are
standardised like the competition's ground truth: response / std, with the std at least 1 % of the mean std. Rows are in
the order of the recording's files; the competition finds them by their trial index, a hashed string.
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.arguments import add_checkpoints, add_device, add_output, add_recordings
from training.checkpoints.checkpoint import source_commit
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.data.mouse import open_recordings
from training.data.recordings import Recording
from training.errors import RecordingError, ScoringError
from training.evaluation.evaluate import check_known
from training.evaluation.missing_inputs import predictor_for
from training.files import write_files
from training.tables import counted
from training.trainer.hardware import device_named
from training.trainer.loop import predict_trials

__all__ = ["COLUMNS", "COMPETITION", "TIERS", "Submission", "add_arguments", "file_name", "run", "submit"]

# data key -> track. Sensorium+ provides behaviour, Sensorium does not.
COMPETITION = {"26872-17-20": "Sensorium", "27204-5-13": "Sensorium+"}
# tier on disk -> its name in the competition
TIERS = {"test": "live_test", "final_test": "final_test"}
COLUMNS = ("trial_indices", "image_ids", "prediction", "neuron_ids")


@dataclass(frozen=True)
class Submission:
    """The files that were written for one mouse.

    Attributes:
        files: path -> number of trials.
        inputs: a sentence on the inputs that the twin was given.
    """

    mouse_id: str
    track: str
    files: dict[Path, int]
    inputs: str


def submit(ensemble: Ensemble, recording: Recording, folder: Path) -> Submission:
    """Writes the submission files of one mouse into `folder`/MOUSE.

    Raises:
        RecordingError: the mouse is not in the competition, the twin does not know it, or it has no test trials.
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
    predictor, inputs = predictor_for(ensemble, recording)
    tiers = {tier: trials for tier in TIERS if len(trials := recording.tier(tier))}
    if not tiers:
        raise RecordingError(f"{recording.path} has no test trials", expected=" or ".join(TIERS))
    mouse_folder = folder / recording.mouse_id
    files: dict[Path, int] = {}
    for tier, trials in tiers.items():
        predictions = predict_trials(
            predictor, recording, trials.indices, progress=f"mouse {recording.mouse_id}, {tier}"
        )
        if not np.isfinite(predictions).all():
            wrong = trials.indices[~np.isfinite(predictions).all(1)]
            raise ScoringError(f"mouse {recording.mouse_id!r}: predictions are not finite", got=f"trials {wrong[:5]}")
        rows = _rows(trials.trial_ids, trials.image_ids, predictions, recording.neuron_ids)
        (path,) = write_files(mouse_folder, {file_name(tier): rows})
        files[path] = len(trials)
    about = {
        "mouse": recording.mouse_id,
        "track": COMPETITION[recording.data_key],
        "asked": inputs,
        "trials": {path.name: n for path, n in files.items()},
        "weights": ensemble.weights_hashes,
        "data": recording.data_hash,
        "commit": source_commit(),
    }
    write_files(mouse_folder, {"submission.json": about})
    return Submission(recording.mouse_id, COMPETITION[recording.data_key], files, inputs)


def file_name(tier: str) -> str:
    """The name of a tier's file."""
    return f"submission_file_{TIERS[tier]}.csv"


def _rows(trial_ids: np.ndarray, image_ids: np.ndarray, predictions: np.ndarray, neuron_ids: np.ndarray) -> str:
    """The content of the CSV file. predictions: (T, N)."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(COLUMNS)
    neurons = str(neuron_ids.tolist())
    for trial_id, image_id, row in zip(trial_ids, image_ids, predictions, strict=True):
        # Nine digits determine a float32; the `repr` of its double would be twice as long.
        writer.writerow([trial_id, image_id, str([float(f"{value:.9g}") for value in row.tolist()]), neurons])
    return content.getvalue()


EPILOG = """example:
  python -m training submit runs/v1t --recordings path/to/sensorium --output submission

The recording of S0 (Sensorium) has no behaviour. For a twin that uses behaviour it is set to the mouse's training mean;
the command reports that.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_checkpoints(parser)
    add_recordings(parser, "recordings of S0, S1, or both")
    add_output(parser, "folder to write; it gets a folder per mouse")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    ensemble = load_ensemble(args.checkpoints).to(device_named(args.device))
    recordings = open_recordings(args.recordings, nan_trials=args.nan_trials)
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
        print(f"mouse {submission.mouse_id} ({submission.track}): {submission.inputs}")
        for path, n_trials in submission.files.items():
            print(f"  {path}: {counted(n_trials, 'trial')}")
    if skipped := [recording.mouse_id for recording in recordings if recording not in entered]:
        print(f"skipped, not in the competition: {', '.join(skipped)}")
    return 0
