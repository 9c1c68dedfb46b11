"""Submission files that are right, and ones with one thing wrong each."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.tiny_twins import IMAGE_SHAPE, competition_recording, tiny_checkpoint, tiny_config

from training.__main__ import main
from training.checkpoints.checkpoint import save_checkpoint
from training.checkpoints.ensemble import Ensemble
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.evaluation.evaluate import evaluate_mouse
from training.evaluation.submission import submit
from training.evaluation.submission_check import check_file
from training.simulation.simulate import simulate

S1 = "27204-5-13"
Rows = list[list[str]]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return competition_recording(tmp_path_factory.mktemp("recordings"), S1)


@pytest.fixture(scope="module")
def written(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("submission")
    ensemble = Ensemble([tiny_checkpoint(tiny_config(), [Mouse.from_recording(recording)])])
    submit(ensemble, recording, folder)
    return folder / "S1/submission_file_live_test.csv"


def changed(written: Path, folder: Path, change: Callable[[Rows], object]) -> Path:
    with written.open(newline="") as stream:
        rows = list(csv.reader(stream))
    change(rows)
    path = folder / "changed.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def put(line: int, column: int, value: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[line - 1][column] = value

    return change


def test_what_submit_writes_has_no_problem(recording: Recording, written: Path) -> None:
    found = check_file(written, recording, "test")
    assert (found.n_rows, found.problems, found.notes) == (len(recording.tier("test")), [], [])


def other_neurons(rows: Rows) -> None:
    for row in rows[1:]:
        row[3] = str([int(v) + 1000 for v in row[3].strip("[]").split(",")])


def neurons_in_another_order(rows: Rows) -> None:
    for row in rows[1:]:
        row[3] = str([int(v) for v in row[3].strip("[]").split(",")][::-1])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put(1, 2, "predictions"), "the columns are"),
        (lambda rows: rows.clear(), "the columns are []"),
        (lambda rows: rows.pop(4), "1 trial without a row"),
        (lambda rows: rows.append(rows[2]), "line 14: a trial id that another row has"),
        (put(3, 0, "17"), "line 3: no test trial has this id; got '17'"),
        (put(5, 1, "123456"), "line 5: another image than the trial's; got 123456"),
        (put(6, 2, "[0.1, 0.2]"), "line 6: 2 predictions for 6 neurons"),
        (put(6, 2, "0.1 0.2"), "line 6: prediction is not a list"),
        (put(7, 2, "[nan, 1, 1, 1, 1, 1]"), "line 7: predictions with NaN or infinity"),
        (put(7, 2, "[1, 1, 1, 1, 1, -inf]"), "line 7: predictions with NaN or infinity"),
        (put(8, 2, "[1, 1, -0.5, 1, 1, 1]"), "line 8: negative predictions"),
        (neurons_in_another_order, "lines 2, 3, 4 and 9 more: neuron_ids are the recording's neurons in another order"),
        (other_neurons, "6 neurons, of which 0 are among the recording's 6"),
        (lambda rows: rows[3].pop(), "line 4: not 4 fields"),
    ],
)
def test_each_mistake_is_named_with_its_line(
    recording: Recording, written: Path, tmp_path: Path, change: Callable[[Rows], object], problem: str
) -> None:
    found = check_file(changed(written, tmp_path, change), recording, "test")
    assert any(problem in text for text in found.problems), found.problems


def test_rows_in_another_order_are_noted_and_accepted(recording: Recording, written: Path, tmp_path: Path) -> None:
    def shuffle(rows: Rows) -> None:
        rows[1:] = rows[:0:-1]

    found = check_file(changed(written, tmp_path, shuffle), recording, "test")
    assert found.problems == []
    assert "not in the order" in found.notes[0]


def test_released_responses_give_the_score_of_evaluate(tmp_path: Path) -> None:
    shapes = {"n_neurons": 6, "n_train": 20, "n_validation": 8, "n_test_images": 6, "n_test_repeats": 3}
    recording = Recording.open(simulate(tmp_path / "r", mouse_id="S1", data_key=S1, image_shape=IMAGE_SHAPE, **shapes))
    ensemble = Ensemble([tiny_checkpoint(tiny_config(), [Mouse.from_recording(recording)])])
    submit(ensemble, recording, tmp_path / "out")
    found = check_file(tmp_path / "out/S1/submission_file_live_test.csv", recording, "test")
    score = evaluate_mouse(ensemble, recording).summary["single_trial_correlation"]
    assert found.notes == [f"single-trial correlation with the released responses: {score:.4f}"]
    assert np.isfinite(score)


def test_the_command_names_every_problem_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = competition_recording(tmp_path / "recordings", S1)
    save_checkpoint(tmp_path / "twin", tiny_checkpoint(tiny_config(), [Mouse.from_recording(recording)]))
    where = ["--recordings", str(tmp_path / "recordings")]
    assert main(["submit", str(tmp_path / "twin"), "--output", str(tmp_path / "out"), *where]) == 0
    assert main(["check-submission", str(tmp_path / "out"), *where]) == 0
    assert capsys.readouterr().out.count("no problem") == 2
    (tmp_path / "out/S1/submission_file_final_test.csv").unlink()
    assert main(["check-submission", str(tmp_path / "out"), *where]) == 1
    assert "the file cannot be read: [Errno 2]" in capsys.readouterr().out
