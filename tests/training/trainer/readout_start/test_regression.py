"""The readout that a new mouse starts with on a frozen core, against neurons whose position and features are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.tiny_twins import QUICK, tiny_checkpoint, tiny_config, tiny_mouse, tiny_recordings, tiny_run

from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.config import ModelConfig
from training.data.recordings import Recording
from training.errors import ConfigError
from training.models import Twin
from training.models.twin import response_from
from training.trainer.loop import train_member
from training.trainer.readout_start import positions
from training.trainer.readout_start.regression import RIDGES, Trials, fit_first_readout, score_places
from training.trainer.readout_start.start import start_readouts
from training.trainer.transfer import FeatureMaps

N_NEURONS, SILENT, N_TRAIN, N_TRIALS = 80, 15, 900, 1200
AUTO = QUICK.model_copy(update={"readout_start": "auto"})
FINE = {"patch_stride": 1}  # maps of 9 rows and 17 columns


class Known:
    """Neurons in a retinotopic map; the last ones answer with noise alone."""

    def __init__(self, config: ModelConfig) -> None:
        rng = np.random.default_rng(0)
        torch.manual_seed(0)
        self.mouse = tiny_mouse("A", n_neurons=N_NEURONS)
        self.twin = Twin(config, [self.mouse])
        depth, rows, columns = self.twin.core.output_shape
        noise = torch.randn(N_TRIALS, depth, rows // 2 + 1, columns // 2 + 1)
        maps = 0.5 + F.interpolate(noise, (rows, columns), mode="bilinear", align_corners=True)
        x, y = torch.from_numpy(self.mouse.neuron_coordinates[:, :2].T / 500)
        self.mu = torch.stack([0.7 * x - 0.2 * y, 0.1 - 0.6 * y], dim=1)
        features, bias = 0.5 * torch.randn(N_NEURONS, depth), torch.full((N_NEURONS,), -0.3)
        features[-SILENT:] = 0
        sampled = F.grid_sample(maps, self.mu.expand(N_TRIALS, -1, -1)[:, :, None], align_corners=True)[..., 0]
        self.expected = response_from(torch.einsum("bdn,nd->bn", sampled, features) + bias)
        responses = (self.expected + 0.5 * torch.randn(N_TRIALS, N_NEURONS)).numpy()
        self.std = rng.uniform(0.5, 2, N_NEURONS).astype(np.float32)
        order = rng.permutation(N_TRIALS)
        self.train, self.held_out = order[:N_TRAIN], order[N_TRAIN:]
        self.maps = FeatureMaps({"A": maps}, {"A": np.arange(N_TRIALS)})
        self.recording: Any = SimpleNamespace(
            mouse_id="A",
            response_std=self.std,
            tier=lambda name: SimpleNamespace(indices=self.train),
            responses=lambda trials: responses[trials] * self.std,
        )
        self.responses = responses


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which the positions need not be right."""
    monkeypatch.setattr(positions, "TO_PEAKS", 20)
    monkeypatch.setattr(positions, "TO_MAPS", 30)


@pytest.mark.parametrize("position", ["network", "free"])
def test_neurons_are_found_where_they_look_and_predicted(position: str) -> None:
    known = Known(tiny_config(FINE, readout={"position": position, "hidden": 10}))
    fit_first_readout(known.twin, known.maps, known.recording)
    known.twin.eval()
    with torch.no_grad():
        off = (known.twin.readout("A").mu - known.mu).norm(dim=1)
        pupil = torch.randn(len(known.held_out), 2)
        found = response_from(known.twin.read_out("A", known.maps("A", known.held_out), pupil))
    assert float(off[:-SILENT].median()) < (0.1 if position == "network" else 0.2)  # places are 0.13 and 0.25 apart
    expected = known.expected[torch.from_numpy(known.held_out)]
    correlations = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(found.T, expected.T, strict=True)]
    assert np.median(correlations[:-SILENT]) > 0.9
    assert float((found.mean(0) - expected.mean(0)).abs()[:-SILENT].median()) < 0.15  # its level, not only its shape
    if position == "network":  # a neuron that says nothing looks where its neighbours do
        assert float(off[-SILENT:].median()) < 0.15


def test_scores_are_those_of_a_ridge_regression_in_float64() -> None:
    known = Known(tiny_config(FINE))
    rows, columns = known.twin.core.output_shape[1:]
    trials = (Trials(known.maps, known.recording, some, torch.device("cpu")) for some in (known.train, known.held_out))
    scores, ridge = score_places(*trials, rows, columns)
    assert ridge in RIDGES
    for i, j in ((0, 0), (rows - 1, columns - 2)):
        features = known.maps("A", np.arange(N_TRIALS))[:, :, i, j].double().numpy()
        train, responses = features[known.train], known.responses[known.train].astype(float)
        centred = train - train.mean(0)
        gram = centred.T @ centred / N_TRAIN
        gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
        weights = np.linalg.solve(gram, centred.T @ (responses - responses.mean(0)) / N_TRAIN)
        predicted = features[known.held_out] @ weights
        for n in range(0, N_NEURONS, 7):
            expected = np.corrcoef(predicted[:, n], known.responses[known.held_out, n])[0, 1]
            assert float(scores[n, i, j]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("few_steps")
def test_maps_that_never_change_leave_a_finite_readout() -> None:
    known = Known(tiny_config())
    constant = FeatureMaps({"A": torch.ones_like(known.maps("A", np.arange(N_TRIALS)))}, {"A": np.arange(N_TRIALS)})
    fit_first_readout(known.twin, constant, known.recording)
    assert all(bool(parameter.isfinite().all()) for parameter in known.twin.parameters())


@pytest.mark.usefixtures("few_steps")
def test_auto_fits_readouts_where_the_maps_of_a_frozen_core_are_kept(tmp_path: Path) -> None:
    known = Known(tiny_config())
    recordings: Any = {"A": known.recording}
    before = known.twin.readout("A").features.detach().clone()
    assert start_readouts(known.twin, known.maps, recordings, QUICK, tmp_path) == "random"
    assert torch.equal(known.twin.readout("A").features, before)
    assert start_readouts(known.twin, known.maps, recordings, AUTO, tmp_path) == "regression"
    assert not torch.equal(known.twin.readout("A").features, before)
    with pytest.raises(ConfigError, match="needs a frozen core"):
        start_readouts(known.twin, None, recordings, QUICK.model_copy(update={"readout_start": "regression"}), tmp_path)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recording]:
    made = tiny_recordings(tmp_path_factory.mktemp("recordings"), n_train=(80, 60), n_validation=30)
    return {recording.mouse_id: recording for recording in made}


def test_a_run_never_ends_below_its_start(
    recordings: dict[str, Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core = tiny_checkpoint(tiny_config())
    wild = AUTO.model_copy(update={"learning_rate": 3.0})
    best = train_member(tiny_run(recordings, core.config, wild, cores=[core], freeze_core=True), tmp_path)
    assert f"readouts fitted by regression  validation {best:.4f}" in capsys.readouterr().out
    kept = load_checkpoint(tmp_path / "checkpoint")
    assert kept.provenance["epoch"] == 0
    assert kept.provenance["validation_single_trial_correlation"] == best


@pytest.mark.usefixtures("few_steps")
def test_a_run_that_was_interrupted_ends_with_the_same_weights(
    recordings: dict[str, Recording], tmp_path: Path
) -> None:
    core = Checkpoint(twin=tiny_checkpoint(tiny_config()).twin)

    def train(folder: Path, stop_after: int | None = None) -> None:
        def on_epoch(epoch: int, score: float) -> None:
            if epoch == stop_after:
                raise KeyboardInterrupt

        train_member(tiny_run(recordings, core.config, AUTO, cores=[core], freeze_core=True), folder, on_epoch=on_epoch)

    train(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_after=1)
    train(tmp_path / "broken")
    ends = [torch.load(tmp_path / name / "state.pt", weights_only=True)["twin"] for name in ("unbroken", "broken")]
    for name, weights in ends[0].items():
        assert torch.equal(weights, ends[1][name]), name
