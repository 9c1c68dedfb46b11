"""Recordings: what is on disk comes back unchanged, and what is wrong on disk is named."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.closed_pipe import closed_pipe
from support.recordings import NAME, SHAPE, N, T, write_recording

from training.__main__ import main
from training.data import cache as packed_module
from training.data.mouse import open_recordings
from training.data.recordings import Recording
from training.errors import RecordingError, ScoringError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    write_recording(path)
    return path


def zipped(folder: Path, *, inside: bool = False) -> Path:
    root = folder.parent if inside else folder
    base = folder.name if inside else "."
    return Path(shutil.make_archive(str(folder), "zip", root_dir=root, base_dir=base))


@pytest.mark.parametrize("image_dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("flat", [True, False])
def test_batches_hold_what_the_files_hold(tmp_path: Path, image_dtype: str, flat: bool) -> None:
    written = write_recording(tmp_path / NAME, image_dtype=image_dtype, flat=flat)
    recording = Recording.open(tmp_path / NAME)
    indices = np.random.default_rng(1).permutation(T)[:9]
    batch = recording.batch(indices)
    np.testing.assert_array_equal(batch.image, written["images"][indices].astype(np.float32))
    np.testing.assert_array_equal(batch.response, written["responses"][indices].astype(np.float32))
    np.testing.assert_array_equal(batch.behavior, written["behavior"][indices].astype(np.float32))
    np.testing.assert_array_equal(batch.pupil_center, written["pupil_center"][indices].astype(np.float32))
    np.testing.assert_array_equal(recording.image_ids[indices], written["frame_image_id"][indices])
    np.testing.assert_array_equal(recording.trial_ids[indices], written["trial_idx"][indices])
    assert {array.dtype for array in (batch.image, batch.response, batch.behavior, batch.pupil_center)} == {
        np.dtype(np.float32)
    }


def test_a_recording_knows_its_mouse_and_neurons(folder: Path) -> None:
    recording = Recording.open(folder)
    assert (recording.mouse_id, recording.data_key) == ("A", "21067-10-18")
    assert recording.image_shape == SHAPE
    assert recording.image_channels == ("gray",)
    assert recording.n_neurons == N
    assert recording.neuron_ids.dtype == np.int64
    assert recording.neuron_coordinates.shape == (N, 3)
    assert recording.statistics.images.mean.shape == (1,)
    assert recording.statistics.responses.std.shape == (N,)
    assert not recording.simulated
    assert Recording.open(folder, mouse_id="mine").mouse_id == "mine"


def test_a_folder_of_another_name_is_its_own_mouse(folder: Path) -> None:
    other = folder.rename(folder.parent / "static99999-1-2-GrayImageNet-abc")
    recording = Recording.open(other)
    assert (recording.mouse_id, recording.data_key) == ("99999-1-2", "99999-1-2")


def test_tiers_part_the_trials(folder: Path) -> None:
    recording = Recording.open(folder)
    tiers = [recording.tier(tier) for tier in ("train", "validation", "test", "final_test")]
    assert [len(trials) for trials in tiers] == [12, 5, 6, 0]
    assert sorted(np.concatenate([trials.indices for trials in tiers])) == list(range(T))
    assert all((recording.tiers[trials.indices] == trials.tier).all() for trials in tiers)
    with pytest.raises(RecordingError, match="'live_test'"):
        recording.tier("live_test")


@pytest.mark.parametrize("inside", [True, False])
def test_a_zip_reads_like_its_folder(folder: Path, inside: bool) -> None:
    of_folder, of_zip = Recording.open(folder), Recording.open(zipped(folder, inside=inside))
    assert of_zip.mouse_id == "A"
    assert of_zip.data_hash == of_folder.data_hash
    np.testing.assert_array_equal(of_zip.batch(np.arange(T)).image, of_folder.batch(np.arange(T)).image)
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted(
        [NAME, f"{NAME}.zip", f"{NAME}.packed", f"{NAME}.zip.packed"]
    )  # nothing was unpacked


def test_colour_recordings_keep_their_channel_order_unnamed(tmp_path: Path) -> None:
    path = tmp_path / "static25311-10-26-ColorImageNet-104e"
    written = write_recording(path, shape=(2, 36, 64), image_dtype="float32")
    (path / "meta/trials/frame_image_id.npy").rename(path / "meta/trials/colorframeprojector_image_id.npy")
    for statistic in ("mean", "std"):
        values = getattr(np, statistic)(written["images"], axis=(0, 2, 3))
        np.save(path / f"meta/statistics/images/all/{statistic}.npy", values.reshape(2, 1, 1))
    recording = Recording.open(path)
    assert recording.mouse_id == "F"
    assert recording.image_channels == ("channel_0", "channel_1")
    np.testing.assert_allclose(recording.statistics.images.mean, written["images"].mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(recording.image_ids, written["frame_image_id"])


def test_statistics_come_from_the_files_and_percentiles_from_the_training_trials(folder: Path) -> None:
    written = {name: np.stack([np.load(folder / f"data/{name}/{t}.npy") for t in range(T)]) for name in ("behavior",)}
    recording = Recording.open(folder)
    np.testing.assert_allclose(recording.statistics.behavior.std, written["behavior"].std(0), rtol=1e-5)
    train = np.load(folder / "meta/trials/tiers.npy") == "train"
    percentiles = recording.behavior_percentiles()
    for k, name in enumerate(("pupil_dilation", "pupil_dilation_derivative", "running_speed")):
        expected = np.percentile(written["behavior"][train, k], [5, 25, 50, 75, 95])
        np.testing.assert_allclose(list(percentiles[name].values()), expected, rtol=1e-5)
    assert list(percentiles["pupil_center_y"]) == ["5", "25", "50", "75", "95"]


def test_a_silent_neuron_is_divided_by_one_percent_of_the_mean_std(folder: Path) -> None:
    std = np.array([2.0, 1.0, 0.0, 4.0, 1e-6, 3.0, 2.0])
    np.save(folder / "meta/statistics/responses/all/std.npy", std)
    recording = Recording.open(folder)
    np.testing.assert_allclose(recording.response_std, np.maximum(std, 0.01 * std.mean()), rtol=1e-6)
    assert any("2 silent neurons" in note for note in recording.notes())


def test_a_recording_without_behavior_says_so(folder: Path) -> None:
    for name in ("behavior", "pupil_center"):
        shutil.rmtree(folder / "data" / name)
        shutil.rmtree(folder / "meta/statistics" / name)
    recording = Recording.open(folder)
    assert not recording.has_behavior
    assert not recording.has_pupil_center
    assert not recording.batch(np.arange(3)).behavior.any()
    np.testing.assert_array_equal(recording.statistics.behavior.std, 1)
    assert recording.behavior_percentiles() == {}


def test_withheld_responses_are_never_scored(folder: Path) -> None:
    tiers = np.load(folder / "meta/trials/tiers.npy").astype("U10")
    tests = np.flatnonzero(tiers == "test")
    tiers[tests[:2]] = "final_test"
    np.save(folder / "meta/trials/tiers.npy", tiers)
    recording = Recording.open(folder)
    assert len(recording.scorable("test")) == len(tests) - 2
    with pytest.raises(ScoringError, match="competition"):
        recording.scorable("final_test")
    for trial in tests:
        np.save(folder / f"data/responses/{trial}.npy", np.zeros(N, np.float32))
    with pytest.raises(ScoringError, match="competition"):
        Recording.open(folder).scorable("test")


def test_hashed_trial_ids_are_kept_and_refused_for_scoring(folder: Path) -> None:
    hashed = np.array([f"{trial * 7919:032x}" for trial in range(T)])
    np.save(folder / "meta/trials/trial_idx.npy", hashed)
    recording = Recording.open(folder)
    np.testing.assert_array_equal(recording.trial_ids, hashed)
    assert len(recording.scorable("validation")) == 5
    with pytest.raises(ScoringError):
        recording.scorable("test")
    assert any("test cannot be scored" in note for note in recording.notes())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("data/images/3.npy", np.zeros((1, 12, 21), np.uint8), r"data/images/3\.npy.*\(1, 12, 21\)"),
        ("data/images/3.npy", np.array([["x"]]), r"data/images/3\.npy"),
        ("data/responses/5.npy", np.zeros(N + 1), r"data/responses/5\.npy.*\(8,\).*\(7,\)"),
        ("data/responses/5.npy", np.full(N, np.nan), r"data/responses/5\.npy contains NaN"),
        ("data/behavior/0.npy", np.zeros((3, 1)), r"data/behavior/0\.npy.*\(3, 1\)"),
        ("data/pupil_center/9.npy", np.array([1.0, np.inf]), r"data/pupil_center/9\.npy contains NaN or infinity"),
        ("meta/trials/tiers.npy", np.array(["train"] * (T - 1) + ["lunch"]), "'lunch'.*validation"),
        ("meta/trials/tiers.npy", np.array(["train"] * (T + 1)), r"meta/trials/frame_image_id.*\(23,\).*24"),
        ("meta/trials/trial_idx.npy", np.arange(T + 2), r"trial_idx\.npy.*\(25,\)"),
        ("meta/neurons/unit_ids.npy", np.arange(N + 1), r"cell_motor_coordinates\.npy.*\(7, 3\).*\(8, 3\)"),
        ("meta/neurons/unit_ids.npy", np.zeros(N, int), "has a neuron twice"),
        ("meta/statistics/behavior/all/std.npy", np.zeros(3), r"behavior/all/std\.npy is not positive"),
        ("meta/statistics/responses/all/mean.npy", np.zeros(()), r"responses/all/mean\.npy"),
        ("meta/trials/frame_image_id.npy", np.array([None] * T), r"frame_image_id\.npy.*NoneType"),
        ("meta/neurons/cell_motor_coordinates.npy", np.full((N, 3), np.nan), "contains NaN"),
        ("meta/statistics/pupil_center/all/std.npy", np.array([1, np.nan]), r"contains NaN.*numpy\.nanstd"),
    ],
)
def test_what_is_wrong_on_disk_is_named(folder: Path, name: str, value: np.ndarray, said: str) -> None:
    np.save(folder / name, value)
    with pytest.raises(RecordingError, match=said) as caught:
        Recording.open(folder)
    assert NAME in str(caught.value)  # every error names the recording
    assert bool(list(folder.parent.glob("*.packed"))) == (
        "--nan-trials" in str(caught.value)
    )  # which a policy may still read
    assert not list(folder.parent.glob(".*"))


@pytest.mark.parametrize("name", ["data/responses/4.npy", "meta/neurons/unit_ids.npy", "data/images/0.npy"])
def test_truncated_and_missing_files_are_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for content in (whole[:-5], whole[:20], b""):
        (folder / name).write_bytes(content)
        with pytest.raises(RecordingError, match=name.replace(".", r"\.")):
            Recording.open(folder)
    (folder / name).unlink()
    with pytest.raises(RecordingError, match=Path(name).name):
        Recording.open(folder)


def test_pickles_in_a_recording_are_never_executed(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(folder / "data/behavior/2.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(RecordingError, match=r"data/behavior/2\.npy"):
        Recording.open(folder)
    (folder / "data/behavior/2.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RecordingError, match=r"data/behavior/2\.npy"):
        Recording.open(folder)
    assert not (tmp_path / "sprung").exists()


def test_paths_that_are_no_recording_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="does not exist"):
        Recording.open(tmp_path / "nowhere")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(RecordingError, match="not a readable zip"):
        Recording.open(tmp_path / "broken.zip")
    with pytest.raises(RecordingError, match="data/images"):
        Recording.open(tmp_path)


def test_a_flipped_byte_in_a_zip_is_named(folder: Path) -> None:
    path = zipped(folder)
    content = bytearray(path.read_bytes())
    content[content.index(b"data/images/0.npy") + 150] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"data/images/0\.npy cannot be read"):
        Recording.open(path)


def test_the_pack_is_used_again_until_the_recording_changes(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = Recording.open(folder, cache=cache)
    made = (first.cache / "images.npy").stat().st_mtime_ns
    again = Recording.open(folder, cache=cache)
    assert (again.cache / "images.npy").stat().st_mtime_ns == made
    assert first.cache.parent == cache
    np.save(folder / "data/responses/8.npy", np.arange(N, dtype=np.float32))
    changed = Recording.open(folder, cache=cache)
    np.testing.assert_array_equal(changed.batch(np.array([8])).response[0], np.arange(N))
    assert changed.data_hash != first.data_hash


def test_a_damaged_pack_is_written_again(folder: Path) -> None:
    recording = Recording.open(folder)
    expected = recording.batch(np.arange(T)).response
    (recording.cache / "responses.npy").write_bytes((recording.cache / "responses.npy").read_bytes()[:-40])
    np.testing.assert_array_equal(Recording.open(folder).batch(np.arange(T)).response, expected)
    about = json.loads((recording.cache / "pack.json").read_text())
    (recording.cache / "pack.json").write_text(json.dumps(about | {"version": 0}))
    np.testing.assert_array_equal(Recording.open(folder).batch(np.arange(T)).response, expected)


def test_the_cache_variable_moves_the_pack(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V1T_CACHE", str(tmp_path / "elsewhere"))
    assert Recording.open(folder).cache == tmp_path / "elsewhere" / f"{NAME}.packed"


def test_a_full_disk_while_packing_leaves_nothing_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(packed_module._ArrayFile, "append", full)
        with pytest.raises(RecordingError, match=r"No space left.*The disk is full"):
            Recording.open(folder)
    assert [path.name for path in folder.parent.iterdir()] == [NAME]
    assert Recording.open(folder).n_trials == T


def test_interrupted_packing_leaves_nothing_broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packed_module, "_put_in_place", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Recording.open(folder)
    assert [path.name for path in folder.parent.iterdir()] == [NAME]


def test_leftovers_of_a_killed_process_are_removed(folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    leftover = folder.parent / f".{NAME}.packed.{packed_module.socket.gethostname()}-{process.pid}.tmp"
    leftover.mkdir()
    (leftover / "images.npy").write_bytes(b"half")
    Recording.open(folder)
    assert not leftover.exists()


def test_a_recording_goes_to_another_process_as_its_path(folder: Path) -> None:
    recording = Recording.open(folder, mouse_id="mine")
    sent = pickle.dumps(recording)
    assert len(sent) < 1000
    assert pickle.loads(sent).mouse_id == "mine"


def test_mixed_image_dtypes_become_float(folder: Path) -> None:
    image = np.random.default_rng(5).normal(100, 30, SHAPE)
    np.save(folder / "data/images/11.npy", image)
    recording = Recording.open(folder)
    np.testing.assert_array_equal(recording.batch(np.array([11])).image[0], image.astype(np.float32))
    np.testing.assert_array_equal(recording.batch(np.array([0])).image[0], np.load(folder / "data/images/0.npy"))


def test_inspect_prints_what_a_recording_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    printed = capsys.readouterr().out
    for part in ("A (21067-10-18)", "neurons       7", "train         12 trials", "running_speed", "data hash"):
        assert part in printed


def test_inspect_ends_quietly_when_its_reader_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_pipe(monkeypatch):
        assert main(["inspect", str(folder)]) == 1


def test_caches_that_a_shell_finds_beside_recordings_are_passed_over(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Recording.open(folder).cache
    beside = sorted(folder.parent.glob(f"{folder.name}*"))
    assert beside == [folder, cache]
    assert [recording.path for recording in open_recordings(beside)] == [folder]
    assert main(["inspect", *map(str, beside)]) == 0
    assert capsys.readouterr().out.count("data hash") == 1
    with pytest.raises(RecordingError, match="no recordings"):
        open_recordings([cache])
