"""Trials as arrays: every row is the trial's own files, and `v1t` reads the folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.tiny_twins import competition_recording, tiny_recordings
from v1t_client.insilico.stimuli.trials import Trials

from training.__main__ import main
from training.data.recordings import Recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return tiny_recordings(tmp_path_factory.mktemp("recordings"), n_train=(12,))[0]


def test_every_row_is_its_trial(recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "trials"
    assert main(["trials", str(recording.path), "--output", str(output)]) == 0
    assert "12 test trials of mouse SIM1" in capsys.readouterr().out
    about = json.loads((output / "trials.json").read_text())
    files = np.flatnonzero(np.load(recording.path / "meta/trials/tiers.npy") == "test")
    assert about["file_numbers"] == files.tolist()
    assert about["image_ids"] == np.load(recording.path / "meta/trials/frame_image_id.npy")[files].tolist()
    for name in ("images", "behavior", "pupil_center", "responses"):
        written = np.load(output / f"{name}.npy")
        for row, trial in zip(written, files, strict=True):
            own = np.load(recording.path / f"data/{name}/{trial}.npy")
            np.testing.assert_array_equal(row, own)
            assert row.dtype == own.dtype
    read = Trials.open(
        output, recording.image_shape, channels=[channel.name for channel in recording.behavior_channels]
    )
    images, state = read.read(slice(3, 5))
    np.testing.assert_array_equal(images, np.load(output / "images.npy")[3:5])
    np.testing.assert_array_equal(state["running_speed"], np.load(output / "behavior.npy")[3:5, 2])


def test_a_folder_is_replaced_only_on_request_and_if_it_holds_trials(recording: Recording, tmp_path: Path) -> None:
    command = ["trials", str(recording.path), "--tier", "validation", "--output", str(tmp_path / "trials")]
    assert [main(command), main(command), main([*command, "--force"])] == [0, 1, 0]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept.txt").write_text("mine")
    assert main([*command[:-1], str(tmp_path / "other"), "--force"]) == 1
    assert (tmp_path / "other" / "kept.txt").exists()


def test_what_was_not_recorded_or_is_withheld_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    withheld = competition_recording(tmp_path, "26872-17-20", behavior=False)
    output = tmp_path / "trials"
    assert main(["trials", str(withheld.path), "--output", str(output)]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["images.npy", "trials.json"]
    tiers = withheld.path / "meta/trials/tiers.npy"
    np.save(tiers, np.where(np.load(tiers) == "final_test", "train", np.load(tiers)))
    assert main(["trials", str(withheld.path), "--tier", "final_test", "--output", str(tmp_path / "none")]) == 1
    assert "no final_test trials" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
