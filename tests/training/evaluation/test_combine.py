"""Learned ensembles: the fit is better than the mean, and what is saved is what is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_inputs, tiny_mouse

from server.inference.engine import Engine
from training.__main__ import main
from training.checkpoints.checkpoint import save_checkpoint
from training.checkpoints.ensemble import Combination, Ensemble, load_ensemble, save_ensemble
from training.data.batches import read_batch
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import CheckpointError, ConfigError
from training.evaluation.combine import fit_combinations
from training.export import export_bundle
from training.export.bundle import BundleOptions
from training.models.twin import response_from
from training.trainer.loss import poisson_loss


@pytest.fixture(scope="module")
def members(recordings: dict[str, Recording]) -> Ensemble:
    mice = [Mouse.from_recording(recording) for recording in recordings.values()]
    return Ensemble([tiny_checkpoint(tiny_config(), mice, seed=seed) for seed in range(3)])


def loss_on(ensemble: Ensemble, recordings: dict[str, Recording]) -> dict[str, float]:
    """Mean Poisson loss of a value, per mouse, on training trials."""
    losses = {}
    for recording in recordings.values():
        *inputs, response = read_batch(recording, recording.tier("train").indices, torch.device("cpu"))
        with torch.inference_mode():
            predictions = ensemble(recording.mouse_id, *inputs)
        losses[recording.mouse_id] = float(poisson_loss(predictions, response)) / response.numel()
    return losses


def test_a_fit_has_a_lower_loss_than_the_mean(members: Ensemble, recordings: dict[str, Recording]) -> None:
    mean = loss_on(members, recordings)
    shared_fit = fit_combinations(members, list(recordings.values()), layer="shared")
    own_fit = fit_combinations(members, list(recordings.values()), layer="per_mouse")
    assert shared_fit["SIM1"] == shared_fit["SIM2"]
    assert own_fit["SIM1"] != own_fit["SIM2"]
    shared = loss_on(Ensemble(members.members, shared_fit), recordings)
    own = loss_on(Ensemble(members.members, own_fit), recordings)
    n_values = {
        recording.mouse_id: len(recording.tier("train")) * recording.n_neurons for recording in recordings.values()
    }

    def total(losses: dict[str, float]) -> float:
        return sum(losses[mouse_id] * n for mouse_id, n in n_values.items())

    assert total(own) < total(shared) < total(mean)
    for mouse_id in mean:
        assert own[mouse_id] < mean[mouse_id]
        assert own[mouse_id] <= shared[mouse_id] + 1e-6  # nothing fits a mouse better than its own layer


def test_members_are_frozen(members: Ensemble, recordings: dict[str, Recording]) -> None:
    before = [tensor.clone() for tensor in members.state_dict().values()]
    fit_combinations(members, list(recordings.values()), layer="shared")
    for tensor, old in zip(members.state_dict().values(), before, strict=True):
        assert torch.equal(tensor, old)


def test_a_mouse_without_a_recording_is_refused(members: Ensemble, recordings: dict[str, Recording]) -> None:
    with pytest.raises(ConfigError, match="no recording of mouse 'SIM2' was given"):
        fit_combinations(members, [recordings["SIM1"]], layer="shared")


def test_an_ensemble_is_the_mean_of_pre_activations(members: Ensemble) -> None:
    inputs = tiny_inputs(members.mice["SIM1"], 4)
    with torch.inference_mode():
        apart = torch.stack([member.twin.pre_activation("SIM1", *inputs) for member in members.members])
        assert torch.equal(members.pre_activations("SIM1", *inputs), apart)
        torch.testing.assert_close(members("SIM1", *inputs), response_from(apart.mean(0)))
        weighted = Ensemble(members.members, {"SIM1": Combination((0.5, -0.25, 1.0), 0.3)})
        expected = 0.5 * apart[0] - 0.25 * apart[1] + apart[2] + 0.3
        torch.testing.assert_close(weighted("SIM1", *inputs), response_from(expected))


def test_an_ensemble_folder_round_trips(members: Ensemble, tmp_path: Path) -> None:
    combinations = {"SIM1": Combination((0.2, 0.3, 0.6), -0.1), "SIM2": Combination((1.0, 0.1, -0.4), 0.2)}
    saved = Ensemble(members.members, combinations)
    loaded = load_ensemble([save_ensemble(tmp_path / "ensemble", saved)])
    assert loaded.combinations == combinations
    for mouse_id, mouse in saved.mice.items():
        inputs = tiny_inputs(mouse, 3)
        with torch.inference_mode():
            assert torch.equal(loaded(mouse_id, *inputs), saved(mouse_id, *inputs))
    fewer = Ensemble(members.members[:2])
    save_ensemble(tmp_path / "ensemble", fewer)
    assert len(load_ensemble([tmp_path / "ensemble"]).members) == 2


def test_checkpoints_make_an_ensemble_of_their_mean(members: Ensemble, tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path / f"{i}", member) for i, member in enumerate(members.members)]
    loaded = load_ensemble(paths)
    assert loaded.combinations["SIM1"] == Combination((1 / 3,) * 3)
    inputs = tiny_inputs(members.mice["SIM2"], 2)
    with torch.inference_mode():
        assert torch.equal(loaded("SIM2", *inputs), members("SIM2", *inputs))


@pytest.mark.parametrize("content", ["{", "[]", '{"members": 3}', '{"members": 3, "combinations": {"SIM1": 1}}'])
def test_an_ensemble_file_that_is_broken_is_refused(members: Ensemble, tmp_path: Path, content: str) -> None:
    folder = save_ensemble(tmp_path / "ensemble", members)
    (folder / "ensemble.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"ensemble\.json"):
        load_ensemble([folder])


def test_weights_of_other_members_are_refused(members: Ensemble, tmp_path: Path) -> None:
    folder = save_ensemble(tmp_path / "ensemble", members)
    content = json.loads((folder / "ensemble.json").read_text())
    content["combinations"]["SIM2"]["weights"] = [1.0]
    (folder / "ensemble.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"does not fit its members; got weights of mouse 'SIM2'"):
        load_ensemble([folder])


def test_another_folder_is_not_overwritten(members: Ensemble, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("...")
    with pytest.raises(CheckpointError, match="exists and is not an ensemble"):
        save_ensemble(tmp_path / "mine", members)


def test_members_with_other_mice_are_refused() -> None:
    config = tiny_config()
    a, b, other = tiny_mouse("A"), tiny_mouse("B"), tiny_mouse("A", seed=1)
    first = tiny_checkpoint(config, [a, b])
    with pytest.raises(ConfigError, match=r"member 1 has other mice than member 0; got \['A'\]"):
        Ensemble([first, tiny_checkpoint(config, [a])])
    with pytest.raises(ConfigError, match="member 2 was trained on another recording of mouse 'A'"):
        Ensemble([first, first, tiny_checkpoint(config, [other, b])])
    with pytest.raises(ConfigError, match="at least one member"):
        Ensemble([])


def test_the_command_combines(
    members: Ensemble, recordings: dict[str, Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(save_checkpoint(tmp_path / f"{i}", member)) for i, member in enumerate(members.members)]
    sources = [str(recording.path) for recording in recordings.values()]
    output = tmp_path / "ensemble"
    arguments = ["combine", *paths, "--recordings", *sources, "--output", str(output), "--layer", "per_mouse"]
    assert main(arguments) == 0
    assert "mouse SIM1: weights " in capsys.readouterr().out
    expected = fit_combinations(members, list(recordings.values()), layer="per_mouse")
    for mouse_id, combination in load_ensemble([output]).combinations.items():
        np.testing.assert_allclose(combination.weights, expected[mouse_id].weights, rtol=1e-4)


@pytest.mark.slow
def test_a_learned_ensemble_exports_equal_to_torch(tmp_path: Path) -> None:
    combinations = {"A": Combination((0.2, 0.9), -0.1), "B": Combination((1.0, -0.4), 0.2)}
    config = tiny_config({"kind": "cnn", "n_layers": 1})
    ensemble = Ensemble([tiny_checkpoint(config, seed=seed) for seed in range(2)], combinations)
    export_bundle(ensemble, tmp_path / "bundle", options=BundleOptions(gradients=False))
    engine = Engine.load(tmp_path / "bundle", provider="cpu", threads=1)
    for mouse_id, mouse in ensemble.mice.items():
        inputs = tiny_inputs(mouse, 5)
        stimulus = engine.check(mouse_id, *(tensor.numpy() for tensor in inputs))
        prediction = engine.predict_many([stimulus])[0]
        with torch.inference_mode():
            np.testing.assert_allclose(prediction.response, ensemble(mouse_id, *inputs), rtol=0, atol=1e-4)
            responses = response_from(ensemble.pre_activations(mouse_id, *inputs)).numpy()
        np.testing.assert_allclose(prediction.spread, responses.std(axis=0), rtol=0, atol=1e-4)
