"""Submission files, read as the Sensorium evaluation reads them, of simulated recordings of its two mice."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.tiny_twins import IMAGE_SHAPE, competition_recording, tiny_checkpoint, tiny_config, tiny_recordings

from training.__main__ import main
from training.checkpoints.checkpoint import save_checkpoint
from training.checkpoints.ensemble import Ensemble
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import RecordingError, ScoringError
from training.evaluation.submission import submit
from training.simulation.simulate import simulate
from training.trainer.loop import predict_trials

S0, S1 = "26872-17-20", "27204-5-13"


def ensemble_of(recordings: list[Recording], *, members: int = 2, **options: Any) -> Ensemble:
    mice = [Mouse.from_recording(recording) for recording in recordings]
    return Ensemble([tiny_checkpoint(tiny_config(**options), mice, seed=seed) for seed in range(members)])


def as_the_evaluation_reads(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Trial indices (T,), image ids (T,), neuron ids (N,), predictions (T, N)."""
    table = pd.read_csv(path)
    assert list(table.columns) == ["trial_indices", "image_ids", "prediction", "neuron_ids"]
    neuron_ids = [ast.literal_eval(text) for text in table["neuron_ids"]]
    assert all(ids == neuron_ids[0] for ids in neuron_ids)
    predictions = np.array([ast.literal_eval(text) for text in table["prediction"]])
    return table["trial_indices"].to_numpy(), table["image_ids"].to_numpy(), np.array(neuron_ids[0]), predictions


def predicted(ensemble: Ensemble, recording: Recording, trial: int) -> np.ndarray:
    batch = recording.batch(np.array([trial]))
    inputs = (torch.from_numpy(array) for array in (batch.image, batch.behavior, batch.pupil_center))
    with torch.no_grad():
        response: np.ndarray = ensemble(recording.mouse_id, *inputs)[0].numpy()
    return response


@pytest.mark.parametrize(("tier", "name"), [("test", "live_test"), ("final_test", "final_test")])
def test_every_trial_has_its_prediction_found_by_its_hashed_id(tmp_path: Path, tier: str, name: str) -> None:
    recording = competition_recording(tmp_path / "recordings", S1)
    ensemble = ensemble_of([recording])
    submit(ensemble, recording, tmp_path / "out")
    trial_ids, image_ids, neuron_ids, predictions = as_the_evaluation_reads(
        tmp_path / f"out/S1/submission_file_{name}.csv"
    )
    np.testing.assert_array_equal(neuron_ids, recording.neuron_ids)
    expected = np.flatnonzero(recording.tiers == tier)
    assert set(trial_ids) == {recording.trial_ids[trial] for trial in expected}
    assert len(trial_ids) == len(expected) > 0
    for trial in np.random.default_rng(0).permutation(expected):
        (row,) = np.flatnonzero(trial_ids == recording.trial_ids[trial])
        assert image_ids[row] == recording.image_ids[trial]
        np.testing.assert_allclose(predictions[row], predicted(ensemble, recording, trial), rtol=1e-5, atol=1e-6)
    assert len(np.unique(predictions, axis=0)) > 1


def test_predictions_are_in_the_units_of_the_competitions_ground_truth(tmp_path: Path) -> None:
    """Against responses that were not withheld, on permuted trials, the file scores what the twin scores."""
    shapes = {"n_neurons": 6, "n_train": 20, "n_validation": 8, "n_test_images": 6, "n_test_repeats": 3}
    whole = Recording.open(simulate(tmp_path / "whole", mouse_id="S1", data_key=S1, image_shape=IMAGE_SHAPE, **shapes))
    withheld = competition_recording(tmp_path / "withheld", S1, **shapes)
    ensemble = ensemble_of([withheld])
    submit(ensemble, withheld, tmp_path / "out")
    trial_ids, _, _, predictions = as_the_evaluation_reads(tmp_path / "out/S1/submission_file_live_test.csv")
    trials = np.random.default_rng(1).permutation(np.flatnonzero(withheld.tiers == "test"))
    std = np.load(whole.path / "meta/statistics/responses/all/std.npy").astype(np.float64)
    truth = whole.responses(trials) / np.maximum(std, 0.01 * std.mean())
    hashed = [hashlib.sha256(b"%d" % whole.trial_ids[trial]).hexdigest()[:16] for trial in trials]
    place = {trial_id: row for row, trial_id in enumerate(trial_ids)}
    aligned = predictions[[place[trial_id] for trial_id in hashed]]
    own = np.array([predicted(ensemble, whole, trial) for trial in trials])
    error = ((aligned - truth) ** 2).mean()
    assert error == pytest.approx(((own - truth) ** 2).mean(), rel=1e-5)
    assert error < ((aligned - whole.responses(trials)) ** 2).mean()  # raw units would not fit


def test_a_mouse_without_behavior_is_asked_with_images_alone(tmp_path: Path) -> None:
    recording = competition_recording(tmp_path / "recordings", S0, behavior=False)
    ensemble = ensemble_of([recording], behavior="none", shifter=False)
    submission = submit(ensemble, recording, tmp_path / "out")
    assert submission.track == "Sensorium"
    assert "images alone" in submission.inputs
    assert json.loads((tmp_path / "out/S0/submission.json").read_text())["asked"] == submission.inputs
    _, _, _, predictions = as_the_evaluation_reads(tmp_path / "out/S0/submission_file_live_test.csv")
    assert predictions.shape == (12, 6)


def test_a_twin_that_uses_withheld_behavior_is_asked_at_the_training_mean_and_that_is_said(tmp_path: Path) -> None:
    trained_on = competition_recording(tmp_path / "with", S0)
    withheld = competition_recording(tmp_path / "without", S0, behavior=False)
    ensemble = ensemble_of([trained_on])
    submission = submit(ensemble, withheld, tmp_path / "out")
    behavior, pupil_center = trained_on.statistics.behavior.mean, trained_on.statistics.pupil_center.mean
    assert f"training mean: behavior ({behavior[0]:.4g}, " in submission.inputs
    trial_ids, _, _, predictions = as_the_evaluation_reads(tmp_path / "out/S0/submission_file_final_test.csv")
    trial = int(np.flatnonzero(withheld.tiers == "final_test")[2])
    image = torch.from_numpy(withheld.batch(np.array([trial])).image)
    with torch.no_grad():
        expected = ensemble("S0", image, torch.from_numpy(behavior[None]), torch.from_numpy(pupil_center[None]))[0]
    (row,) = np.flatnonzero(trial_ids == withheld.trial_ids[trial])
    np.testing.assert_allclose(predictions[row], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_numbers_are_float32_to_the_last_bit(tmp_path: Path) -> None:
    recording = competition_recording(tmp_path / "recordings", S1)
    ensemble = ensemble_of([recording], members=1)
    with torch.no_grad():
        ensemble.members[0].twin.readout("S1").bias.fill_(-12.0)  # far down the ELU: responses of about 1e-6
    submit(ensemble, recording, tmp_path / "out")
    _, _, _, predictions = as_the_evaluation_reads(tmp_path / "out/S1/submission_file_live_test.csv")
    expected = predict_trials(ensemble, recording, recording.tier("test").indices)
    assert 0 < expected.min() < 1e-4
    np.testing.assert_array_equal(predictions.astype(np.float32), expected)


def test_predictions_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    recording = competition_recording(tmp_path / "recordings", S1)
    ensemble = ensemble_of([recording], members=1)
    with torch.no_grad():
        ensemble.members[0].twin.readout("S1").bias[1] = torch.nan
    with pytest.raises(ScoringError, match="not finite"):
        submit(ensemble, recording, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_neurons_of_the_same_mouse_are_refused(tmp_path: Path) -> None:
    recording = competition_recording(tmp_path / "recordings", S1)
    ensemble = ensemble_of([recording])
    np.save(recording.path / "meta/neurons/unit_ids.npy", recording.neuron_ids[::-1])  # as many, in another order
    with pytest.raises(RecordingError, match="other neurons"):
        submit(ensemble, Recording.open(recording.path), tmp_path / "out")


def test_command_writes_both_mice_and_passes_over_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recordings = [competition_recording(tmp_path / "recordings", key) for key in (S0, S1)]
    (other,) = tiny_recordings(tmp_path / "other", n_train=(8,))
    (member,) = ensemble_of([*recordings, other], members=1).members
    save_checkpoint(tmp_path / "twin", member)
    command = ["submit", str(tmp_path / "twin"), "--output", str(tmp_path / "out"), "--recordings"]
    assert main([*command, str(other.path)]) == 1
    assert "none of these mice is in the competition" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "recordings"), str(other.path)]) == 0
    printed = capsys.readouterr().out
    assert "mouse S0 (Sensorium): predicted from images, behavior and pupil_center as recorded" in printed
    assert "skipped, not in the competition: SIM1" in printed
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.csv"))
    names = ["submission_file_final_test.csv", "submission_file_live_test.csv"]
    assert written == [f"{mouse}/{name}" for mouse in ("S0", "S1") for name in names]
