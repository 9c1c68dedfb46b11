"""Behaviour's worth: parts of the variance against closed forms, and scores against predictions of changed trials."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.tiny_twins import competition_recording, tiny_checkpoint, tiny_config, tiny_recordings

from training.__main__ import main
from training.analyses import behavior_worth as module
from training.analyses.behavior_worth import behavior_worth, inputs_of
from training.analyses.variance_partition import partition, share_that_needs
from training.checkpoints.checkpoint import save_checkpoint
from training.checkpoints.ensemble import Ensemble
from training.data.layout import SENSORIUM_BEHAVIOR
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import ConfigError, RecordingError, ScoringError
from training.metrics import single_trial_correlation


def test_parts_of_known_functions_are_their_closed_forms() -> None:
    """r = (x + y g) exp(s b) + noise, and others: variances of independent normal variables."""
    rng = np.random.default_rng(0)
    T = 100_000
    x, y, b, g = rng.normal(size=(4, T, 1))
    x, y, g = 1 + x, 0.5 + 0.3 * y, 0.2 + g  # x, y belong to the image
    s = np.array([0.0, 0.3, 0.5])  # neurons with more and more gain
    noise = rng.normal(0, 1.5, (T, 3))

    def f(x: np.ndarray, y: np.ndarray, b: np.ndarray, g: np.ndarray) -> np.ndarray:
        return (x + y * g) * np.exp(s * b)

    i, k = rng.permutation(T), rng.permutation(T)
    means = {"i": f(x, y, b[k], g[k]), "b": f(x[i], y[i], b, g[k]), "ib": f(x, y, b, g[k])}
    prediction = f(x, y, b, g)
    found = partition(prediction + noise, prediction, means)
    gain, gain2 = np.exp(s**2 / 2), np.exp(2 * s**2)  # E[exp(s b)] and E[exp(2 s b)]
    mean, image = 1 + 0.5 * 0.2, 1 + 0.3**2 * 0.2**2  # of E[x + y g | image]: its mean and variance
    drive2 = (1 + 1) + 2 * 1 * 0.5 * 0.2 + (0.3**2 + 0.5**2) * (1 + 0.2**2)  # E[(x + y g)^2]
    expected = {
        "image": image * gain**2,
        "behavior": mean**2 * (gain2 - gain**2),
        "image_x_behavior": image * (gain2 - gain**2),
        "gaze": (drive2 - image - mean**2) * gain2,
        "rest": np.full(3, 1.5**2),
    }
    total = sum(expected.values())
    for name, part in expected.items():
        np.testing.assert_allclose(found[name], part / total, atol=0.015, err_msg=name)
    np.testing.assert_allclose(sum(found.values()), 1, atol=1e-12)
    alone = partition(prediction, prediction, means)
    for name in ("image", "behavior", "image_x_behavior", "gaze"):
        np.testing.assert_allclose(alone[name], expected[name] / (total - 1.5**2), atol=0.02, err_msg=name)
    np.testing.assert_allclose(alone["rest"], 0, atol=1e-12)
    np.testing.assert_allclose(share_that_needs(prediction, means["ib"]), alone["gaze"], atol=1e-12)


def test_a_prediction_that_is_too_large_explains_less_and_a_silent_neuron_has_no_parts() -> None:
    rng = np.random.default_rng(1)
    r = rng.normal(size=(50_000, 1))
    doubled = np.concatenate([2 * r, r], axis=1)  # explains nothing: Var(r - 2 r) = Var(r)
    found = partition(np.concatenate([r, 0 * r], axis=1), doubled, {"i": doubled, "b": 0 * doubled, "ib": doubled})
    assert found["image"][0] == pytest.approx(0, abs=1e-9)
    assert found["rest"][0] == pytest.approx(1)
    assert all(np.isnan(part[1]) for part in found.values())


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    folder = tmp_path_factory.mktemp("recordings")
    return tiny_recordings(folder, n_train=(12,), n_neurons=40, n_test_images=30, n_test_repeats=4)


def ensemble_of(recordings: list[Recording], **options: object) -> Ensemble:
    mice = [Mouse.from_recording(recording) for recording in recordings]
    return Ensemble([tiny_checkpoint(tiny_config(**options), mice)])


def test_the_truths_parts_are_those_of_its_gain(recordings: list[Recording], monkeypatch: pytest.MonkeyPatch) -> None:
    """Expected responses are noise_floor + drive(image) gain(behaviour) where neurons do not move with the gaze."""
    (recording,) = recordings
    cortex = module.load_cortex(recording.path / "simulated_truth.npz")
    still = replace(cortex, gaze_gain=np.zeros((2, 2)))
    monkeypatch.setattr(module, "load_cortex", lambda path: still)
    trials = recording.tier("test")
    monkeypatch.setattr(Recording, "responses", lambda self, indices: np.zeros((len(indices), 40)) + indices[:, None])
    truth = behavior_worth(ensemble_of(recordings), recording, draws=8).truth
    assert truth is not None
    batch = recording.batch(trials.indices)
    evoked = still.baseline + still.amplitude * still.drive(batch.image, batch.pupil_center) ** still.exponent
    gain = still.gain(batch.behavior)
    image = evoked.var(0) * gain.mean(0) ** 2
    behavior, both = evoked.mean(0) ** 2 * gain.var(0), evoked.var(0) * gain.var(0)
    total = image + behavior + both
    responds = total > 0
    for name, part in (("image", image), ("behavior", behavior), ("image_x_behavior", both)):
        share = (part[responds] / total[responds]).mean()
        assert truth.of_prediction[name] == pytest.approx(share, abs=0.05), name
    assert truth.of_prediction["gaze"] == pytest.approx(0, abs=1e-6)
    assert truth.needs["pupil_dilation_derivative"] == pytest.approx(0, abs=1e-9)


def test_the_truth_explains_what_repeats_say_is_of_the_image(recordings: list[Recording]) -> None:
    truth = behavior_worth(ensemble_of(recordings), recordings[0], draws=2).truth
    assert truth is not None
    assert truth.image_of_explainable == pytest.approx(1, abs=0.2)
    # What needs an input, and its parts, agree on behaviour and gaze together.
    parts = truth.of_prediction
    assert truth.needs["behavior and pupil_center"] == pytest.approx(1 - parts["image"], abs=1e-9)
    assert truth.needs["pupil_center"] == pytest.approx(parts["gaze"], abs=1e-9)


def test_scores_are_those_of_trials_whose_input_is_held(recordings: list[Recording]) -> None:
    (recording,) = recordings
    ensemble = ensemble_of(recordings)
    found = behavior_worth(ensemble, recording, draws=2).twin
    inputs = inputs_of(recording.behavior_channels)
    assert set(found.held) == set(inputs)
    indices = recording.tier("test").indices
    responses = recording.responses(indices)
    for name, columns in inputs.items():
        batch = recording.batch(indices)
        for column in columns:
            target, at = (batch.behavior, column) if column < 3 else (batch.pupil_center, column - 3)
            source = recording.statistics.behavior if column < 3 else recording.statistics.pupil_center
            target[:, at] = source.mean[at]
        inputs = (module.torch.from_numpy(x) for x in (batch.image, batch.behavior, batch.pupil_center))
        with module.torch.no_grad():
            predictions = ensemble(recording.mouse_id, *inputs).numpy()
        score = single_trial_correlation(responses, predictions).mean()
        assert found.held[name] == pytest.approx(score, abs=1e-6), name
    assert len(found.shuffled["behavior"]) == 2
    assert found.shuffled["behavior"][0] != found.shuffled["behavior"][1]


def test_only_inputs_that_the_twin_uses_are_changed(recordings: list[Recording], tmp_path: Path) -> None:
    without_gaze = ensemble_of(recordings, shifter=False, b_mlp={"inputs": "behavior"})
    found = behavior_worth(without_gaze, recordings[0], draws=1)
    assert list(found.twin.held) == ["pupil_dilation", "pupil_dilation_derivative", "running_speed", "behavior"]
    assert found.twin.of_prediction["gaze"] == pytest.approx(0, abs=1e-12)
    assert found.truth is not None
    assert found.truth.of_prediction["gaze"] > 0.01  # the truth still uses it
    with pytest.raises(ConfigError, match="neither behaviour nor pupil centre"):
        behavior_worth(ensemble_of(recordings, behavior="none", shifter=False), recordings[0])
    withheld = competition_recording(tmp_path, "27204-5-13")
    with pytest.raises(ScoringError, match="withholds"):
        behavior_worth(ensemble_of([withheld]), withheld)
    unrecorded = replace(recordings[0], has_behavior=False)
    with pytest.raises(RecordingError, match="no behavior, which the twin uses"):
        behavior_worth(ensemble_of(recordings), unrecorded)


@pytest.mark.slow
def test_the_command_writes_both_tables(recordings: list[Recording], tmp_path: Path) -> None:
    path = str(save_checkpoint(tmp_path / "twin", ensemble_of(recordings).members[0]))
    output = tmp_path / "out"
    assert main(["analyze", "behavior", path, "--recordings", str(recordings[0].path), "--output", str(output)]) == 0
    content = json.loads((output / "behavior.json").read_text())
    assert [row["input"] for row in content["rows"]] == list(inputs_of(SENSORIUM_BEHAVIOR))
    assert len(content["partition"]) == 4  # twin and truth, of predictions and responses
    assert "image_x_behavior" in (output / "behavior.md").read_text()
    assert (output / "behavior.png").read_bytes()[:4] == b"\x89PNG"
