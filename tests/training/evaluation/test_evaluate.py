"""Evaluation and its report: every score against loops in float64, and what must not be scored is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure
from support.tiny_twins import competition_recording, tiny_checkpoint, tiny_config, tiny_mouse, tiny_recordings

from training.__main__ import main
from training.checkpoints.checkpoint import save_checkpoint
from training.checkpoints.ensemble import Ensemble
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import RecordingError, ScoringError
from training.evaluation.evaluate import evaluate, evaluate_mouse, over_mice, scorable, scores_table
from training.evaluation.report import neuron_table
from training.evaluation.score_figures import counted_values, draw_ceiling
from training.figures import save_figure
from training.tables import caption


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    """SIM1 and SIM2, 30 neurons each, 12 test images shown 4 times."""
    folder = tmp_path_factory.mktemp("recordings")
    return tiny_recordings(folder, n_neurons=30, n_test_images=12, n_test_repeats=4)


@pytest.fixture(scope="module")
def ensemble(recordings: list[Recording]) -> Ensemble:
    return ensemble_of(recordings, members=2)


def ensemble_of(recordings: list[Recording], *, members: int = 1, **options: Any) -> Ensemble:
    mice = [Mouse.from_recording(recording) for recording in recordings]
    return Ensemble([tiny_checkpoint(tiny_config(**options), mice, seed=seed) for seed in range(members)])


def paths_of(recordings: list[Recording]) -> list[str]:
    return [str(recording.path) for recording in recordings]


def with_tiers(recording: Recording, change: dict[int, str]) -> Recording:
    """The recording, some trials moved to another tier."""
    tiers = recording.tiers.astype("<U10")
    for trial, tier in change.items():
        tiers[trial] = tier
    np.save(recording.path / "meta/trials/tiers.npy", tiers)
    return Recording.open(recording.path)


def loops(responses: np.ndarray, predictions: np.ndarray, image_ids: np.ndarray) -> dict[str, list[float]]:
    """Every score of every neuron, written out. Arrays are (T, N)."""
    scores: dict[str, list[float]] = {
        name: [] for name in ("single_trial_correlation", "correlation_to_average", "fev", "feve", "ccnorm")
    }
    for n in range(responses.shape[1]):
        r, p = responses[:, n].astype(np.float64), predictions[:, n].astype(np.float64)
        scores["single_trial_correlation"].append(np.corrcoef(r, p)[0, 1])
        shown = [r[image_ids == i] for i in np.unique(image_ids)]
        predicted = [p[image_ids == i] for i in np.unique(image_ids)]
        mean_r, mean_p = [x.mean() for x in shown], [x.mean() for x in predicted]
        scores["correlation_to_average"].append(np.corrcoef(mean_r, mean_p)[0, 1])
        noise = np.mean([x.var(ddof=1) for x in shown])
        scores["fev"].append((r.var(ddof=1) - noise) / r.var(ddof=1))
        scores["feve"].append(1 - (np.mean((r - p) ** 2) - noise) / (r.var(ddof=1) - noise))
        R = len(shown[0])
        power = (
            np.var(R * np.array(mean_r), ddof=1) - sum(np.var([x[k] for x in shown], ddof=1) for k in range(R))
        ) / (R * (R - 1))
        covariance = np.cov(mean_p, mean_r)[0, 1]
        scores["ccnorm"].append(covariance / np.sqrt(np.var(mean_p, ddof=1) * power) if power > 0 else np.nan)
    return scores


def predictions_of(ensemble: Ensemble, recording: Recording, indices: np.ndarray, **replaced: np.ndarray) -> np.ndarray:
    """(T, N), trial by trial."""
    rows = []
    for index in indices:
        batch = recording.batch(np.array([index]))
        inputs = {"image": batch.image, "behavior": batch.behavior, "pupil_center": batch.pupil_center} | replaced
        with torch.no_grad():
            response = ensemble(recording.mouse_id, *(torch.from_numpy(np.float32(x)) for x in inputs.values()))
        rows.append(response[0].numpy())
    return np.array(rows)


def test_scores_are_those_of_loops_in_float64(ensemble: Ensemble, recordings: list[Recording]) -> None:
    scores = evaluate(ensemble, recordings)
    assert list(scores) == ["SIM1", "SIM2"]
    for recording in recordings:
        indices = np.flatnonzero(recording.tiers == "test")
        assert (np.diff(recording.image_ids[indices]) < 0).any()  # repeats are not side by side
        responses = recording.responses(indices).astype(np.float64) / recording.response_std
        expected = loops(responses, predictions_of(ensemble, recording, indices), recording.image_ids[indices])
        mouse = scores[recording.mouse_id]
        assert mouse.neurons.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(mouse.neurons[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
        reliable = np.array(expected["fev"]) >= 0.15
        assert 0 < reliable.sum() < 30
        for name in expected:
            over = np.array(expected[name])[reliable] if name in ("feve", "ccnorm") else np.array(expected[name])
            assert mouse.summary[name] == pytest.approx(np.nanmean(over), rel=1e-3, abs=1e-4)


def test_mean_and_sd_are_over_mice(ensemble: Ensemble, recordings: list[Recording]) -> None:
    scores = evaluate(ensemble, recordings)
    a, b = (scores[m].summary["feve"] for m in ("SIM1", "SIM2"))
    mean, sd = over_mice(scores)["feve"]
    assert (mean, sd) == (pytest.approx((a + b) / 2), pytest.approx(abs(a - b) / 2))
    assert f"{mean:.3f} ({sd:.3f})" in scores_table(scores).splitlines()[-1]


def test_ceiling_of_a_simulated_mouse_is_above_its_twin(ensemble: Ensemble, recordings: list[Recording]) -> None:
    mouse = evaluate_mouse(ensemble, recordings[0])
    with np.load(recordings[0].path / "simulated_truth.npz") as truth:
        np.testing.assert_allclose(mouse.ceiling, truth["ceiling"], atol=1e-6)
    assert mouse.summary["ceiling"] > mouse.summary["single_trial_correlation"]


def test_ccnorm_is_left_out_with_a_word_where_images_were_not_equally_repeated(tmp_path: Path) -> None:
    (recording,) = tiny_recordings(tmp_path, n_train=(8,))
    test = np.flatnonzero(recording.tiers == "test")
    changed = with_tiers(recording, {int(test[0]): "train"})
    mouse = evaluate_mouse(ensemble_of([changed]), changed)
    assert "ccnorm" not in mouse.neurons
    assert "ccnorm" not in mouse.summary
    assert np.isfinite(mouse.neurons["feve"]).all()
    assert any("2 to 3 times: CCnorm" in note for note in mouse.notes)


def test_explained_variance_is_left_out_with_a_word_where_an_image_was_shown_once(tmp_path: Path) -> None:
    (recording,) = tiny_recordings(tmp_path, n_train=(8,))
    test = np.flatnonzero(recording.tiers == "test")
    of_one_image = test[recording.image_ids[test] == recording.image_ids[test[0]]]
    changed = with_tiers(recording, {int(trial): "train" for trial in of_one_image[1:]})
    mouse = evaluate_mouse(ensemble_of([changed]), changed)
    assert list(mouse.neurons) == ["single_trial_correlation", "correlation_to_average"]
    assert any("1 image was shown once: FEV, FEVE and CCnorm" in note for note in mouse.notes)


def test_without_repeats_only_single_trials_are_scored(ensemble: Ensemble, recordings: list[Recording]) -> None:
    mouse = evaluate_mouse(ensemble, recordings[0], tier="validation")
    assert list(mouse.neurons) == ["single_trial_correlation"]
    assert any("no image was repeated" in note for note in mouse.notes)


def test_zeroed_test_sets_are_never_scored(recordings: list[Recording], tmp_path: Path) -> None:
    withheld = [competition_recording(tmp_path, key) for key in ("26872-17-20", "27204-5-13")]
    ensemble = ensemble_of([*withheld, recordings[0]])
    scores = evaluate(ensemble, [*withheld, recordings[0]])
    assert list(scores) == ["SIM1"]
    _, left_out = scorable([*withheld, recordings[0]], "test")
    assert list(left_out) == ["S0", "S1"]
    assert all("the competition withholds them" in reason for reason in left_out.values())
    for tier in ("test", "final_test"):
        with pytest.raises(ScoringError, match=r"'S0' cannot be scored.*'S1' cannot be scored"):
            evaluate(ensemble, withheld, tier=tier)
        with pytest.raises(ScoringError, match="submission file"):
            evaluate_mouse(ensemble, withheld[0], tier=tier)
    assert list(evaluate(ensemble, withheld, tier="validation")) == ["S0", "S1"]


def test_a_recording_without_behavior_is_asked_at_the_training_mean(tmp_path: Path) -> None:
    with_behavior = competition_recording(tmp_path / "with", "26872-17-20")
    without = competition_recording(tmp_path / "without", "26872-17-20", behavior=False)
    ensemble = ensemble_of([with_behavior], members=2)
    mouse = evaluate_mouse(ensemble, without, tier="validation")
    indices = without.tier("validation").indices
    statistics = with_behavior.statistics
    means = {"behavior": statistics.behavior.mean[None], "pupil_center": statistics.pupil_center.mean[None]}
    at_mean = predictions_of(ensemble, without, indices, **means)
    expected = [np.corrcoef(without.responses(indices)[:, n], at_mean[:, n])[0, 1] for n in range(without.n_neurons)]
    np.testing.assert_allclose(mouse.neurons["single_trial_correlation"], expected, atol=1e-4)
    assert "set to the training mean: behavior (" in mouse.notes[0]


def test_recordings_that_the_twin_cannot_be_asked_about_are_refused(recordings: list[Recording]) -> None:
    one = ensemble_of(recordings[:1])
    with pytest.raises(RecordingError, match="does not know mouse 'SIM2'"):
        evaluate(one, recordings)
    other = Ensemble([tiny_checkpoint(tiny_config(), [tiny_mouse("SIM1")])])
    with pytest.raises(RecordingError, match="another recording of mouse 'SIM1'"):
        evaluate(other, recordings[:1])
    imported = Mouse.without_recording("SIM1", recordings[0].image_shape, 30)
    standardized = Ensemble([tiny_checkpoint(tiny_config(readout={"position": "free"}), [imported])])
    with pytest.raises(RecordingError, match=r"takes standardised inputs.*--recordings"):
        evaluate(standardized, recordings[:1])


def test_the_neuron_table_has_a_row_per_neuron_with_its_place_and_all_scores(
    ensemble: Ensemble, recordings: list[Recording]
) -> None:
    scores = evaluate(ensemble, recordings)
    table = neuron_table({"v1t": scores, "one mouse": {"SIM2": scores["SIM2"]}}).to_pandas()
    assert table.groupby(["system", "mouse_id"]).size().to_dict() == {
        ("v1t", "SIM1"): 30,
        ("v1t", "SIM2"): 30,
        ("one mouse", "SIM2"): 30,
    }
    rows = table[(table.system == "v1t") & (table.mouse_id == "SIM2")]
    np.testing.assert_array_equal(rows.neuron_id, recordings[1].neuron_ids)
    np.testing.assert_array_equal(rows[["x_um", "y_um", "z_um"]], recordings[1].neuron_coordinates)
    for name, values in scores["SIM2"].neurons.items():
        np.testing.assert_array_equal(rows[name], values)
    np.testing.assert_array_equal(rows.ceiling, scores["SIM2"].ceiling)


def test_a_score_that_a_neuron_lacks_is_null(ensemble: Ensemble, recordings: list[Recording]) -> None:
    scores = evaluate(ensemble, recordings[:1])
    scores["SIM1"].neurons["ccnorm"][3] = np.nan
    table = neuron_table({"v1t": scores})
    assert table["ccnorm"].null_count == 1 + int(np.isnan(np.delete(scores["SIM1"].neurons["ccnorm"], 3)).sum())
    validation = evaluate(ensemble, recordings[:1], tier="validation")
    assert neuron_table({"v1t": validation})["feve"].null_count == 30


def test_report_of_several_systems_has_a_row_each_and_is_what_was_printed(
    ensemble: Ensemble, recordings: list[Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, member in zip(("one", "other"), ensemble.members, strict=True):
        save_checkpoint(tmp_path / name, member)
    withheld = competition_recording(tmp_path / "withheld", "27204-5-13")
    both = ["evaluate", str(tmp_path / "one"), str(tmp_path / "other"), "--each", "--recordings"]
    assert main([*both, *paths_of([recordings[0]]), "--report", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "report/scores.json").read_text())
    assert list(content["systems"]) == ["one", "other"]
    text = (tmp_path / "report/scores.md").read_text()
    for name, system in content["systems"].items():
        mean = system["over_mice"]["correlation_to_average"]["mean"]
        assert mean == pytest.approx(system["mice"]["SIM1"]["summary"]["correlation_to_average"])
        assert f"{mean:.3f} (0.000)" in next(line for line in text.splitlines() if line.startswith(f"| {name} "))
        assert f"{mean:.3f}" in printed
        assert system["mice"]["SIM1"]["simulated"]
    for said in (printed, text):
        assert "Mouse SIM1 is simulated: no animal was recorded." in said
    about = pq.read_schema(tmp_path / "report/neurons.parquet").metadata
    assert about[b"simulated_mice"] == b"SIM1"
    for figure in ("distributions", "ceiling"):
        assert (tmp_path / f"report/{figure}.png").read_bytes()[:4] == b"\x89PNG"
        assert (tmp_path / f"report/{figure}.pdf").read_bytes()[:4] == b"%PDF"
    assert main([*both, *paths_of([withheld])]) == 1
    assert "does not know mouse 'S1'" in capsys.readouterr().err


def test_tables_and_figures_average_the_same_neurons(ensemble: Ensemble, recordings: list[Recording]) -> None:
    (mouse,) = evaluate(ensemble, recordings[:1]).values()
    assert 0 < (mouse.neurons["fev"] < 0.15).sum() < len(mouse.neurons["fev"])
    for name in ("single_trial_correlation", "correlation_to_average", "feve", "ccnorm"):
        assert counted_values(mouse, name).mean() == pytest.approx(mouse.summary[name]), name
    figure = draw_ceiling({"v1t": {"SIM1": mouse}})
    assert figure is not None
    means = mouse.summary["single_trial_correlation"], mouse.summary["ceiling"]
    assert figure.axes[0].get_title() == f"mouse SIM1: mean {means[0]:.3f} of {means[1]:.3f}"


def test_every_figure_says_what_it_shows(tmp_path: Path) -> None:
    figure = Figure(layout="constrained")
    figure.subplots()
    text = caption("v1t", {"SIM1": 1, "B": 8000}, trials="test trials", simulated=["SIM1"])
    assert text == (
        "v1t; mice SIM1 (1 neuron), B (8000 neurons); test trials. Mouse SIM1 is simulated: no animal was recorded."
    )
    assert caption("v1t", {"B": 2}, trials="t", simulated=[]) == "v1t; mouse B (2 neurons); t."
    save_figure(figure, tmp_path, "figure", caption=text)
    assert figure.get_supxlabel().replace("\n", " ") == text


def test_command_says_which_mouse_it_left_out_and_why(
    recordings: list[Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    withheld = competition_recording(tmp_path / "withheld", "27204-5-13")
    (member,) = ensemble_of([withheld, recordings[0]]).members
    save_checkpoint(tmp_path / "twin", member)
    command = ["evaluate", str(tmp_path / "twin"), "--recordings", *paths_of([withheld])]
    assert main(command) == 1
    assert "the competition withholds them" in capsys.readouterr().err
    assert main([*command, *paths_of([recordings[0]]), "--report", str(tmp_path / "report")]) == 0
    assert "mouse S1 was left out: the test responses" in capsys.readouterr().out
    assert "Mouse S1: the test responses" in (tmp_path / "report/scores.md").read_text()
    assert list(json.loads((tmp_path / "report/scores.json").read_text())["left_out"]) == ["S1"]
    assert set(pd.read_parquet(tmp_path / "report/neurons.parquet").mouse_id) == {"SIM1"}


def test_validation_report_has_no_ceiling_of_a_real_mouse(tmp_path: Path) -> None:
    (recording,) = tiny_recordings(tmp_path / "recordings", n_train=(8,))
    (recording.path / "meta/simulated.json").unlink()
    real = Recording.open(recording.path)
    ensemble = ensemble_of([real])
    assert draw_ceiling({"v1t": evaluate(ensemble, [real], tier="validation")}) is None
    assert draw_ceiling({"v1t": evaluate(ensemble, [real])}) is not None  # from repeats


@pytest.mark.parametrize("verb", ["evaluate", "submit", "analyze"])
def test_a_device_that_is_not_there_is_refused(
    recordings: list[Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    (member,) = ensemble_of(recordings).members
    save_checkpoint(tmp_path / "twin", member)
    command = [*([verb, "retinotopy"] if verb == "analyze" else [verb]), str(tmp_path / "twin"), "--device", "abacus"]
    output = [] if verb == "evaluate" else ["--output", str(tmp_path / "out")]
    assert main([*command, *output, "--recordings", *paths_of(recordings)]) == 1
    assert "no such device; got abacus" in capsys.readouterr().err
