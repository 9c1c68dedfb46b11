"""`python -m training trials RECORDING --output trials`: the trials of a tier as arrays, for `v1t` and other programs.

    images.npy        (T, C, H, W) grey levels, as recorded (bytes stay bytes)
    behavior.npy      (T, 3) pupil dilation, its derivative, running speed; only if they were recorded
    pupil_center.npy  (T, 2) x and y [eye-camera px]; only if they were recorded
    responses.npy     (T, N) as recorded; only if they are not withheld
    trials.json       mouse, tier, neuron ids, hash of the recording; image id, trial id and file number of each trial

Rows are in the order of the file numbers. `v1t attention MOUSE --images trials` reads the folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from training.arguments import add_nan_trials, add_output
from training.data.layout import TIERS
from training.data.mouse import open_recordings
from training.data.recordings import Recording
from training.errors import RecordingError, ScoringError
from training.files import check_output, writing
from training.replacing import replacing
from training.tables import counted

__all__ = ["ABOUT", "add_arguments", "run", "write_trials"]

ABOUT = "trials.json"
BATCH = 64


def write_trials(recording: Recording, tier: str, folder: Path) -> int:
    """Writes the trials of a tier, and returns their number; the folder is replaced as a whole.

    Raises:
        RecordingError: the tier has no trials.
        CheckpointError: the folder cannot be written.
    """
    trials = recording.tier(tier)
    n = len(trials)
    if n == 0:
        held = ", ".join(str(name) for name in np.unique(recording.tiers))
        raise RecordingError(f"mouse {recording.mouse_id!r} has no {tier} trials", got=held, expected=tier)
    behavior, pupil_center = recording.states_of(trials.indices)
    arrays = {"behavior": behavior} if recording.has_behavior else {}
    arrays |= {"pupil_center": pupil_center} if recording.has_pupil_center else {}
    try:
        recording.scorable(tier)
        arrays["responses"] = recording.responses(trials.indices)
    except ScoringError:
        pass
    about = {
        "mouse": recording.mouse_id,
        "tier": tier,
        "simulated": recording.simulated,
        "data_hash": recording.data_hash,
        "image_ids": trials.image_ids.tolist(),
        "trial_ids": trials.trial_ids.tolist(),
        "file_numbers": trials.indices.tolist(),
        "neuron_ids": recording.neuron_ids.tolist(),
    }
    with writing(folder), replacing(folder) as new:
        shape = (n, *recording.image_shape)
        images = np.lib.format.open_memmap(new / "images.npy", mode="w+", dtype=recording.image_dtype, shape=shape)
        for start in range(0, n, BATCH):  # there may be gigabytes of them
            images[start : start + BATCH] = recording.batch(trials.indices[start : start + BATCH]).image
        images.flush()
        del images
        for name, values in arrays.items():
            np.save(new / f"{name}.npy", values)
        (new / ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")
    return n


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help_ = "folder or .zip in the Sensorium 2022 layout; NAME=PATH names its mouse"
    parser.add_argument("recording", type=Path, help=help_)
    parser.add_argument("--tier", choices=TIERS, default="test", help="(default: test)")
    add_output(parser, "folder to write", force=True)
    add_nan_trials(parser)


def run(args: argparse.Namespace) -> int:
    check_output(args.output, force=args.force, markers=(ABOUT,))
    recordings = open_recordings([args.recording], nan_trials=args.nan_trials)
    if len(recordings) > 1:
        found = ", ".join(recording.label for recording in recordings)
        raise RecordingError("the trials of one recording are written at a time", got=found, expected="one recording")
    n = write_trials(recordings[0], args.tier, args.output)
    print(f"{args.output}: {counted(n, f'{args.tier} trial')} of mouse {recordings[0].mouse_id}")
    return 0
