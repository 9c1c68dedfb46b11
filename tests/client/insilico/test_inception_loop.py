"""The inception loop: a pack of most exciting inputs, and the scores of a recording of it."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from PIL import Image
from support.gabor_bank import GaborBank
from support.live_server import Server
from v1t_client import InvalidArgument
from v1t_client._cli import main
from v1t_client.insilico import Result
from v1t_client.insilico.inception_loop.pack import PackOptions, choose_units, make_pack, matched, trial_order
from v1t_client.insilico.inception_loop.score import (
    Pack,
    confusion,
    read_responses,
    score_figures,
    score_pack,
    summary_of,
)
from v1t_client.insilico.most_exciting_inputs.experiment import MostExcitingInputs

N = 8


@pytest.fixture(autouse=True)
def _fewer_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v1t_client.insilico.inception_loop.score.N_PERMUTATIONS", 2000)


@pytest.fixture(scope="module")
def found() -> tuple[GaborBank, Result]:
    bank = GaborBank(N, seed=2)
    search = MostExcitingInputs(
        mouse="BANK", recipe="quick", steps=25, starts=2, noise=0, diverse=2, diverse_steps=5, running_speed=9.0
    )
    state_blind = GaborBank(N, seed=2)
    state_blind.running_gain[:] = 0  # the bank's gradient is at the mean state
    gradient = state_blind.gradient
    bank.gradient = lambda mouse, image, *, running_speed=None, **more: gradient(mouse, image, **more)
    return bank, search.run(bank)


@pytest.fixture
def pack(found: tuple[GaborBank, Result], tmp_path: Path) -> Path:
    bank, result = found
    make_pack(result, bank, tmp_path / "pack", PackOptions(repeats=3, min_distance_um=0, seed=5))
    return tmp_path / "pack"


def test_units_are_the_best_that_are_far_enough_from_each_other() -> None:
    rng = np.random.default_rng(0)
    places, scores = rng.uniform(0, 100, (60, 3)), rng.uniform(size=60)
    scores[7] = np.nan
    dataset = xarray.Dataset(
        {"mei": ("neuron", np.zeros(60))},
        coords={
            "neuron": ("neuron", np.arange(60)),
            **{f"{axis}_um": ("neuron", places[:, i]) for i, axis in enumerate("xyz")},
            "charm": ("neuron", scores),
        },
    )
    rows, name, chosen = choose_units(dataset, PackOptions(n_units=12, min_distance_um=30, score_min=0.2))
    assert name == "charm"
    expected: list[int] = []
    for row in sorted(range(60), key=lambda row: -np.nan_to_num(scores[row], nan=-1)):
        near = any(np.linalg.norm(places[row] - places[other]) < 30 for other in expected)
        if not near and scores[row] >= 0.2 and len(expected) < 12:
            expected.append(row)
    assert rows == expected
    np.testing.assert_array_equal(chosen, scores[rows])
    with pytest.raises(InvalidArgument, match="no unit is left"):
        choose_units(dataset, PackOptions(score_min=2.0))
    with pytest.raises(InvalidArgument, match="charm"):
        choose_units(dataset, PackOptions(score="beauty"))


def test_frames_have_one_luminance_and_contrast() -> None:
    rng = np.random.default_rng(1)
    images = rng.uniform(0, 255, (5, 1, 36, 64)) * rng.uniform(0.1, 1, (5, 1, 1, 1))
    y, x = np.mgrid[:36, :64]
    images[4] = 100 + 30 * np.exp(-((y - 12) ** 2 + (x - 20) ** 2) / 8)  # a spot that has to be cut at white
    frames = matched(images, luminance=105.0, contrast=14.0)
    assert frames.dtype == np.uint8
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 105, atol=0.3)
    np.testing.assert_allclose(frames.std((1, 2, 3)), 14, rtol=0.03)
    correlation = np.corrcoef(frames[0].ravel(), images[0].ravel())[0, 1]
    assert correlation > 0.99
    with pytest.raises(InvalidArgument, match="uniform"):
        matched(np.full((1, 1, 4, 4), 7.0), 105.0, 14.0)


def test_every_block_shows_every_frame_once_and_none_twice_in_a_row() -> None:
    for seed in range(20):
        order = trial_order(3, 10, np.random.default_rng(seed))
        assert (np.sort(order, axis=1) == np.arange(3)).all()
        assert (np.diff(order.ravel()) != 0).all()
    assert len(np.unique(trial_order(30, 5, np.random.default_rng(0)), axis=0)) == 5


def test_a_pack_holds_frames_trials_and_what_the_twin_says_of_them(found: tuple[GaborBank, Result], pack: Path) -> None:
    bank, result = found
    manifest = json.loads((pack / "manifest.json").read_text())
    frames, predictions = np.load(pack / "frames.npy"), np.load(pack / "predictions.npy")
    assert frames.shape == (N * 3, 1, 36, 64)
    assert manifest["made_from"]["parameters"] == result.receipt.parameters
    ids = [unit["unit"] for unit in manifest["units"]]
    assert ids == bank.ids[np.argsort(-bank.scores)].tolist()
    columns = np.argsort(-bank.scores)
    expected = bank.responses(frames[:, 0].astype(float), speed=9.0)[:, columns].T  # in the search's own state
    np.testing.assert_allclose(predictions, expected, rtol=1e-4)
    for frame in manifest["frames"]:
        levels = frames[frame["frame"]]
        assert frame["sha256"] == hashlib.sha256(levels.tobytes()).hexdigest()
        np.testing.assert_array_equal(np.asarray(Image.open(pack / frame["file"])), levels[0])
    kinds = [frame["kind"] for frame in manifest["frames"]]
    assert (kinds.count("mei"), kinds.count("diverse")) == (N, 2 * N)
    first = manifest["frames"][3]
    source = result.dataset["mei"].sel(neuron=first["unit"]).values
    assert np.corrcoef(source.ravel(), frames[3].ravel())[0, 1] > 0.99
    with (pack / "trials.csv").open() as stream:
        trials = list(csv.DictReader(stream))
    assert len(trials) == manifest["n_trials"] == N * 3 * 3
    assert sorted(int(trial["frame"]) for trial in trials) == sorted([*range(N * 3)] * 3)
    assert all(trial["file"] == manifest["frames"][int(trial["frame"])]["file"] for trial in trials)


def test_kinds_luminance_and_the_number_of_units_are_as_asked(found: tuple[GaborBank, Result], tmp_path: Path) -> None:
    bank, result = found
    options = PackOptions(n_units=3, kinds=("mei",), luminance=90, contrast=9, min_distance_um=0)
    manifest = make_pack(result, bank, tmp_path / "few", options)
    assert len(manifest["frames"]) == len(manifest["units"]) == 3
    assert all(abs(frame["mean"] - 90) < 0.5 and abs(frame["std"] - 9) < 0.5 for frame in manifest["frames"])
    with pytest.raises(InvalidArgument, match="exists already"):
        make_pack(result, bank, tmp_path / "few", options)
    with pytest.raises(InvalidArgument, match="lei"):
        make_pack(result, bank, tmp_path / "other", PackOptions(kinds=("lei",)))
    assert {path.name for path in tmp_path.iterdir()} == {"few"}


# Scores


def recording(pack: Path, noise: float, seed: int = 0) -> np.ndarray:
    """(n_trials, n): as the twin predicts, and noise."""
    loaded = Pack.load(pack)
    return loaded.predictions.T[loaded.order] + np.random.default_rng(seed).normal(0, noise, (len(loaded.order), N))


def test_a_recording_that_does_what_was_predicted_scores_high(
    pack: Path, tmp_path: Path, rendered_figures: None
) -> None:
    table = recording(pack, noise=0.05)
    np.save(tmp_path / "responses.npy", table)
    result = score_pack(pack, tmp_path / "responses.npy")
    dataset, loaded = result.dataset, Pack.load(pack)
    means = np.stack([table[loaded.order == frame].mean(0) for frame in range(N * 3)], axis=1)
    np.testing.assert_allclose(dataset["recorded"], means)
    expected = [np.corrcoef(means[row], loaded.predictions[row])[0, 1] for row in range(N)]
    np.testing.assert_allclose(dataset["correlation"], expected, rtol=1e-6)
    repeats = [table[[np.flatnonzero(loaded.order == frame)[r] for frame in range(N * 3)], 2] for r in range(3)]
    halves = [
        np.corrcoef(repeats[r], np.mean([repeats[s] for s in range(3) if s != r], axis=0))[0, 1] for r in range(3)
    ]
    assert dataset["reliability"].values[2] == pytest.approx(np.mean(halves))
    assert dataset["own_image_strongest"] == 1
    assert dataset["own_image_p_value"] < 0.01
    assert f"{N} of {N} units" in summary_of(result)
    result.write(tmp_path / "scores", result.drawn(score_figures))
    xarray.testing.assert_identical(Result.load(tmp_path / "scores").dataset, dataset)


def test_a_recording_of_noise_scores_at_chance(pack: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "noise.npy", np.random.default_rng(3).normal(size=(N * 9, N)))
    dataset = score_pack(pack, tmp_path / "noise.npy").dataset
    assert abs(np.median(dataset["correlation"])) < 0.3
    assert dataset["own_image_p_value"] > 0.01
    assert dataset["own_image_strongest"] < 0.6


def test_without_repeats_there_is_no_reliability(found: tuple[GaborBank, Result], tmp_path: Path) -> None:
    bank, result = found
    make_pack(result, bank, tmp_path / "once", PackOptions(repeats=1, min_distance_um=0))
    np.save(tmp_path / "responses.npy", recording(tmp_path / "once", noise=0.05))
    scores = score_pack(tmp_path / "once", tmp_path / "responses.npy")
    assert np.isnan(scores.dataset["reliability"]).all()
    assert "reliability" not in summary_of(scores)
    assert "correlation with the prediction 0.9" in summary_of(scores)


def test_confusion_knows_units_that_like_their_own_image() -> None:
    rng = np.random.default_rng(4)
    responses = rng.normal(size=(10, 10)) + 100 * np.arange(10)[:, None]  # units of other levels
    responses[np.arange(10), np.arange(10)] += 6
    z, share, p_value = confusion(responses)
    np.testing.assert_allclose(z.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(1), 1)
    assert share == 1
    assert p_value < 1e-3


def test_a_table_names_its_units_and_trials_in_any_order(pack: Path, tmp_path: Path) -> None:
    table, loaded = recording(pack, noise=0.1), Pack.load(pack)
    units = loaded.units
    lost = units[4]
    path = tmp_path / "responses.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        columns = [5, 0, 7, 1, 2, 6, 3]
        writer.writerow(["trial", "a_remark", *(units[column] for column in columns)])
        for trial in np.random.default_rng(0).permutation(len(table)):
            writer.writerow([trial, "fine", *table[trial, columns]])
    read = read_responses(path, loaded)
    assert np.isnan(read[:, 4]).all()
    np.testing.assert_allclose(np.delete(read, 4, axis=1), np.delete(table, 4, axis=1))
    dataset = score_pack(pack, path).dataset
    assert lost not in dataset["confused"]
    assert np.isnan(dataset["correlation"].sel(neuron=lost))
    assert (dataset["correlation"].values[[0, 1, 2, 3, 5, 6, 7]] > 0.5).all()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("short.npy", np.zeros((4, N)), "do not fit"),
        ("missing.npy", None, "cannot be read"),
        ("few.csv", "trial,5\n0,1\n", "each trial once"),
        ("words.csv", "trial,5\none,1\n", "cannot be read"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused(
    pack: Path, tmp_path: Path, name: str, content: Any, says: str
) -> None:
    if isinstance(content, np.ndarray):
        np.save(tmp_path / name, content)
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidArgument, match=says):
        score_pack(pack, tmp_path / name)


def test_what_is_no_pack_is_refused(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="not a pack"):
        Pack.load(tmp_path / "nothing")
    np.save(pack / "predictions.npy", np.zeros((2, 2)))
    with pytest.raises(InvalidArgument, match="do not match"):
        Pack.load(pack)


@pytest.mark.slow
def test_the_commands_close_the_loop(demo_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = ["--url", demo_server.url]
    meis, pack = str(tmp_path / "meis"), str(tmp_path / "pack")
    options = ["--best", "4", "--recipe", "quick", "--steps", "4", "--starts", "1", "--noise", "0", "--quiet"]
    assert main(["mei", "SIM1", *options, *demo, "--output", meis]) == 0
    assert main(["pack", meis, "--min-distance-um", "0", "--repeats", "2", "--output", pack]) == 0
    assert "4 units by" in capsys.readouterr().out
    loaded = Pack.load(Path(pack))
    np.save(tmp_path / "responses.npy", loaded.predictions.T[loaded.order])
    assert main(["score", pack, str(tmp_path / "responses.npy"), "--output", str(tmp_path / "scores")]) == 0
    assert "correlation with the prediction 1.000" in capsys.readouterr().out
    for output in ("scores", "no/such/folder"):
        assert main(["score", pack, str(tmp_path / "responses.npy"), "--output", str(tmp_path / output)]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"meis", "pack", "responses.npy", "scores"}


def test_an_interrupted_pack_leaves_nothing(found: tuple[GaborBank, Result], tmp_path: Path) -> None:
    _, result = found
    with pytest.raises(Exception, match="bank"):
        make_pack(result, GaborBank(N, seed=2, limit=1), tmp_path / "pack", PackOptions())
    assert not list(tmp_path.iterdir())


def test_a_result_of_another_experiment_cannot_be_packed(tmp_path: Path, found: tuple[GaborBank, Result]) -> None:
    bank, result = found
    other = Result(result.dataset.drop_vars("mei"), result.receipt)
    with pytest.raises(InvalidArgument, match="most exciting inputs"):
        make_pack(other, bank, tmp_path / "pack", PackOptions())
