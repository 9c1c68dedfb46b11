"""Coloured and monochrome images: told apart by their channels, and scored each on their own trials."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_recordings

from training.checkpoints.ensemble import Ensemble
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import ConfigError
from training.evaluation.evaluate import evaluate_mouse, scores_table
from training.evaluation.image_kinds import is_monochrome, monochrome_trials
from training.simulation.stimuli import dead_leaves
from training.trainer.loop import predict_trials


def test_equal_channels_are_monochrome_at_any_scale_and_others_are_not() -> None:
    images = dead_leaves(40, image_shape=(2, 36, 64), rng=np.random.default_rng(0)).astype(np.float32)
    assert not is_monochrome(images, grey_levels=255).any()
    for scale, offset in ((1, 0), (0.3, 60), (0.05, 100)):
        gray = images.copy()
        gray[:, 1] = np.round(scale * gray[:, 0] + offset)  # as bytes
        assert is_monochrome(gray, grey_levels=255).all()
        assert is_monochrome(gray[:, ::-1], grey_levels=255).all()
        assert is_monochrome(gray / 255, grey_levels=1).all()
        assert not is_monochrome(np.stack([gray[:, 0], 255 - gray[:, 1]], 1), grey_levels=255).any()  # opposite
    one = images.copy()
    one[:, 1] = 110  # only one channel has a picture
    assert not is_monochrome(one, grey_levels=255).any()
    assert is_monochrome(np.full((1, 2, 36, 64), 110.0), grey_levels=255).all()  # a grey screen


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    options = {"n_neurons": 8, "n_test_images": 12, "image_shape": (2, 18, 32), "monochrome_share": 0.5}
    return tiny_recordings(tmp_path_factory.mktemp("recordings"), n_train=(20,), **options)[0]


def test_kinds_have_scores_of_their_own_trials(mixed: Recording) -> None:
    trials = mixed.tier("test")
    images = np.stack([np.load(mixed.path / f"data/images/{trial}.npy") for trial in trials.indices])
    equal = (images[:, 0] == images[:, 1]).all((1, 2))
    assert equal.sum() == len(trials) // 2
    np.testing.assert_array_equal(monochrome_trials(mixed, trials.indices), equal)
    ensemble = Ensemble([tiny_checkpoint(tiny_config(), [Mouse.from_recording(mixed)])])
    scores = evaluate_mouse(ensemble, mixed)
    for name, kind in (("monochrome", equal), ("colored", ~equal)):
        responses = mixed.responses(trials.indices[kind])
        predictions = predict_trials(ensemble, mixed, trials.indices[kind])
        expected = [np.corrcoef(*pair)[0, 1] for pair in zip(responses.T, predictions.T, strict=True)]
        np.testing.assert_allclose(scores.neurons[name], np.nan_to_num(expected), atol=1e-5)
    assert any(re.match("18 trials of 36 had a monochrome image", note) for note in scores.notes)
    assert "monochrome" in scores_table({"SIM1": scores})


def test_a_recording_of_one_kind_has_no_such_scores(tmp_path: Path) -> None:
    for shape in ((1, 18, 32), (2, 18, 32)):
        (recording,) = tiny_recordings(tmp_path, n_train=(20,), image_shape=shape)
        ensemble = Ensemble([tiny_checkpoint(tiny_config(), [Mouse.from_recording(recording)])])
        assert not {"colored", "monochrome"} & set(evaluate_mouse(ensemble, recording).summary)
    with pytest.raises(ConfigError, match="monochrome_share"):
        tiny_recordings(tmp_path, monochrome_share=0.5)
