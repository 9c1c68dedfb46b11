"""The ranges and states of a mouse's training trials, against numpy in float64 on the recording's files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.tiny_twins import tiny_config, tiny_recordings, tiny_twin

from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.data.layout import SENSORIUM_BEHAVIOR
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.data.training_ranges import behavior_states
from training.export.mouse_inputs import behavior_states as states_of_manifest
from training.export.mouse_inputs import image_channels


@pytest.fixture(scope="module", params=[1, 2], ids=["gray", "color"])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("recordings")
    (recording,) = tiny_recordings(folder, n_train=(150,), image_shape=(request.param, 18, 32))
    return recording


def trials(recording: Recording, name: str) -> np.ndarray:
    """The training trials' files, in float64."""
    train = np.flatnonzero(np.load(recording.path / "meta/trials/tiers.npy") == "train")
    return np.stack([np.load(recording.path / f"data/{name}/{i}.npy") for i in train]).astype(np.float64)


def test_the_manifest_holds_the_ranges_of_the_training_images(recording: Recording) -> None:
    images = trials(recording, "images")  # (T, C, H, W)
    for c, channel in enumerate(image_channels(Mouse.from_recording(recording))):
        means, contrasts = images[:, c].mean(axis=(1, 2)), images[:, c].std(axis=(1, 2))
        assert channel.image_mean == pytest.approx((means.min(), means.max()), rel=1e-12)
        assert channel.image_contrast == pytest.approx((contrasts.min(), contrasts.max()), rel=1e-12)
        assert 0 < channel.image_contrast[0] < channel.image_contrast[1]


def test_the_manifest_holds_medians_at_rest_and_while_running(recording: Recording) -> None:
    behavior, pupil_center = trials(recording, "behavior"), trials(recording, "pupil_center")
    states = states_of_manifest(Mouse.from_recording(recording))
    assert [state.name for state in states] == ["rest", "running"]
    for state, member in zip(states, (behavior[:, 2] < 1, behavior[:, 2] >= 1), strict=True):
        assert state.trials == member.sum() >= 10
        assert state.behavior == np.median(behavior[member], axis=0).tolist()
        assert state.pupil_center == np.median(pupil_center[member], axis=0).tolist()
    assert states[0].behavior[2] < 1 <= states[1].behavior[2]


def test_a_checkpoint_keeps_them_and_an_older_one_loads_without(recording: Recording, tmp_path: Path) -> None:
    mouse = Mouse.from_recording(recording)
    folder = save_checkpoint(tmp_path / "new", Checkpoint(tiny_twin(tiny_config(), [mouse])))
    loaded = load_checkpoint(folder).mice[mouse.mouse_id]
    for name in ("image_means", "image_contrasts", "states"):
        assert getattr(loaded, name) == getattr(mouse, name) != ()

    content = {k: v for k, v in mouse.to_json().items() if k not in ("image_means", "image_contrasts", "states")}
    older = Mouse.from_parts(content, mouse.to_arrays())
    assert image_channels(older)[0].image_mean is None
    assert states_of_manifest(older) == []


def test_a_state_needs_ten_trials_and_backward_steps_count_as_running() -> None:
    behavior = np.array([[40.0, 0.0, speed] for speed in [0.5] * 9 + [-20.0, 1.0] * 5 + [4.0]], np.float32)
    (running,) = behavior_states(behavior, None, SENSORIUM_BEHAVIOR)
    assert (running.name, running.trials, running.pupil_center) == ("running", 11, ())
    assert running.behavior == (40.0, 0.0, 1.0)
    swapped = behavior[:, [2, 1, 0]]
    (again,) = behavior_states(swapped, None, SENSORIUM_BEHAVIOR[::-1])
    assert again.behavior == (1.0, 0.0, 40.0)
    assert behavior_states(swapped, None, SENSORIUM_BEHAVIOR[:2]) == ()


def test_a_recording_without_behavior_has_no_states(recording: Recording, tmp_path: Path) -> None:
    folder = shutil.copytree(recording.path, tmp_path / recording.path.name)
    shutil.rmtree(folder / "data/behavior")
    shutil.rmtree(folder / "meta/statistics/behavior")
    assert Mouse.from_recording(Recording.open(folder)).states == ()
