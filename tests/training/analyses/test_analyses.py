"""Analyses of a trained twin: effects that were planted come out, and what is written can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_twins import (
    QUICK,
    competition_recording,
    tiny_checkpoint,
    tiny_config,
    tiny_recordings,
    tiny_run,
)

from training.__main__ import main
from training.analyses.behavior_mlp import b_mlp_activations
from training.analyses.pupil import accuracy_by_pupil, over_mice
from training.analyses.readout_start import ReadoutStart
from training.analyses.retinotopy import cortical_correlation, readout_positions, retinotopy, true_centers
from training.checkpoints.checkpoint import save_checkpoint
from training.checkpoints.ensemble import Ensemble
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import ConfigError, RecordingError, ScoringError
from training.trainer.readout_start.start import load_start
from training.trainer.run import train_ensemble


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    """SIM1 with 60 neurons and SIM2 with 60."""
    folder = tmp_path_factory.mktemp("recordings")
    return tiny_recordings(folder, n_neurons=60, n_validation=12, n_test_images=12, n_test_repeats=4)


def ensemble_of(recordings: list[Recording], *, members: int = 2, **options: Any) -> Ensemble:
    mice = [Mouse.from_recording(recording) for recording in recordings]
    return Ensemble([tiny_checkpoint(tiny_config(**options), mice, seed=seed) for seed in range(members)])


def written(ensemble: Ensemble, folder: Path) -> list[str]:
    return [str(save_checkpoint(folder / f"member-{i}", member)) for i, member in enumerate(ensemble.members)]


def test_cortical_correlation_finds_a_rotated_and_mirrored_map() -> None:
    rng = np.random.default_rng(1)
    cortex = rng.uniform(-400, 400, (5000, 2))
    turn = np.array([[np.cos(0.7), np.sin(0.7)], [np.sin(0.7), -np.cos(0.7)]])
    planted = cortex @ turn / 400
    np.testing.assert_allclose(cortical_correlation(planted, cortex), 1, atol=1e-9)
    noisy = planted + planted.std(0) * rng.normal(size=planted.shape)  # half of the variance is noise
    np.testing.assert_allclose(cortical_correlation(noisy, cortex), np.sqrt(0.5), atol=0.03)
    assert (cortical_correlation(rng.normal(size=(5000, 2)), cortex) < 0.06).all()


def test_positions_of_an_ensemble_are_the_members_mean(recordings: list[Recording]) -> None:
    ensemble = ensemble_of(recordings, readout={"position": "free"})
    members = [member.twin.readout("SIM2").mu.detach().numpy() for member in ensemble.members]
    np.testing.assert_allclose(readout_positions(ensemble, "SIM2"), (members[0] + members[1]) / 2, atol=1e-6)


def test_planted_retinotopy_is_found_and_unreliable_neurons_are_left_out(recordings: list[Recording]) -> None:
    ensemble = ensemble_of(recordings, members=1, readout={"position": "free"})
    centers = true_centers(recordings[0])
    assert centers is not None
    _, height, width = recordings[0].image_shape
    found = retinotopy(ensemble, recordings[0])
    assert 0 < found.reliable.sum() < 60
    planted = 2 * (centers + 0.5) / (width, height) - 1
    planted[~found.reliable] = -planted[~found.reliable]  # must not count
    with torch.no_grad():
        ensemble.members[0].twin.readout("SIM1").free_mu.copy_(torch.from_numpy(planted))
    after = retinotopy(ensemble, recordings[0])
    assert after.with_truth is not None
    np.testing.assert_allclose(after.with_truth, 1, atol=1e-5)
    assert (after.with_cortex > 0.9).all()  # the simulated map bends a little, and neurons scatter
    assert found.with_truth is not None
    assert (np.abs(found.with_truth) < 0.5).all()  # random positions


def test_reliability_that_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    withheld = competition_recording(tmp_path, "27204-5-13")
    found = retinotopy(ensemble_of([withheld]), withheld)
    assert found.row()["reliable"] is None
    assert np.isfinite(found.with_cortex).all()
    assert np.isnan(cortical_correlation(found.positions[:3], found.coordinates[:3])).all()


def test_a_real_mouse_has_no_truth(recordings: list[Recording], tmp_path: Path) -> None:
    (unlabelled,) = tiny_recordings(tmp_path, n_train=(8,), n_test_images=4)
    (unlabelled.path / "meta" / "simulated.json").unlink()
    recording = Recording.open(unlabelled.path)
    assert true_centers(recording) is None
    found = retinotopy(ensemble_of([recording]), recording)
    assert found.with_truth is None
    assert "with_truth_x" not in found.row()


@pytest.mark.slow
def test_retinotopy_command_writes_table_json_and_figure(
    recordings: list[Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = written(ensemble_of(recordings), tmp_path)
    folders = [str(recording.path) for recording in recordings]
    output = tmp_path / "analyses"
    assert main(["analyze", "retinotopy", *paths, "--recordings", *folders, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    content = json.loads((output / "retinotopy.json").read_text())
    assert [row["mouse"] for row in content["rows"]] == ["SIM1", "SIM2"]
    assert f"{content['rows'][1]['with_truth_y']:.3f}" in printed
    assert "by construction" in (output / "retinotopy.md").read_text()
    assert (output / "retinotopy.png").read_bytes()[:4] == b"\x89PNG"
    assert (output / "retinotopy.pdf").read_bytes()[:4] == b"%PDF"


class SeesWellWithALargePupil(torch.nn.Module):
    """Answers with the recorded responses plus noise, and the noise is small where the pupil is large.

    It knows a trial by its behaviour, of which no two trials have the same.
    """

    def __init__(self, recording: Recording, *, best: str = "large") -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        everything = recording.batch(np.arange(recording.n_trials))
        rank = everything.behavior[:, 0].argsort().argsort() / recording.n_trials  # 0 for the smallest pupil
        noise = {"large": 1 - rank, "small": rank, "neither": 0.5 + 0 * rank}[best][:, None]
        std = recording.response_std
        made = everything.response / std + 4 * noise * np.random.default_rng(0).normal(size=everything.response.shape)
        self.answers = {row.tobytes(): answer for row, answer in zip(everything.behavior, made, strict=True)}

    def forward(
        self, mouse_id: str, image: torch.Tensor, behavior: torch.Tensor, pupil_center: torch.Tensor
    ) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.answers[row.tobytes()] for row in behavior.numpy()]))


def test_thirds_are_those_of_a_loop_over_trials_sorted_by_dilation(recordings: list[Recording]) -> None:
    ensemble, recording = ensemble_of(recordings), recordings[1]
    found = accuracy_by_pupil(ensemble, recording)
    rows = []
    for trial in np.flatnonzero(recording.tiers == "test"):
        batch = recording.batch(np.array([trial]))
        inputs = (torch.from_numpy(array) for array in (batch.image, batch.behavior, batch.pupil_center))
        with torch.no_grad():
            rows.append((batch.behavior[0, 0], batch.response[0], ensemble("SIM2", *inputs)[0].numpy()))
    rows.sort(key=lambda row: float(row[0]))
    assert found.n_trials == len(rows) // 3 == 16
    assert found.bounds == (rows[15][0], rows[32][0])
    for third, values in ((rows[:16], found.small), (rows[32:], found.large)):
        recorded, predicted = (np.array([row[k] for row in third], np.float64) for k in (1, 2))
        expected = [np.corrcoef(recorded[:, n], predicted[:, n])[0, 1] for n in range(recording.n_neurons)]
        np.testing.assert_allclose(values, expected, atol=1e-4)
    small, large = found.small.mean(), found.large.mean()
    assert found.gain == pytest.approx(100 * (large - small) / small)


@pytest.mark.parametrize(("best", "sign"), [("large", 1), ("small", -1)])
def test_a_twin_that_sees_well_with_one_pupil_size_gains_there(
    recordings: list[Recording], best: str, sign: int
) -> None:
    twin: Any = SeesWellWithALargePupil(recordings[0], best=best)
    found = accuracy_by_pupil(twin, recordings[0])
    assert sign * (found.large.mean() - found.small.mean()) > 0.3
    assert sign * found.gain > 0
    even: Any = SeesWellWithALargePupil(recordings[0], best="neither")
    level = accuracy_by_pupil(even, recordings[0])
    assert abs(level.large.mean() - level.small.mean()) < 0.3


def test_the_gain_over_mice_is_the_mean_of_the_mices_gains(recordings: list[Recording]) -> None:
    found = [accuracy_by_pupil(ensemble_of(recordings), recording) for recording in recordings]
    summary = over_mice(found)
    assert summary["gain_percent_mean"] == pytest.approx((found[0].gain + found[1].gain) / 2)
    assert summary["large_sd"] == pytest.approx(abs(found[0].large.mean() - found[1].large.mean()) / 2)
    assert found[0].ceilings is not None
    assert found[0].row()["ceiling_large"] > found[0].large.mean()


def test_pupil_thirds_of_withheld_or_missing_trials_are_refused(recordings: list[Recording], tmp_path: Path) -> None:
    withheld = competition_recording(tmp_path, "27204-5-13")
    with pytest.raises(ScoringError, match="cannot be scored"):
        accuracy_by_pupil(ensemble_of([withheld]), withheld)
    (few,) = tiny_recordings(tmp_path / "few", n_train=(8,), n_test_images=3)
    with pytest.raises(RecordingError, match="too few test trials"):
        accuracy_by_pupil(ensemble_of([few]), few)
    output = str(tmp_path / "out")
    (path,) = written(ensemble_of([withheld, recordings[0]], members=1), tmp_path / "twin")
    folders = [str(withheld.path), str(recordings[0].path)]
    assert main(["analyze", "pupil", path, "--recordings", *folders, "--output", output]) == 0
    content = json.loads((tmp_path / "out/pupil.json").read_text())
    assert [row["mouse"] for row in content["rows"]] == ["SIM1"]
    assert any("S1 was left out" in note for note in content["notes"])


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({}, ["1", "2"]),
        ({"blocks": "tied"}, ["1-2"]),
        ({"blocks": "first"}, ["1"]),
        ({"mice": "per_mouse"}, ["1", "2"]),
    ],
)
def test_b_mlp_activations_are_those_of_a_float64_network(
    recordings: list[Recording], options: dict[str, Any], blocks: list[str]
) -> None:
    ensemble, recording = ensemble_of(recordings, b_mlp=options), recordings[1]
    found = b_mlp_activations(ensemble, recording)
    assert [block.block for block in found] == blocks
    everything = recording.batch(np.arange(recording.n_trials))
    statistics = recording.statistics
    inputs = np.concatenate(
        [
            everything.behavior / statistics.behavior.std,
            (everything.pupil_center - statistics.pupil_center.mean) / statistics.pupil_center.std,
        ],
        axis=1,
    ).astype(np.float64)
    for i, block in enumerate(found):
        of_members = []
        for member in ensemble.members:
            weights = {
                name.removeprefix(f"core.transformer.behavior_mlps.{i}."): value.double().numpy()
                for name, value in member.twin.state_dict().items()
            }
            mouse = 1 if options.get("mice") == "per_mouse" else 0
            hidden = np.tanh(inputs @ weights["hidden_weight"][mouse].T + weights["hidden_bias"][mouse])
            of_members.append(np.tanh(hidden @ weights["output_weight"][mouse].T + weights["output_bias"][mouse]))
        expected = np.concatenate(of_members, axis=1)  # (T, M D)
        np.testing.assert_allclose(block.activations, expected, atol=1e-5)
        row = block.row()
        assert row["sd_over_trials"] == pytest.approx(np.mean([column.std() for column in expected.T]), rel=1e-3)
        assert row["sd_over_units"] == pytest.approx(expected.mean(0).std(), rel=1e-3)
        assert row["saturated_share"] == pytest.approx((np.abs(expected) > 0.9).mean(), abs=1e-3)


def test_twins_without_a_b_mlp_are_refused(recordings: list[Recording]) -> None:
    for options in ({"behavior": "channels"}, {"core": {"kind": "cnn"}}):
        with pytest.raises(ConfigError, match="no B-MLP"):
            b_mlp_activations(ensemble_of(recordings, **options), recordings[0])
    tied, each = (ensemble_of(recordings, members=1, b_mlp={"blocks": word}).members for word in ("tied", "each"))
    with pytest.raises(ConfigError, match="in different blocks"):
        b_mlp_activations(Ensemble([*tied, *each]), recordings[0])


@pytest.mark.slow
def test_b_mlp_command_has_a_row_per_mouse_and_block(recordings: list[Recording], tmp_path: Path) -> None:
    paths = written(ensemble_of(recordings), tmp_path)
    folders = [str(recording.path) for recording in recordings]
    assert main(["analyze", "b-mlp", *paths, "--recordings", *folders, "--output", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out/b-mlp.json").read_text())["rows"]
    assert [(row["mouse"], row["block"]) for row in rows] == [(m, b) for m in ("SIM1", "SIM2") for b in "12"]
    assert rows[0]["units"] == 2 * 6  # both members
    assert rows[0]["trials"] == recordings[0].n_trials
    assert (tmp_path / "out/b-mlp.png").read_bytes()[:4] == b"\x89PNG"


def test_distances_are_medians_over_clear_neurons_in_pixels_of_the_cores_image() -> None:
    places = np.random.default_rng(0).uniform(-1, 1, (5, 2))
    pixels, moved = np.array([30.0, 10.0]), np.array([[0.1, 0], [0, 0.4], [0.2, 0], [5, 5], [-0.3, 0]])
    found = ReadoutStart(
        mouse_id="A",
        neuron_ids=np.arange(5),
        pixels=pixels,
        maps=np.zeros((5, 3, 4)),
        clearness=np.zeros(5),
        clear=np.array([True, True, True, False, True]),
        peaks=places,
        start=places + moved,
        end=places,
        truth=None,
    )
    row = found.row()
    assert row["start_to_end"] == row["start_to_peak"] == pytest.approx(5)  # the median of 3, 4, 6 and 9
    assert (row["end_to_peak"], row["end_to_truth"], row["clear"]) == (0, None, 4)


def test_the_command_shows_where_the_readouts_of_a_run_started(recordings: list[Recording], tmp_path: Path) -> None:
    training = QUICK.model_copy(update={"readout_start": "trials", "max_epochs": 1})
    train_ensemble(tiny_run({r.mouse_id: r for r in recordings}, tiny_config(), training, members=2), tmp_path / "run")
    folders = [str(recording.path) for recording in recordings]
    output = tmp_path / "out"
    assert (
        main(["analyze", "readout-start", str(tmp_path / "run"), "--recordings", *folders, "--output", str(output)])
        == 0
    )
    rows = json.loads((output / "readout-start.json").read_text())["rows"]
    starts = [load_start(tmp_path / f"run/member-{i}")["SIM2"] for i in range(2)]
    assert rows[1]["clear"] == int(starts[0].clear.sum())
    assert (rows[1]["start_to_end"] is None) == (rows[1]["clear"] == 0)
    assert (output / "readout-start.png").read_bytes()[:4] == b"\x89PNG"
