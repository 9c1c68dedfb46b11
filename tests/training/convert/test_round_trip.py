"""A recording to NWB and back: every trial and its metadata, bit for bit; and what nwbinspector says of the file."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pynwb
import pytest
from support.tiny_twins import competition_recording

from training.__main__ import main
from training.data.recordings import Recording
from training.simulation.simulate import simulate

SIZES = {"n_train": 30, "n_validation": 6, "n_test_images": 4, "n_test_repeats": 3}


def simulated(folder: Path, *, shape: tuple[int, int, int] = (1, 18, 32), n_neurons: int = 7) -> Path:
    return simulate(folder, mouse_id="SIM1", data_key="90001-1-1", image_shape=shape, n_neurons=n_neurons, **SIZES)


def there_and_back(path: Path, folder: Path, *, preset: bool = True) -> Path:
    nwb, back = folder / "a.nwb", folder / f"back-{preset}"
    if not nwb.exists():
        assert main(["convert", "to-nwb", str(path), "--output", str(nwb)]) == 0
    which = ["--preset", "sensorium"] if preset else []
    assert main(["convert", "nwb", str(nwb), *which, "--output", str(back)]) == 0
    return back


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    return {
        str(path.relative_to(folder)): np.load(path)
        for part in ("data", "meta")
        for path in sorted((folder / part).rglob("*.npy"))
    }


@pytest.mark.parametrize("preset", [True, False])
@pytest.mark.parametrize("shape", [(1, 18, 32), (2, 18, 32)])
def test_a_simulated_mouse_comes_back_file_by_file(
    tmp_path: Path, shape: tuple[int, int, int], preset: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = simulated(tmp_path / "sim", shape=shape)
    back = there_and_back(path, tmp_path, preset=preset)
    wanted, found = arrays_of(path), arrays_of(back)
    assert wanted.keys() == found.keys()
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype or values.dtype.kind in "OSU", name
        assert found[name].shape == values.shape, name
        assert (found[name] == values).all(), name
    assert (back / "meta/simulated.json").read_text() == (path / "meta/simulated.json").read_text()
    assert Recording.open(back).mouse_id == "SIM1"


def test_more_neurons_than_trials_come_back_too(tmp_path: Path) -> None:
    path = simulated(tmp_path / "sim", n_neurons=61)
    back = there_and_back(path, tmp_path)
    assert (Recording.open(back).neuron_ids == Recording.open(path).neuron_ids).all()
    for trial in range(48):
        name = f"data/responses/{trial}.npy"
        assert (np.load(back / name) == np.load(path / name)).all()


def test_a_competition_recording_without_behaviour_comes_back(tmp_path: Path) -> None:
    one = competition_recording(tmp_path / "sim", "26872-17-20", behavior=False)
    other = Recording.open(there_and_back(one.path, tmp_path))
    assert not other.has_behavior
    assert not other.has_pupil_center
    for name in ("tiers", "image_ids", "trial_ids", "neuron_ids", "neuron_coordinates"):
        assert (getattr(one, name) == getattr(other, name)).all(), name
    trials = np.arange(one.n_trials)
    assert (one.batch(trials).image == other.batch(trials).image).all()
    assert (one.responses(trials) == other.responses(trials)).all()


def test_a_recording_with_excluded_trials_comes_back_without_them(tmp_path: Path) -> None:
    path = simulated(tmp_path / "sim")
    tiers = np.load(path / "meta/trials/tiers.npy")
    left = np.flatnonzero(tiers == "train")[[2, 5]]
    tiers[left] = "excluded"
    np.save(path / "meta/trials/tiers.npy", tiers)
    for part in ("images", "responses"):
        (path / f"data/{part}/{left[0]}.npy").unlink()
    back = there_and_back(path, tmp_path)
    kept = np.delete(np.arange(48), left)
    assert (np.load(back / "meta/trials/tiers.npy") == tiers[kept]).all()
    for new, old in enumerate(kept):
        assert (np.load(back / f"data/images/{new}.npy") == np.load(path / f"data/images/{old}.npy")).all()


def test_nwbinspector_has_no_critical_finding_and_none_on_best_practice(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nwbinspector's own imports
        from nwbinspector import Importance, inspect_nwbfile
    for name, n_neurons in (("few", 7), ("many", 61)):
        nwb = tmp_path / f"{name}.nwb"
        path = simulated(tmp_path / name, n_neurons=n_neurons)
        assert main(["convert", "to-nwb", str(path), "--output", str(nwb)]) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = list(inspect_nwbfile(nwbfile_path=str(nwb)))
        serious = [one for one in found if one.importance.value >= Importance.BEST_PRACTICE_VIOLATION.value]
        assert serious == []


def test_the_file_says_what_it_does_not_know(tmp_path: Path) -> None:
    nwb = tmp_path / "a.nwb"
    path = simulated(tmp_path / "sim")
    start = ["--session-start", "2022-03-01T10:00+01:00"]
    assert main(["convert", "to-nwb", str(path), "--output", str(nwb), *start]) == 0
    with pynwb.NWBHDF5IO(str(nwb), mode="r") as io:
        file = io.read()
        assert file.session_start_time.isoformat() == "2022-03-01T10:00:00+01:00"
        assert "Simulated: no animal was recorded" in file.session_description
        assert "Times are nominal" in file.session_description
        assert file.subject.subject_id == "90001"
        assert "SIM1" in file.notes
        order = np.argsort(np.load(path / "meta/trials/trial_idx.npy"))
        series = file.processing["ophys"]["Fluorescence"]["responses"]
        assert (series.data[3] == np.load(path / f"data/responses/{order[3]}.npy")).all()  # in the order of time


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = simulated(tmp_path / "sim")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pynwb.NWBHDF5IO, "write", full)
    assert main(["convert", "to-nwb", str(path), "--output", str(tmp_path / "out/a.nwb")]) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_an_extra_that_is_missing_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynwb", None)
    (tmp_path / "a.nwb").touch()
    assert main(["convert", "nwb", str(tmp_path / "a.nwb"), "--output", str(tmp_path / "r")]) == 1
    assert "pip install '.[nwb]'" in capsys.readouterr().err
