"""The paper's studies: what is trained, what goes on where it was, and the table, JSON and figure at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from support.checkout import ROOT
from support.tiny_twins import NO_DROPOUT, TINY_CORES, tiny_recordings

from training.__main__ import main
from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.ensemble import load_ensemble
from training.config import TrainingConfig
from training.data.mouse import by_mouse, data_hashes
from training.errors import ConfigError, RecordingError
from training.evaluation.evaluate import perfect_scores
from training.metrics import single_trial_correlation
from training.simulation.simulate import simulate
from training.studies import runner
from training.studies.catalog import SCALES, STUDIES, Scale, Variant
from training.studies.lines import Line, lines_of
from training.studies.plan import plan
from training.studies.results import draw, results_table
from training.studies.runner import RunScores, checkpoint_of, run_all

SMALL = {"cropper.size": (12, 20), "readout.hidden": 4}
TINY = Scale(
    what="for tests",
    transformer={**{f"core.{k}": v for k, v in {**TINY_CORES["vit"], **NO_DROPOUT}.items()}, **SMALL},
    convolution={**{f"core.{k}": v for k, v in TINY_CORES["cnn"].items()}, **SMALL},
    training=TrainingConfig(batch_size=8, learning_rate=0.01, max_epochs=2, readout_start="random"),
    transfer={},
    mice=2,
    neurons=5,
    trials=20,
    generated=30,
    student={},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of SIM1 and SIM2."""
    folder = tmp_path_factory.mktemp("recordings")
    tiny_recordings(folder, n_train=(20, 16))
    return folder


@pytest.fixture(autouse=True)
def tiny_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES, "two-cores", TINY)


def study(name: str, output: Path, folder: Path, *more: str) -> int:
    return main(["study", name, "--output", str(output), "--recordings", str(folder), *more])


@pytest.mark.slow
def test_the_comparison_ends_in_a_table_json_and_figure(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("comparison", tmp_path / "out", folder, "--seeds", "2") == 0
    text = (tmp_path / "out/comparison.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    single = ["CNN, no behaviour", "ViT, no behaviour", "LN", "CNN", "ViT", "V1T"]
    table = [*single, "CNN ensemble", "ViT ensemble", "V1T ensemble", "noise ceiling"]
    assert rows[2 : 2 + len(table)] == table
    assert text.count("The V1T ensemble: the best 2 of 2 seeds by validation.") == 1
    assert text.count("Retinotopy, mouse SIM") == 2
    assert "V1T ensemble" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/comparison.json").read_text(encoding="utf-8"))
    v1t = next(line for line in content["lines"] if line["label"] == "V1T")
    scores = [np.mean([seed[m]["single_trial_correlation"] for m in ("SIM1", "SIM2")]) for seed in v1t["seeds"]]
    assert len(scores) == 2
    assert v1t["mean_and_sd_over_seeds"]["single_trial_correlation"] == pytest.approx([np.mean(scores), np.std(scores)])
    assert (tmp_path / "out/comparison.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_study_that_was_interrupted_resumes_and_trains_nothing_twice(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []
    train = runner.train_ensemble

    def interrupted(*args: Any, **kwargs: Any) -> list[Path]:
        if len(trained) == 4:
            raise KeyboardInterrupt
        trained.append(args[1])
        return train(*args, **kwargs)

    monkeypatch.setattr(runner, "train_ensemble", interrupted)
    assert study("comparison", tmp_path, folder, "--seeds", "1") == 130
    partial = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert ("| CNN " in partial, "| V1T" in partial) == (True, False)
    trained.clear()
    assert study("comparison", tmp_path, folder, "--seeds", "1") == 0
    assert len(trained) == 2
    monkeypatch.setattr(runner, "_train", lambda run, *_: RunScores(run, {}))
    recordings = by_mouse(tiny_recordings(folder, n_train=(20, 16)))
    runs = plan(STUDIES["comparison"], TINY, data_hashes(recordings.values()), seeds=2, n_trials=16)
    order = [result.known for result in run_all(runs, recordings, tmp_path)]
    assert order == [True] * 6 + [False] * 6  # a table that is written again never has fewer lines than before


def test_a_training_that_diverges_is_counted_and_the_rest_goes_on() -> None:
    runs = plan(STUDIES["comparison"], TINY, {"SIM1": "1"}, seeds=2, n_trials=20)
    results = [
        RunScores(run, {"SIM1": {"single_trial_correlation": 0.4}}, failed="NaN" if run.seed else None) for run in runs
    ]
    results = [replace(result, scores={}) if result.failed else result for result in results]
    row = results_table(STUDIES["comparison"], lines_of(results)).splitlines()[2]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "CNN, no behaviour",
        "0.400",
        "+0.0 %",
        "+0.0 %",
        "1 (1 diverged)",
    ]


def test_means_are_over_mice_first_and_deviations_over_seeds() -> None:
    seeds = tuple({"A": {"feve": a}, "B": {"feve": b}} for a, b in ((0.1, 0.3), (0.5, 0.7)))
    assert Line("V1T", None, seeds).over_seeds("feve") == pytest.approx((0.4, 0.2))


def test_equal_trainings_have_one_name_and_others_another() -> None:
    study, mice = STUDIES["comparison"], {"SIM1": "1", "SIM2": "2"}
    runs = plan(study, TINY, mice, seeds=2, n_trials=20)
    again = plan(study, TINY, mice, seeds=1, n_trials=20)
    assert [run.name for run in runs[:6]] == [run.name for run in again]
    assert len({run.name for run in runs}) == 12
    other = plan(
        STUDIES["comparison"], TINY, {"SIM1": "1", "SIM2": "2"}, seeds=1, n_trials=20, training={"learning_rate": 0.02}
    )
    assert not {run.name for run in other} & {run.name for run in runs}
    elsewhere = plan(study, TINY, {**mice, "SIM2": "3"}, seeds=1, n_trials=20)
    assert not {run.name for run in elsewhere} & {run.name for run in runs}


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_trainings_that_fit_together(name: str) -> None:
    runs = plan(
        STUDIES[name], SCALES["paper"], {"A": "a", "B": "b", "C": "c"}, seeds=2, n_trials=4472, source={"F": "f"}
    )
    assert len({run.label for run in runs}) == len({run.name for run in runs}) == len(runs)
    for i, run in enumerate(runs):
        assert run.mice
        assert run.core is None or run.core in runs[:i]  # what it stands on is trained before it
        assert run.core is None or run.core.model == run.model


def test_a_transferred_core_has_not_seen_the_mouse() -> None:
    runs = plan(STUDIES["transfer"], SCALES["paper"], {"A": "a", "B": "b", "C": "c"}, seeds=1, n_trials=4472)
    transferred = [run for run in runs if run.core is not None]
    assert len(transferred) == 24
    assert {run.training.readout_start for run in transferred} == {"random", "regression"}
    for run in transferred:
        assert run.core is not None
        assert sorted([*run.mice, *run.core.mice]) == ["A", "B", "C"]
        assert run.training.max_epochs == (20 if "tenth" in run.variant.label else 200)


def test_sample_efficiency_asks_for_no_more_trials_than_there_are() -> None:
    def places(n_trials: int) -> list[float | None]:
        runs = plan(STUDIES["sample-efficiency"], TINY, {"A": "a"}, seeds=1, n_trials=n_trials)
        return [run.variant.x for run in runs if run.variant.system == "v1t"]

    assert places(4472) == [500, 1000, 1500, 2500, 3500, 4472]
    assert places(1500) == [500, 1000, 1500]


def test_only_systems_that_form_ensembles_are_trained_with_more_seeds() -> None:
    few = plan(STUDIES["comparison"], TINY, {"A": "a"}, seeds=2, n_trials=100)
    many = plan(STUDIES["comparison"], TINY, {"A": "a"}, seeds=2, candidates=10, n_trials=100)
    assert [run.name for run in many[: len(few)]] == [run.name for run in few]
    assert sorted((run.variant.label, run.seed) for run in many[len(few) :]) == [
        (label, seed) for label in ("CNN", "V1T", "ViT") for seed in range(2, 10)
    ]


def test_systems_are_compared_at_other_numbers_of_trials_in_the_same_trainings() -> None:
    def names(trials: list[int]) -> dict[tuple[str, float | None], str]:
        runs = plan(STUDIES["sample-efficiency"], TINY, {"A": "a"}, seeds=1, n_trials=4472, trials=trials)
        return {(run.variant.label, run.variant.x): run.name for run in runs}

    of_the_study, chosen = names([]), names([4472, 500, 700])
    assert list(chosen) == [(label, n) for label in ("CNN", "ViT", "V1T") for n in (500, 700, 4472)]
    assert {place for place, name in chosen.items() if of_the_study.get(place) != name} == {
        (label, 700) for label in ("CNN", "ViT", "V1T")
    }
    for study_name, trials in (("sample-efficiency", [4473]), ("sample-efficiency", [0]), ("comparison", [500])):
        with pytest.raises(ConfigError, match="--trials"):
            plan(STUDIES[study_name], TINY, {"A": "a"}, seeds=1, n_trials=4472, trials=trials)


def test_starts_are_compared_in_trainings_that_differ_in_nothing_else() -> None:
    runs = plan(STUDIES["readout-start"], SCALES["two-cores"], {"A": "a"}, seeds=2, n_trials=4500)
    assert len(runs) == 2 * 2 * 3 * 3
    for run in runs:
        (other,) = (
            one
            for one in runs
            if one is not run and (one.seed, one.variant.x, one.model) == (run.seed, run.variant.x, run.model)
        )
        starts = {one.training.readout_start for one in (run, other)}
        assert starts == {"trials", "random"}
        assert run.training.model_copy(update={"readout_start": "x"}) == other.training.model_copy(
            update={"readout_start": "x"}
        )
    paper = plan(STUDIES["sample-efficiency"], SCALES["two-cores"], {"A": "a"}, seeds=2, n_trials=4500)
    shared = {run.name for run in runs} & {run.name for run in paper}
    assert len(shared) == 2 * 3 * 3  # the random starts of CNN, ViT and V1T


def test_fewer_trials_get_as_many_updates_where_trainings_end_early() -> None:
    def updates(scale: Scale) -> list[int]:
        runs = plan(STUDIES["sample-efficiency"], scale, {"A": "a"}, seeds=1, n_trials=4500)
        return [run.training.max_epochs * -(-int(run.variant.x or 0) // run.training.batch_size) for run in runs]

    longest = SCALES["paper"]
    assert set(updates(longest)) == {200 * -(-n // 16) for n in (500, 1000, 1500, 2500, 3500, 4500)}
    short = replace(longest, trials=1500, same_updates=True, training=TrainingConfig(max_epochs=12, patience=1))
    assert all(n == pytest.approx(12 * 94, rel=0.15) for n in updates(short))
    patience = [
        run.training.patience for run in plan(STUDIES["sample-efficiency"], short, {"A": "a"}, seeds=1, n_trials=4500)
    ]
    assert patience[:6] == [3, 2, 1, 1, 0, 0]


@pytest.mark.slow
def test_transfer_leaves_the_core_as_it_was_and_is_compared_with_the_joint_twin(tmp_path: Path, folder: Path) -> None:
    assert study("transfer", tmp_path, folder, "--seeds", "1") == 0
    mice = data_hashes(tiny_recordings(folder, n_train=(20, 16)))
    for run in plan(STUDIES["transfer"], TINY, mice, seeds=1, n_trials=16):
        if run.core is not None:
            own, taken = (load_checkpoint(checkpoint_of(one, tmp_path)).twin for one in (run, run.core))
            for name, weights in taken.core.state_dict().items():
                assert torch.equal(weights, own.core.state_dict()[name])
    text = (tmp_path / "transfer.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:5]] == ["CNN: joint", "CNN: direct", "CNN: transfer"]
    assert rows[0][-4:] == ["updates", "of the joint", "relative to direct", "seeds"]
    lines = json.loads((tmp_path / "transfer.json").read_text(encoding="utf-8"))["lines"]
    scores = {line["label"]: line["mean_and_sd_over_seeds"]["single_trial_correlation"][0] for line in lines}
    rows = rows[2 : 2 + len(lines)]
    assert [row[0] for row in rows] == [line["label"] for line in lines]
    for label, *_, share, relative, _ in rows[:-1]:
        for cell, other, percent in ((share, "joint", "{:.1f} %"), (relative, "direct", "{:+.1f} %")):
            base = scores[f"{label[:3]}: {other}"]
            ratio = 100 * scores[label] / base - (100 if other == "direct" else 0)
            assert cell == ("" if base <= 0 or label.endswith(f": {other}") else percent.format(ratio))


@pytest.mark.slow
def test_a_grey_core_of_two_channels_is_transferred_to_one(tmp_path: Path, folder: Path) -> None:
    options = {"n_validation": 8, "n_test_images": 4, "n_test_repeats": 3, "image_shape": (2, 18, 32)}
    simulate(tmp_path / "f", mouse_id="SIMF", data_key="91001-1-1", n_neurons=4, n_train=16, **options)
    out = tmp_path / "out"
    assert study("cross-dataset", out, folder, "--seeds", "1", "--source", str(tmp_path / "f")) == 0
    text = (out / "cross-dataset.md").read_text(encoding="utf-8")
    assert ("| V1T: direct" in text, "| CNN: transfer" in text, "core of the source" in text) == (True, True, False)


def test_what_a_study_cannot_use_is_refused(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = next(folder.glob("static90001*"))
    assert study("transfer", tmp_path, one) == 1
    assert "two mice" in capsys.readouterr().err
    assert study("comparison", tmp_path, folder, "--source", str(one)) == 1
    assert "--source" in capsys.readouterr().err
    assert study("comparison", tmp_path, folder, "--seeds", "0") == 1
    capsys.readouterr()
    assert study("behavior", tmp_path, folder, "--candidates", "10") == 1
    assert "--candidates" in capsys.readouterr().err


def test_fewer_training_trials_leave_the_other_tiers_alone(folder: Path) -> None:
    recording = tiny_recordings(folder, n_train=(20, 16))[0]
    fewer = recording.with_train_trials(7, seed=3)
    assert len(fewer.tier("train")) == 7
    assert set(fewer.tier("train").indices) < set(recording.tier("train").indices)
    for tier in ("validation", "test"):
        np.testing.assert_array_equal(fewer.tier(tier).indices, recording.tier(tier).indices)
    hashes = {recording.data_hash, fewer.data_hash, recording.with_train_trials(7, seed=4).data_hash}
    assert len(hashes) == 3


def test_an_input_that_is_left_out_says_nothing_in_training_nor_in_the_score(tmp_path: Path, folder: Path) -> None:
    mice = by_mouse(tiny_recordings(folder, n_train=(20, 16)))
    study = replace(STUDIES["behavior"], variants=(Variant("a", without=("running_speed",)), Variant("b")))
    runs = plan(study, TINY, data_hashes(mice.values()), seeds=1, n_trials=16)
    assert runs[0].name != runs[1].name
    scores = {result.run.variant.label: result.scores for result in run_all(runs, mice, tmp_path)}
    ensemble = load_ensemble([checkpoint_of(runs[0], tmp_path)])
    for mouse_id, recording in mice.items():
        trials = recording.tier("test")
        batch = recording.batch(trials.indices)
        batch.behavior[:, 2] = recording.statistics.behavior.mean[2]
        inputs = (torch.from_numpy(x) for x in (batch.image, batch.behavior, batch.pupil_center))
        with torch.no_grad():
            predictions = ensemble(mouse_id, *inputs).numpy()
        expected = single_trial_correlation(batch.response, predictions).mean()
        assert scores["a"][mouse_id]["single_trial_correlation"] == pytest.approx(expected, abs=1e-6)
    with_it = load_checkpoint(checkpoint_of(runs[1], tmp_path))
    assert with_it.weights_hash != ensemble.weights_hashes[0]


def test_a_recording_without_an_input_keeps_the_others(folder: Path) -> None:
    recording = tiny_recordings(folder, n_train=(20, 16))[0]
    held = recording.without(("pupil_dilation", "pupil_center"))
    every = np.arange(recording.n_trials)
    behavior, pupil_center = held.states_of(every)
    was, _ = recording.states_of(every)
    np.testing.assert_array_equal(behavior[:, 1:], was[:, 1:])
    assert (np.ptp(behavior[:, 0]), *np.ptp(pupil_center, axis=0)) == (0, 0, 0)
    np.testing.assert_allclose(behavior[0, 0], was[recording.tiers == "train", 0].mean(), rtol=1e-5)
    assert np.ptp(was[:, 0]) > 0  # the recording itself is as it was
    assert held.data_hash != recording.data_hash
    with pytest.raises(RecordingError, match="no pupil_center"):
        replace(recording, _packed=replace(recording._packed, pupil_center=None)).without(("pupil_center",))
    with pytest.raises(RecordingError, match="has no whisking"):
        recording.without(("whisking",))


def test_an_update_after_each_mouse_is_counted_as_one(tmp_path: Path, folder: Path) -> None:
    mice = by_mouse(tiny_recordings(folder, n_train=(20, 16)))
    runs = plan(STUDIES["updates"], TINY, data_hashes(mice.values()), seeds=1, n_trials=16)
    assert [run.training.update_after for run in runs] == ["all_mice", "each_mouse"] * 2
    for result in run_all(runs[:2], mice, tmp_path):
        epoch = load_checkpoint(checkpoint_of(result.run, tmp_path)).provenance["epoch"]
        steps = 3 * epoch  # 20 trials in batches of 8
        wanted = steps * (2 if result.run.training.update_after == "each_mouse" else 1)
        assert {mouse[runner.UPDATES] for mouse in result.scores.values()} == {wanted}


def test_a_legend_does_not_lie_on_a_curve() -> None:
    """Curves that leave no place free: V1T rises from the lower left to the upper right."""
    study, lines = STUDIES["readout-start"], []
    for label in dict.fromkeys(variant.label for variant in study.variants):
        start = {"V1T, at random": 0.17, "ViT, at random": 0.3}.get(label, 0.45)
        scores = (start, 0.47)
        lines += [
            Line(label, x, tuple({"A": {"single_trial_correlation": y + sd}} for sd in (0, 0.01)))
            for x, y in zip((500.0, 1500.0), scores, strict=True)
        ]
    lines.append(Line("noise ceiling", None, ({"A": {"single_trial_correlation": 0.6}},)))
    figure = draw(study, lines)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert any(text.get_text().startswith("*") for text in axes.texts)
    assert axes.get_ylim()[1] > 0.6  # the noise ceiling is inside, also with stars
    legends = [*figure.legends, *filter(None, [axes.get_legend()])]
    assert len(legends[0].get_texts()) == 7
    boxes = [legend.get_window_extent() for legend in legends]
    for curve in axes.get_lines():
        places = curve.get_transform().transform(curve.get_path().interpolated(50).vertices)
        for box in boxes:
            assert not any(box.contains(*place) for place in places), curve.get_label()
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not box.overlaps(axes.title.get_window_extent())


def test_nothing_beats_the_perfect_model(folder: Path) -> None:
    recording = tiny_recordings(folder, n_train=(20, 16))[0]
    perfect = perfect_scores(recording)
    assert perfect is not None
    assert perfect["single_trial_correlation"] > 0.3
    assert perfect["correlation_to_average"] > perfect["single_trial_correlation"]


def test_help_names_every_study_with_what_the_paper_found(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    text = capsys.readouterr().out
    for name, one in STUDIES.items():
        assert name in text
        assert one.paper in text


@pytest.mark.slow
def test_workers_end_with_a_study_that_is_killed(tmp_path: Path, folder: Path) -> None:
    """An endless training, so that nothing but the kill can end it."""
    command = [sys.executable, "-m", "training", "study", "behavior", "--recordings", str(folder), "--workers", "2"]
    command += ["--output", str(tmp_path), "--set", "training.max_epochs=1000000", "training.patience=1000000"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_for(lambda: len(list(tmp_path.glob("runs/*/member-0/state.pt"))) == 2, seconds=120)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
    finally:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(workers, timeout=10)
    assert not left


def wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.1)


@pytest.mark.slow
def test_two_workers_train_what_one_does(tmp_path: Path, folder: Path) -> None:
    recordings = by_mouse(tiny_recordings(folder, n_train=(20, 16)))
    runs = plan(STUDIES["transfer"], TINY, data_hashes(recordings.values()), seeds=1, n_trials=16)
    # A regression on 16 trials chooses between places that are all but equal: rounding of the core decides.
    runs = [run for run in runs if run.training.readout_start != "regression" and run.variant.system == "v1t"]
    some = [run for run in runs if [*run.mice] == ["SIM1"] or (run.core is None and [*run.mice] == ["SIM2"])]
    assert len(some) == 6
    assert len({run.name for run in some}) == 4  # with two mice, one's core of the others is the other's direct twin
    one, two = (
        {result.run.label: result.scores for result in run_all(some, recordings, tmp_path / str(n), workers=n)}
        for n in (1, 2)
    )
    assert set(one) == set(two) == {run.label for run in some}
    for label in one:
        for mouse_id, scores in one[label].items():
            assert two[label][mouse_id] == pytest.approx(scores, abs=1e-4, nan_ok=True)


@pytest.mark.slow
def test_distillation_compares_an_ensemble_its_student_and_a_model_of_its_size(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STUDIES, "distillation", replace(STUDIES["distillation"], members=2))
    monkeypatch.setattr("training.studies.distillation.BUDGET", 2.0)
    assert study("distillation", tmp_path, folder, "--seeds", "2", "--set", "training.max_epochs=1") == 0
    text = (tmp_path / "distillation.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:6]] == ["ensemble", "student", "its size, from responses", "noise ceiling"]
    lines = json.loads((tmp_path / "distillation.json").read_text(encoding="utf-8"))["lines"]
    ensemble, student = (line["mean_and_sd_over_seeds"]["single_trial_correlation"][0] for line in lines[:2])
    if ensemble > 0:  # of a correlation below 0 no share is given
        assert float(rows[3][-2].removesuffix(" %")) == pytest.approx(100 * student / ensemble, abs=0.06)
    members = sorted(tmp_path.glob("runs/v1t-seed*/member-0/checkpoint"))
    hashes = {load_checkpoint(path).weights_hash for path in members}
    students = [load_checkpoint(path) for path in sorted(tmp_path.glob("runs/student-*/member-0/checkpoint"))]
    taught_by = [one.provenance["distillation"]["teacher"] for one in students]
    assert len({*taught_by[0], *taught_by[1]}) == 4  # seeds share no member
    assert {*taught_by[0], *taught_by[1]} <= hashes
