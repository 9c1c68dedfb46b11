"""`python -m training check-submission`: submission files against the recordings, before they are uploaded.

The files may be of any program. Every problem is printed; without one the exit code is 0.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.arguments import add_recordings
from training.data.mouse import open_recordings
from training.data.recordings import Recording, Trials
from training.errors import RecordingError, ScoringError
from training.evaluation.submission import COLUMNS, COMPETITION, TIERS, file_name
from training.metrics import single_trial_correlation
from training.tables import counted

__all__ = ["Checked", "add_arguments", "check_file", "run"]

LISTED = 3  # rows that a problem names


@dataclass(frozen=True)
class Checked:
    """What was found in one file.

    Attributes:
        problems: what the competition would refuse or score wrongly, one sentence each.
        notes: what is unusual, and the score if the responses are released.
    """

    path: Path
    n_rows: int
    problems: list[str]
    notes: list[str]


def check_file(path: Path, recording: Recording, tier: str) -> Checked:
    """Compares one submission file with the trials of a tier."""
    trials = recording.tier(tier)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            csv.field_size_limit(sys.maxsize)  # a field holds the predictions of all neurons
            header, *rows = list(csv.reader(stream)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        return Checked(path, 0, [f"the file cannot be read: {error}"], [])
    if header != list(COLUMNS):
        return Checked(path, len(rows), [f"the columns are {header}; expected {list(COLUMNS)}"], [])
    if wrong := [i for i, row in enumerate(rows) if len(row) != len(COLUMNS)]:
        return Checked(path, len(rows), [f"{_rows(wrong)}: not {len(COLUMNS)} fields"], [])
    problems = [*_id_problems(rows, trials), *_neuron_problems(rows, recording)]
    predictions, found = _predictions(rows, recording.n_neurons)
    problems += found
    notes = []
    if not problems:
        if [row[0] for row in rows] != [str(one) for one in trials.trial_ids]:
            notes.append("rows are not in the order of the recording's files; the competition finds them by their id")
        if len(rows) > 1 and (predictions == predictions[0]).all():
            notes.append("every row has the same predictions")
        notes += _score(rows, predictions, recording, trials)
    return Checked(path, len(rows), problems, notes)


def _rows(indices: Sequence[int]) -> str:
    """Rows by their line in the file."""
    lines = ", ".join(str(i + 2) for i in indices[:LISTED])
    more = f" and {len(indices) - LISTED} more" if len(indices) > LISTED else ""
    return f"{'line' if len(indices) == 1 else 'lines'} {lines}{more}"


def _id_problems(rows: Sequence[Sequence[str]], trials: Trials) -> Iterator[str]:
    images = {str(trial): str(image) for trial, image in zip(trials.trial_ids, trials.image_ids, strict=True)}
    if len(rows) != len(trials):
        yield f"{counted(len(rows), 'row')}; the recording has {counted(len(trials), f'{trials.tier} trial')}"
    if unknown := [i for i, row in enumerate(rows) if row[0] not in images]:
        got, expected = rows[unknown[0]][0], next(iter(images), "")
        yield f"{_rows(unknown)}: no {trials.tier} trial has this id; got {got!r}, expected such as {expected!r}"
    seen: set[str] = set()
    if twice := [i for i, row in enumerate(rows) if row[0] in seen or seen.add(row[0])]:  # type: ignore[func-returns-value]
        yield f"{_rows(twice)}: a trial id that another row has, such as {rows[twice[0]][0]!r}"
    if absent := [trial for trial in images if trial not in seen]:
        yield f"{counted(len(absent), 'trial')} without a row, such as {absent[0]!r}"
    if wrong := [i for i, row in enumerate(rows) if row[0] in images and row[1] != images[row[0]]]:
        trial, image = rows[wrong[0]][:2]
        yield f"{_rows(wrong)}: another image than the trial's; got {image}, expected {images[trial]}"


def _neuron_problems(rows: Sequence[Sequence[str]], recording: Recording) -> Iterator[str]:
    expected = recording.neuron_ids.tolist()
    lists = {text: _list(text) for text in {row[3] for row in rows}}
    if wrong := [i for i, row in enumerate(rows) if lists[row[3]] != expected]:
        found = lists[rows[wrong[0]][3]]
        if found is None:
            what = "not a list of numbers in brackets"
        elif sorted(found) == sorted(expected):
            what = "the recording's neurons in another order"
        else:
            common = len(set(found) & set(expected))
            what = f"{counted(len(found), 'neuron')}, of which {common} are among the recording's {len(expected)}"
        yield f"{_rows(wrong)}: neuron_ids are {what}"


def _predictions(rows: Sequence[Sequence[str]], n_neurons: int) -> tuple[np.ndarray, list[str]]:
    """(T, N), and what is wrong with them."""
    lists = [_list(row[2]) for row in rows]
    unreadable = [i for i, values in enumerate(lists) if values is None]
    length = [i for i, values in enumerate(lists) if values is not None and len(values) != n_neurons]
    problems = []
    if unreadable:
        problems.append(f"{_rows(unreadable)}: prediction is not a list of numbers in brackets")
    if length:
        got = len(lists[length[0]] or ())
        problems.append(f"{_rows(length)}: {counted(got, 'prediction')} for {counted(n_neurons, 'neuron')}")
    if problems or not rows:
        return np.zeros((0, n_neurons)), problems
    predictions = np.array(lists, dtype=np.float64)
    if wrong := np.flatnonzero(~np.isfinite(predictions).all(1)).tolist():
        problems.append(f"{_rows(wrong)}: predictions with NaN or infinity")
    if wrong := np.flatnonzero((predictions < 0).any(1)).tolist():
        problems.append(f"{_rows(wrong)}: negative predictions, but responses are not negative")
    return predictions, problems


def _list(text: str) -> list[float] | None:
    """The numbers in brackets; NaN and infinity are read, to be named as such."""
    try:
        values = json.loads(text.replace("nan", "NaN").replace("inf", "Infinity"))
    except ValueError:
        return None
    numbers = isinstance(values, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return values if numbers else None


def _score(rows: Sequence[Sequence[str]], predictions: np.ndarray, recording: Recording, trials: Trials) -> list[str]:
    """The score, if the responses are released."""
    try:
        recording.scorable(trials.tier)
    except ScoringError:
        return []
    place = {row[0]: i for i, row in enumerate(rows)}
    aligned = predictions[[place[str(trial)] for trial in trials.trial_ids]]
    correlation = single_trial_correlation(recording.responses(trials.indices) / recording.response_std, aligned)
    return [f"single-trial correlation with the released responses: {correlation.mean():.4f}"]


EPILOG = """example:
  python -m training check-submission submission --recordings path/to/sensorium
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    help_ = "folder with a folder per mouse, as `submit` writes it"
    parser.add_argument("submission", type=Path, metavar="FOLDER", help=help_)
    add_recordings(parser, "recordings of S0, S1, or both")


def run(args: argparse.Namespace) -> int:
    recordings = open_recordings(args.recordings, nan_trials=args.nan_trials)
    entered = [recording for recording in recordings if recording.data_key in COMPETITION]
    if not entered:
        raise RecordingError(
            "none of these mice is in the competition",
            got=[recording.data_key for recording in recordings],
            expected=" or ".join(COMPETITION),
        )
    wrong = 0
    for recording in entered:
        for tier in TIERS:
            if len(recording.tier(tier)):
                found = check_file(args.submission / recording.mouse_id / file_name(tier), recording, tier)
                problems = counted(len(found.problems), "problem") if found.problems else "no problem"
                print(f"{found.path}: {counted(found.n_rows, 'row')}, {problems}")
                print(
                    "".join(f"  {text}\n" for text in [*found.problems, *(f"note: {n}" for n in found.notes)]), end=""
                )
                wrong += len(found.problems)
    return 1 if wrong else 0
