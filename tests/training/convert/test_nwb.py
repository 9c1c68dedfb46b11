"""NWB files of labs to recordings, against what pynwb was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pynwb
import pytest
from support.lab_nwb import LabSession

from training.__main__ import main
from training.convert.mapping import Mapping, read_mapping
from training.convert.nwb_in import read_nwb
from training.convert.session import Session
from training.data.recordings import Recording
from training.errors import ConfigError, RecordingError


def read(path: Path | list[Path], *, not_finite: Any = "refuse", **options: Any) -> Session:
    paths = path if isinstance(path, list) else [path]
    return read_nwb(paths, Mapping(**options), not_finite=not_finite)[0]


def check(session: Session, lab: LabSession, trials: Any = slice(None)) -> None:
    """Images, ids, responses and positions are those of the lab, whatever the order of columns."""
    shown = session.images[session.shown, 0]
    assert (shown == lab.images[lab.shown[trials]]).all()
    for name in lab.planes:
        for row in range(lab.n):
            (column,) = np.flatnonzero(session.neuron_ids == lab.ids[name][row])
            assert session.responses[:, column] == pytest.approx(lab.expected(name)[trials, row])
            assert session.coordinates is not None
            assert session.coordinates[column] == pytest.approx(lab.positions[name][row])


@pytest.mark.parametrize("stimulus", ["index", "index of series", "images", "optical"])
def test_stimuli_in_every_form_and_responses_of_two_planes_are_read(tmp_path: Path, stimulus: str) -> None:
    lab = LabSession(stimulus=stimulus)
    path = lab.write(tmp_path / "a.nwb")
    if stimulus == "index of series":
        lab.images = lab.images[:, ::-1]  # as the series has them
    check(read(path), lab)


def test_columns_in_another_order_than_the_roi_table_follow_the_region(tmp_path: Path) -> None:
    lab = LabSession(order=(3, 0, 4, 2, 1))
    session = read(lab.write(tmp_path / "a.nwb"))
    check(session, lab)
    assert session.neuron_ids[:5].tolist() == lab.ids["deep"][[3, 0, 4, 2, 1]].tolist()


def test_behaviour_is_the_mean_over_the_window_and_the_derivative_is_of_the_pupil(tmp_path: Path) -> None:
    lab = LabSession()
    session = read(lab.write(tmp_path / "a.nwb"))
    middle = lab.onsets + 0.275
    assert session.behavior_names == ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
    assert session.behavior is not None
    assert session.pupil_center is not None
    fine = lab.onsets[:, None] + np.linspace(0.05, 0.5, 400)  # (T, 400)
    assert session.behavior[:, 0] == pytest.approx((40 + 5 * np.sin(fine / 3)).mean(1), abs=1e-3)
    change = (5 * np.sin((lab.onsets + 0.5) / 3) - 5 * np.sin((lab.onsets + 0.05) / 3)) / 0.45
    assert session.behavior[:, 1] == pytest.approx(change, abs=1e-3)
    assert session.behavior[:, 2] == pytest.approx(np.abs(10 * np.cos(fine / 2)).mean(1), abs=0.02)  # m/s to cm/s
    assert session.pupil_center == pytest.approx(np.stack([300 + middle, 200 - 2 * middle], axis=1))


def test_frames_that_were_lost_cost_their_trials_and_no_others(tmp_path: Path) -> None:
    lab = LabSession()
    lost = int(np.searchsorted(lab.times, lab.onsets[6]))
    kept = np.delete(np.arange(len(lab.times)), np.arange(lost, lost + 6))
    lab.times = lab.times[kept]
    lab.traces = {name: values[kept] for name, values in lab.traces.items()}
    session = read(lab.write(tmp_path / "a.nwb"))
    left = np.delete(np.arange(len(lab.shown)), 6)
    assert session.trial_ids is not None
    assert session.trial_ids.tolist() == left.tolist()
    check(session, lab, left)


def test_a_blink_is_interpolated_and_a_lost_eye_is_refused_until_it_is_left_out(tmp_path: Path) -> None:
    lab = LabSession()
    whole = read(lab.write(tmp_path / "a.nwb"))
    onset = lab.onsets[5]
    lab.pupil = np.where((lab.eye_times > onset) & (lab.eye_times < onset + 0.6), np.nan, lab.pupil)
    blink = read(lab.write(tmp_path / "b.nwb"))
    assert blink.behavior is not None
    assert whole.behavior is not None
    assert len(blink.behavior) == len(whole.behavior)
    assert blink.behavior[5, 0] == pytest.approx(whole.behavior[5, 0], abs=0.1)
    lab.pupil = np.where(lab.eye_times > lab.onsets[10], np.nan, lab.pupil)
    path = lab.write(tmp_path / "c.nwb")
    with pytest.raises(RecordingError, match=r"too much is missing: 1\d of 24 trials .*without pupil_dilation"):
        read(path)
    session = read(path, behavior={"pupil_dilation": "none"})
    assert session.behavior_names == ("running_speed",)


def test_times_of_another_clock_are_refused_and_right_once_the_offset_is_stated(tmp_path: Path) -> None:
    lab = LabSession(start=500.0, clock=500.0)
    path = lab.write(tmp_path / "a.nwb")
    with pytest.raises(RecordingError, match=r"do not overlap in time.*500\.0 to .* clocks: \{stimulus"):
        read(path)
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("clocks: {stimulus: 500.0}\n")
    check(read_nwb([path], read_mapping(None, mapping, {}), not_finite="refuse")[0], lab)


def test_window_baseline_and_statistic_are_options(tmp_path: Path) -> None:
    lab = LabSession()
    session = read(lab.write(tmp_path / "a.nwb"), window_ms=(100, 700), baseline_ms=(-200, 0))
    wanted = lab.expected("shallow", (0.1, 0.7)) - lab.expected("shallow", (-0.2, 0))
    assert session.responses[:, session.neuron_ids == lab.ids["shallow"][2]][:, 0] == pytest.approx(wanted[:, 2])


def test_only_cells_are_kept_if_a_column_says_which_they_are(tmp_path: Path) -> None:
    lab = LabSession(order=(3, 0, 4, 2, 1))
    session = read(lab.write(tmp_path / "a.nwb"), keep="is_cell")
    ids = [lab.ids[name][row] for name in ("deep", "shallow") for row in (3, 0, 4, 2)]
    assert session.neuron_ids.tolist() == ids


def test_files_of_one_session_are_its_planes(tmp_path: Path) -> None:
    both = LabSession()
    paths = []
    for name in both.planes:
        one = LabSession()
        one.planes = (name,)
        paths.append(one.write(tmp_path / f"{name}.nwb"))
    session = read(paths)
    check(session, both)
    with pytest.raises(RecordingError, match="two planes of the name 'shallow'"):
        read([paths[0], paths[0]])
    named = read([paths[0], paths[0]], planes=("a", "b"))
    assert len(np.unique(named.neuron_ids)) == 10


def test_two_series_of_one_plane_are_refused(tmp_path: Path) -> None:
    path = LabSession(planes=("one",)).write(tmp_path / "a.nwb", LabSession(planes=("one",)).allen())
    with pytest.raises(RecordingError, match="two planes of the name 'ImagingPlane'"):
        read(path, responses=("ophys/Fluorescence/Corrected", "ophys/DfOverF/DfOverF"))


def test_the_allen_preset_reads_a_file_of_its_structure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The structure only: no file of the Allen Institute is part of the tests."""
    lab = LabSession(planes=("one",), blanks=(2, 9))
    path = lab.write(tmp_path / "a.nwb", lab.allen())
    mapping = read_mapping("allen-visual-coding", None, {"image_size": [18, 32]})
    session, _, notes = read_nwb([path], mapping, not_finite="refuse")
    kept = np.delete(np.arange(24), [2, 9])
    # NaturalScene10 comes after NaturalScene9, though not in the alphabet.
    assert (session.images[session.shown, 0] == lab.images[lab.shown[kept]]).all()
    assert session.neuron_ids.tolist() == lab.ids["one"].tolist()
    assert session.responses == pytest.approx(lab.expected("one")[kept])  # dF/F, neither events nor fluorescence
    assert session.coordinates is not None
    assert session.coordinates[:, :2].tolist() == [[row, 2 * row + 1] for row in range(5)]
    assert "2 blanks left out" in notes
    assert main(["convert", "nwb", str(path), "--preset", "allen-visual-coding", "--output", str(tmp_path / "r")]) == 0
    assert Recording.open(tmp_path / "r").image_shape == (1, 144, 184)
    assert "stimulus: natural_scenes_stimulus" in capsys.readouterr().out


def test_deconvolved_responses_are_guessed_before_others(tmp_path: Path) -> None:
    lab = LabSession(planes=("one",))
    path = lab.write(tmp_path / "a.nwb", lab.allen())
    _, mapping, _ = read_nwb([path], Mapping(blanks=(4294967295,)), not_finite="refuse")
    assert mapping.responses == ("ophys/DfOverF/DfOverFEvents",)


def test_a_run_of_the_same_index_is_one_presentation_if_the_samples_are_frames(tmp_path: Path) -> None:
    lab = LabSession()
    nwb = lab.nwb()
    times = np.arange(lab.onsets[0], lab.onsets[-1] + 0.5, 1 / 60)
    trial = np.searchsorted(lab.onsets, times, side="right") - 1
    blank = times > lab.onsets[trial] + 0.5
    index = np.where(blank, 4294967295, lab.shown[trial]).astype(np.uint32)
    lab.onsets = np.array([times[(trial == t) & ~blank][0] for t in range(24)])
    frames = pynwb.image.IndexSeries(
        name="frames", data=index, indexed_images=nwb.stimulus_template["pictures"], unit="N/A", timestamps=times
    )
    nwb.add_stimulus(frames)
    path = lab.write(tmp_path / "a.nwb", nwb)
    check(read(path, stimulus="frames", stimulus_samples="frames", blanks=(4294967295,)), lab)


def test_a_table_of_presentations_names_the_images(tmp_path: Path) -> None:
    lab = LabSession()
    nwb = lab.nwb()
    table = pynwb.epoch.TimeIntervals(name="flashes", description="presentations")
    table.add_column("image_index", "the image")
    for onset, shown in zip(lab.onsets, lab.shown, strict=True):
        table.add_interval(start_time=onset, stop_time=onset + 0.25, image_index=int(shown))
    nwb.add_time_intervals(table)
    path = lab.write(tmp_path / "a.nwb", nwb)
    check(read(path, stimulus="flashes", image_column="image_index", images="pictures"), lab)
    with pytest.raises(RecordingError, match=r"no column 'image_ix'.*image_index"):
        read(path, stimulus="flashes", image_column="image_ix", images="pictures")


def test_what_is_no_nwb_file_or_lacks_a_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="does not exist"):
        read(tmp_path / "none.nwb")
    text = tmp_path / "text.nwb"
    text.write_text("<html>log in</html>")
    with pytest.raises(RecordingError, match="is not an NWB file; got an HTML page"):
        read(text)
    old = tmp_path / "old.nwb"
    import h5py

    with h5py.File(old, "w") as file:
        file["nwb_version"] = "NWB-1.0.6"
    with pytest.raises(RecordingError, match=r"not a file of NWB 2; got NWB version NWB-1\.0\.6"):
        read(old)
    lab = LabSession()
    whole = lab.write(tmp_path / "whole.nwb").read_bytes()
    (tmp_path / "cut.nwb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordingError, match="cannot be read"):
        read(tmp_path / "cut.nwb")
    nwb = pynwb.NWBFile("s", "i", lab.nwb().session_start_time)
    lab.add_responses(nwb)
    with pytest.raises(RecordingError, match="has no stimulus images; got stimuli: none"):
        read(lab.write(tmp_path / "b.nwb", nwb))
    nwb = pynwb.NWBFile("s", "i", lab.nwb().session_start_time)
    lab.add_stimulus(nwb)
    with pytest.raises(RecordingError, match="has no responses of ROIs"):
        read(lab.write(tmp_path / "c.nwb", nwb))


def test_three_trials_are_too_few_and_an_index_beyond_the_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="3 trials: too few"):
        read(LabSession(n_trials=3).write(tmp_path / "a.nwb"))
    lab = LabSession()
    lab.shown = lab.shown.copy()
    lab.shown[4] = 40
    with pytest.raises(RecordingError, match=r"1 presentation of an image that does not exist.*index 40.*0 to 11"):
        read(lab.write(tmp_path / "b.nwb"))


def test_a_neuron_with_nan_is_refused_or_left_out(tmp_path: Path) -> None:
    lab = LabSession()
    lab.traces["deep"][:, 3] = np.nan
    path = lab.write(tmp_path / "a.nwb")
    with pytest.raises(RecordingError, match=r"responses: NaN or infinity in 24 trials, of 1 neuron.*drop-neurons"):
        read(path)
    session = read(path, not_finite="drop-neurons")
    assert lab.ids["deep"][3] not in session.neuron_ids
    assert session.responses.shape == (24, 9)


def test_images_in_another_file_are_refused(tmp_path: Path) -> None:
    lab = LabSession()
    nwb = pynwb.NWBFile("s", "i", lab.nwb().session_start_time)
    lab.add_responses(nwb)
    movie = pynwb.image.ImageSeries(
        name="movie", external_file=["movie.avi"], format="external", unit="n.a.", timestamps=[1.0, 2.0]
    )
    nwb.add_stimulus(movie)
    with pytest.raises(RecordingError, match=r"the images of movie are in other files; got movie\.avi"):
        read(lab.write(tmp_path / "a.nwb", nwb))


def test_a_mapping_is_printed_and_gives_the_same_recording_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = LabSession()
    path = lab.write(tmp_path / "a.nwb")
    arguments = ["convert", "nwb", str(path), "--window-ms", "100", "600"]
    assert main([*arguments, "--output", str(tmp_path / "one")]) == 0
    printed = capsys.readouterr().out.splitlines()
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("\n".join(line[2:] for line in printed if line.startswith("  ")))
    assert main(["convert", "nwb", str(path), "--mapping", str(mapping), "--output", str(tmp_path / "two")]) == 0
    one, two = (Recording.open(tmp_path / name) for name in ("one", "two"))
    assert one.data_hash == two.data_hash
    about = json.loads((tmp_path / "one/meta/converted.json").read_text())
    assert about["mapping"]["window_ms"] == [100.0, 600.0]
    assert about["nwb"][0]["file"] == "a.nwb"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widow_ms: [1, 2]", "unknown option 'widow_ms'"),
        ("window_ms: [500, 50]", "not a window"),
        ("statistic: average", "statistic is unknown; got 'average'"),
        ("clocks: [1]", "clocks has a wrong type"),
        ("- a", "is not a mapping"),
        ("a: [", "cannot be read as YAML"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ],
)
def test_a_broken_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_mapping(None, path, {})


def test_nothing_is_left_after_an_error_and_an_output_is_replaced_only_if_it_was_converted(tmp_path: Path) -> None:
    lab = LabSession(n_trials=3)
    bad = lab.write(tmp_path / "bad.nwb")
    output = tmp_path / "out" / "recording"
    assert main(["convert", "nwb", str(bad), "--output", str(output)]) == 1
    assert not output.parent.exists()
    good = LabSession().write(tmp_path / "good.nwb")
    assert main(["convert", "nwb", str(good), "--output", str(output)]) == 0
    assert sorted(path.name for path in output.parent.iterdir()) == ["recording", "recording.packed"]
    before = Recording.open(output).data_hash
    assert main(["convert", "nwb", str(bad), "--output", str(output), "--force"]) == 1
    assert main(["convert", "nwb", str(good), "--output", str(output)]) == 1
    assert Recording.open(output).data_hash == before
    assert main(["convert", "nwb", str(good), "--output", str(output), "--force", "--seed", "3"]) == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    assert main(["convert", "nwb", str(good), "--output", str(other), "--force"]) == 1
    assert (other / "thesis.txt").is_file()
