"""`meta/behavior.json`: the behaviour channels of a recording, and what is refused."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support.behavior_channels import FOUR, TWO, WHISKING, with_channels
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_mouse, tiny_recordings, tiny_twin

from training.__main__ import main
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.checkpoints.ensemble import Ensemble
from training.data.layout import SENSORIUM_BEHAVIOR, BehaviorChannel
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.distillation.states import draw_states, median_state, running_states
from training.errors import ConfigError, RecordingError
from training.evaluation.evaluate import check_known
from training.models import Twin
from training.trainer.transfer import take_core


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (recording,) = tiny_recordings(tmp_path_factory.mktemp("recordings"), n_train=(30,))
    return recording.path


@pytest.mark.parametrize("channels", [FOUR, TWO], ids=["four", "two"])
def test_a_recording_has_the_channels_that_it_lists(
    simulated: Path, tmp_path: Path, channels: tuple[BehaviorChannel, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_channels(simulated, tmp_path, channels)
    recording = Recording.open(path)
    assert recording.behavior_channels == channels
    train = recording.tier("train").indices
    files = np.stack([np.load(path / f"data/behavior/{trial}.npy") for trial in train])
    np.testing.assert_array_equal(recording.batch(train).behavior, files)
    np.testing.assert_array_equal(recording.states_of(train)[0], files)
    mouse = Mouse.from_recording(recording)
    assert mouse.behavior is not None
    np.testing.assert_allclose(mouse.behavior.mean, files.mean(0), rtol=1e-6)
    percentiles = {name: mouse.percentiles[name]["75"] for name, _ in channels}
    np.testing.assert_allclose(list(percentiles.values()), np.percentile(files, 75, axis=0), rtol=1e-6)
    speed = files[:, channels.index(SENSORIUM_BEHAVIOR[2])]
    assert {state.name: state.trials for state in mouse.states} == {
        "rest": int((speed < 1).sum()),
        "running": int((speed >= 1).sum()),
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path / "new", Checkpoint(tiny_twin(tiny_config(), [mouse]))))
    assert loaded.mice[mouse.mouse_id].behavior_channels == channels
    assert main(["inspect", str(path)]) == 0
    assert "whisking" in (printed := capsys.readouterr().out) or "lick_rate" in printed


def test_a_zip_and_a_changed_list_are_read(simulated: Path, tmp_path: Path) -> None:
    path = with_channels(simulated, tmp_path, TWO)
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as file:
        for one in path.rglob("*"):
            file.write(one, f"{path.name}/{one.relative_to(path)}")
    zipped, before = Recording.open(tmp_path / "zipped.zip"), Recording.open(path)
    assert zipped.behavior_channels == TWO
    assert zipped.data_hash == before.data_hash
    (path / "meta/behavior.json").write_text(json.dumps([one._asdict() for one in (WHISKING, TWO[1])]))
    after = Recording.open(path)
    assert after.behavior_channels == (WHISKING, TWO[1])
    assert after.data_hash != before.data_hash


def test_checkpoints_from_before_have_the_channels_of_sensorium() -> None:
    mouse = tiny_mouse("A")
    content = {name: value for name, value in mouse.to_json().items() if name != "behavior_channels"}
    assert Mouse.from_parts(content, mouse.to_arrays()).behavior_channels == SENSORIUM_BEHAVIOR


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "meta/behavior.json is not JSON"),
        ({"whisking": "std"}, "is not a list of channels"),
        ([], "is not a list of channels"),
        ([{"name": "whisking"}], "not a channel"),
        ([{"name": "whisking", "unit": "std"}] * 2, "'whisking' is listed twice; got whisking, whisking"),
        ([{"name": "pupil_center_x", "unit": "px"}], "'pupil_center_x' is the name of another input"),
        ([{"name": "gray", "unit": "1"}], "'gray' is the name of another input"),
        ([{"name": "whisk ing", "unit": "std"}], "invalid name"),
        ([{"name": "whisking", "unit": ""}], "invalid unit of channel 'whisking'"),
        ([{"name": "whisking", "unit": "std"}], r"got \(3,\); expected \(1,\).*lists whisking \[std\]"),
    ],
)
def test_a_wrong_list_is_refused(simulated: Path, tmp_path: Path, content: object, message: str) -> None:
    path = Path(shutil.copytree(simulated, tmp_path / simulated.name))
    (path / "meta/behavior.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(RecordingError, match=message):
        Recording.open(path)


def test_four_numbers_without_a_list_say_where_to_list_them(simulated: Path, tmp_path: Path) -> None:
    path = with_channels(simulated, tmp_path, FOUR)
    (path / "meta/behavior.json").unlink()
    with pytest.raises(RecordingError, match=r"got \(4,\); expected \(3,\).*list them in meta/behavior.json"):
        Recording.open(path)


def test_a_missing_channel_and_nan_in_a_trial_are_refused(simulated: Path, tmp_path: Path) -> None:
    path = with_channels(simulated, tmp_path, FOUR)
    row = np.load(path / "data/behavior/5.npy")
    np.save(path / "data/behavior/5.npy", row[:3])
    with pytest.raises(RecordingError, match=r"data/behavior/5.npy has a wrong shape.*whisking \[std\]"):
        Recording.open(path)
    row[3] = np.nan
    np.save(path / "data/behavior/5.npy", row)
    with pytest.raises(RecordingError, match=r"data/behavior/5.npy contains NaN"):
        Recording.open(path)


def test_mice_members_recordings_and_cores_with_other_channels_are_refused(simulated: Path, tmp_path: Path) -> None:
    a, b = tiny_mouse("A"), tiny_mouse("B", behavior=FOUR)
    with pytest.raises(ConfigError, match=r"share their behaviour channels.*B: pupil_dilation .*whisking \[std\]"):
        Twin(tiny_config(), [a, b])
    members = [tiny_checkpoint(tiny_config(), [tiny_mouse("A", behavior=one)]) for one in (FOUR, TWO)]
    with pytest.raises(ConfigError, match="another recording"):
        Ensemble(members)
    recording = Recording.open(with_channels(simulated, tmp_path, FOUR))
    mouse = Mouse.from_recording(Recording.open(simulated))
    with pytest.raises(RecordingError, match=r"other behaviour channels.*expected pupil_dilation"):
        check_known(Ensemble([tiny_checkpoint(tiny_config(), [mouse])]), [recording])
    with pytest.raises(ConfigError, match=r"trained with other behaviour channels.*got .*whisking.*expected"):
        take_core(Twin(tiny_config(), [b]), tiny_checkpoint(tiny_config(), [a]))


@pytest.mark.parametrize("config", [tiny_config(), tiny_config({"kind": "cnn"}), tiny_config({"kind": "cct"})])
def test_every_channel_changes_the_responses_and_by_its_std(config) -> None:
    """Behaviour is divided by its std, channel by channel: twice the std and twice the value are the same input."""
    mouse = tiny_mouse("A", behavior=FOUR)
    twin = tiny_twin(config, [mouse])
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(2, 2, (1, *mouse.image_shape)).astype(np.float32))
    behavior, gaze = torch.ones(1, 4), torch.ones(1, 2)
    before = twin("A", image, behavior, gaze)
    assert mouse.behavior is not None
    for k in range(4):
        changed = behavior.clone()
        changed[0, k] += 1
        assert not torch.allclose(twin("A", image, changed, gaze), before, atol=1e-6)
    doubled = tiny_mouse("A", behavior=FOUR)
    assert doubled.behavior is not None
    doubled.behavior.std[:] *= 2
    again = Twin(config, [doubled]).eval()
    again.load_state_dict(twin.state_dict())
    torch.testing.assert_close(again("A", image, 2 * behavior, gaze), before)


def test_distillation_finds_pupil_and_running_by_name() -> None:
    rng = np.random.default_rng(0)
    mouse = tiny_mouse("A", behavior=TWO)
    assert mouse.behavior is not None
    states, gaze = draw_states(mouse, None, 50, rng)
    assert (states.shape, gaze.shape) == ((50, 2), (50, 2))
    both, _ = running_states(mouse)
    np.testing.assert_allclose(both[0], [mouse.behavior.median[0], 0])
    np.testing.assert_allclose(both[1], mouse.behavior.median + np.array([0, 2]) * mouse.behavior.std)
    still = tiny_mouse("A", behavior=(WHISKING,))
    both, _ = running_states(still)
    np.testing.assert_array_equal(both, np.stack([median_state(still)[0]] * 2))
