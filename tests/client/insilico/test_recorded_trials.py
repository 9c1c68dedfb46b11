"""`v1t evaluate` on a bundle gives what `python -m training evaluate` gives on its checkpoint."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_recordings
from v1t_client._cli.command import main
from v1t_client._errors import InvalidArgument
from v1t_client.insilico.framework.predictors import open_predictor
from v1t_client.insilico.recorded_trials import evaluate

from training.checkpoints.ensemble import Ensemble
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.evaluation.evaluate import MouseScores, evaluate_mouse
from training.export import export_bundle


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recording, MouseScores]:
    """A bundle, the recording of its mouse, and the scores of its checkpoint."""
    folder = tmp_path_factory.mktemp("deployed")
    (recording,) = tiny_recordings(folder / "recordings", n_train=(20,))
    mouse = Mouse.from_recording(recording)
    ensemble = Ensemble([tiny_checkpoint(tiny_config(), [mouse], seed=seed) for seed in range(2)])
    export_bundle(ensemble, folder / "bundle")
    return folder / "bundle", recording, evaluate_mouse(ensemble, recording)


@pytest.mark.slow
def test_the_served_twin_scores_what_its_checkpoint_does(
    deployed: tuple[Path, Recording, MouseScores], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, recording, expected = deployed
    with open_predictor(str(bundle)) as predictor:
        found = evaluate(predictor, "SIM1", recording.path)
    np.testing.assert_array_equal(found.neuron_ids, recording.neuron_ids)
    for name in ("single_trial_correlation", "correlation_to_average"):
        np.testing.assert_allclose(getattr(found, name), expected.neurons[name], atol=1e-4)
    assert main(["evaluate", "SIM1", "--recording", str(recording.path), "--bundle", str(bundle)]) == 0
    printed = re.findall(r"-?\d\.\d{4}", capsys.readouterr().out)
    assert float(printed[0]) == pytest.approx(expected.summary["single_trial_correlation"], abs=1e-4)


@pytest.mark.slow
def test_neurons_are_found_by_their_ids_and_wrong_inputs_are_seen(
    deployed: tuple[Path, Recording, MouseScores], tmp_path: Path
) -> None:
    bundle, recording, expected = deployed
    other = tmp_path / "other"
    shutil.copytree(recording.path, other)
    ids = np.load(other / "meta/neurons/unit_ids.npy")
    order = np.random.default_rng(0).permutation(len(ids))
    np.save(other / "meta/neurons/unit_ids.npy", ids[order])
    for path in (other / "data/responses").iterdir():
        np.save(path, np.load(path)[order])
    with open_predictor(str(bundle)) as predictor:
        found = evaluate(predictor, "SIM1", other)
        np.testing.assert_allclose(
            found.single_trial_correlation, expected.neurons["single_trial_correlation"], atol=1e-4
        )
        np.save(other / "meta/neurons/unit_ids.npy", ids + 1000)
        with pytest.raises(InvalidArgument, match="0 of the twin's"):
            evaluate(predictor, "SIM1", other)
        with pytest.raises(InvalidArgument, match="no trials of tier 'final_test'"):
            evaluate(predictor, "SIM1", recording.path, tier="final_test")
        with pytest.raises(InvalidArgument, match="cannot be read"):
            evaluate(predictor, "SIM1", tmp_path)
