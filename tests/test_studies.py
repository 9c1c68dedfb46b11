"""The paper's studies: what is trained, what goes on where it was, and the table, JSON and figure at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_twins import NO_DROPOUT, TINY_CORES, tiny_recordings

from training.__main__ import main
from training.loop import TrainingConfig
from training.studies import runner
from training.studies.catalog import SCALES, STUDIES, Scale
from training.studies.plan import plan
from training.studies.results import Line, lines_of, results_table
from training.studies.runner import RunScores, perfect_scores

SMALL = {"cropper.size": (12, 20), "readout.hidden": 4}
TINY = Scale(
    what="for tests",
    transformer={**{f"core.{k}": v for k, v in {**TINY_CORES["vit"], **NO_DROPOUT}.items()}, **SMALL},
    convolution={**{f"core.{k}": v for k, v in TINY_CORES["cnn"].items()}, **SMALL},
    training=TrainingConfig(batch_size=8, learning_rate=0.01, max_epochs=2),
    transfer={},
    mice=2,
    neurons=5,
    trials=20,
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


def test_the_comparison_ends_in_a_table_json_and_figure(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("comparison", tmp_path / "out", folder, "--seeds", "2") == 0
    text = (tmp_path / "out/comparison.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == ["LN", "CNN", "ViT", "V1T", "V1T ensemble", "noise ceiling"]
    assert text.count("Retinotopy, mouse SIM") == 2
    assert "V1T ensemble" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/comparison.json").read_text(encoding="utf-8"))
    v1t = next(line for line in content["lines"] if line["label"] == "V1T")
    scores = [np.mean([seed[m]["single_trial_correlation"] for m in ("SIM1", "SIM2")]) for seed in v1t["seeds"]]
    assert len(scores) == 2
    assert v1t["mean_and_sd_over_seeds"]["single_trial_correlation"] == pytest.approx([np.mean(scores), np.std(scores)])
    assert (tmp_path / "out/comparison.png").stat().st_size > 1000


def test_a_study_that_was_interrupted_goes_on_and_trains_nothing_twice(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []
    train = runner.train_ensemble

    def interrupted(*args: Any, **kwargs: Any) -> list[Path]:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(args[3])
        return train(*args, **kwargs)

    monkeypatch.setattr(runner, "train_ensemble", interrupted)
    assert study("comparison", tmp_path, folder, "--seeds", "1") == 130
    partial = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert ("CNN" in partial, "| V1T" in partial) == (True, False)
    trained.clear()
    assert study("comparison", tmp_path, folder, "--seeds", "1") == 0
    assert len(trained) == 2


def test_a_training_that_diverges_is_counted_and_the_rest_goes_on() -> None:
    runs = plan(STUDIES["comparison"], TINY, ["SIM1"], seeds=2)
    results = [
        RunScores(run, {"SIM1": {"single_trial_correlation": 0.4}}, failed="NaN" if run.seed else None) for run in runs
    ]
    results = [replace(result, scores={}) if result.failed else result for result in results]
    row = results_table(STUDIES["comparison"], lines_of(results)).splitlines()[2]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["LN", "0.400", "1 (1 diverged)"]


def test_means_are_over_mice_first_and_deviations_over_seeds() -> None:
    seeds = tuple({"A": {"feve": a}, "B": {"feve": b}} for a, b in ((0.1, 0.3), (0.5, 0.7)))
    assert Line("V1T", None, seeds).over_seeds("feve") == pytest.approx((0.4, 0.2))


def test_equal_trainings_have_one_name_and_others_another() -> None:
    runs = plan(STUDIES["comparison"], TINY, ["SIM1", "SIM2"], seeds=2)
    again = plan(STUDIES["comparison"], TINY, ["SIM1", "SIM2"], seeds=1)
    assert [run.name for run in runs[:4]] == [run.name for run in again]
    assert len({run.name for run in runs}) == 8
    other = plan(STUDIES["comparison"], TINY, ["SIM1", "SIM2"], seeds=1, training={"learning_rate": 0.02})
    assert not {run.name for run in other} & {run.name for run in runs}


def test_fewer_training_trials_leave_the_other_tiers_alone(folder: Path) -> None:
    recording = tiny_recordings(folder, n_train=(20, 16))[0]
    fewer = recording.with_train_trials(7, seed=3)
    assert len(fewer.tier("train")) == 7
    assert set(fewer.tier("train").indices) < set(recording.tier("train").indices)
    for tier in ("validation", "test"):
        np.testing.assert_array_equal(fewer.tier(tier).indices, recording.tier(tier).indices)
    hashes = {recording.data_hash, fewer.data_hash, recording.with_train_trials(7, seed=4).data_hash}
    assert len(hashes) == 3


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
def test_two_workers_train_what_one_does(tmp_path: Path, folder: Path) -> None:
    def scores(output: Path) -> Any:
        return json.loads((output / "comparison.json").read_text(encoding="utf-8"))["lines"]

    for workers in ("1", "2"):
        assert study("comparison", tmp_path / workers, folder, "--seeds", "1", "--workers", workers) == 0
    one, two = scores(tmp_path / "1"), scores(tmp_path / "2")
    assert [line["label"] for line in one] == [line["label"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert a["seeds"][0]["SIM1"] == pytest.approx(b["seeds"][0]["SIM1"], abs=1e-4)
