"""Analyses of a trained twin: effects that were planted come out, and what is written can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_twins import tiny_checkpoint, tiny_config, tiny_recordings

from training.__main__ import main
from training.analyses.retinotopy import (
    cortical_correlation,
    readout_positions,
    retinotopy,
    retinotopy_correlation,
    true_centers,
)
from training.checkpoint import save_checkpoint
from training.ensemble import Ensemble
from training.mouse import Mouse
from training.recordings import Recording


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


def test_retinotopy_correlation_is_numpys_per_axis() -> None:
    rng = np.random.default_rng(0)
    positions, centers = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    centers[:, 1] = 3 * positions[:, 1] + 100  # another unit
    expected = [np.corrcoef(positions[:, k], centers[:, k])[0, 1] for k in range(2)]
    np.testing.assert_allclose(retinotopy_correlation(positions, centers), expected, atol=1e-12)
    assert retinotopy_correlation(positions, np.full((40, 2), 7.0)).tolist() == [0, 0]


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


def test_a_real_mouse_has_no_truth(recordings: list[Recording], tmp_path: Path) -> None:
    (unlabelled,) = tiny_recordings(tmp_path, n_train=(8,), n_test_images=4)
    (unlabelled.path / "meta" / "simulated.json").unlink()
    recording = Recording.open(unlabelled.path)
    assert true_centers(recording) is None
    found = retinotopy(ensemble_of([recording]), recording)
    assert found.with_truth is None
    assert "with_truth_x" not in found.row()


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
