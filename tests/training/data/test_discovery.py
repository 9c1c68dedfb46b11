"""Discovery: what labs have on disk is found, and each recording has its own name."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.recordings import NAME, T, write_recording

from training.__main__ import main
from training.data.mouse import open_recordings
from training.data.object_arrays import read_words
from training.data.recordings import Recording
from training.errors import RecordingError

OTHER = "static22846-10-16-GrayImageNet-2496f2eb"


def write_zip(path: Path, folder: Path, prefix: str = "", separator: str = "/") -> Path:
    """A zip of a recording's folder, with `prefix` before each path."""
    with zipfile.ZipFile(path, "a") as archive:
        for file in sorted(folder.rglob("*.npy")):
            name = (prefix + file.relative_to(folder).as_posix()).replace("/", separator)
            archive.writestr(zipfile.ZipInfo(name), file.read_bytes())
    return path


def mice(*paths: Path, **options: str) -> dict[str, Recording]:
    return {recording.mouse_id: recording for recording in open_recordings(list(paths), **options)}


def test_a_downloaded_folder_is_read_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The zip, its unpacked folder, a read-me, and what macOS leaves beside all of them."""
    data = tmp_path / "sensorium"
    folder = data / NAME
    write_recording(folder)
    write_zip(data / f"{NAME}.zip", folder, f"{NAME}/")
    for junk in (".DS_Store", "README.md", f"._{NAME}", f"._{NAME}.zip", "LICENSE"):
        (data / junk).write_bytes(b"\x00\x05\x16\x07")
    (data / "__MACOSX" / "data").mkdir(parents=True)
    alone = Recording.open(folder).data_hash
    for inside in ("data/images/._0.npy", "data/images/.DS_Store", "meta/trials/._tiers.npy", "data/._images"):
        (folder / inside).write_bytes(b"\x00\x05\x16\x07")
    for given in ([data], sorted(data.iterdir())):  # as a folder, and as a shell's *
        found = mice(*given)
        assert list(found) == ["A"]
        assert found["A"].path == folder
        assert found["A"].data_hash == alone
        assert f"{NAME}.zip passed over: its unpacked folder" in capsys.readouterr().err
    assert main(["inspect", *map(str, sorted(data.iterdir()))]) == 0
    assert capsys.readouterr().out.count("data hash") == 1


def test_folders_of_folders_are_found_one_level_down(tmp_path: Path) -> None:
    for i, place in enumerate((f"2022/{NAME}", f"data/{OTHER}", ".hidden/static23343-5-17-x")):
        write_recording(tmp_path / place, seed=i)
    assert sorted(mice(tmp_path)) == ["A", "B"]


def test_each_recording_of_a_zip_has_its_own_name_and_data(tmp_path: Path) -> None:
    written = {}
    for i, name in enumerate((NAME, OTHER)):
        written[name] = write_recording(tmp_path / "unpacked" / name, seed=i)
        write_zip(tmp_path / "all.zip", tmp_path / "unpacked" / name, f"sensorium/{name}/")
    found = mice(tmp_path / "all.zip")
    assert {mouse: recording.data_key for mouse, recording in found.items()} == {"A": "21067-10-18", "B": "22846-10-16"}
    for recording, arrays in zip(found.values(), written.values(), strict=True):
        sent = pickle.loads(pickle.dumps(recording))  # another process opens the same one
        for one in (recording, sent):
            np.testing.assert_array_equal(one.batch(np.arange(T)).response, arrays["responses"].astype(np.float32))
    with pytest.raises(RecordingError, match=r"all\.zip holds several recordings"):
        Recording.open(tmp_path / "all.zip")
    # A folder that was unpacked beside the zip, or into a folder of its name, replaces its own recording alone.
    (tmp_path / "all" / "sensorium").mkdir(parents=True)
    shutil.copytree(tmp_path / "unpacked" / OTHER, tmp_path / OTHER)
    shutil.rmtree(tmp_path / "unpacked")
    found = mice(tmp_path)
    assert {mouse: recording.path.name for mouse, recording in found.items()} == {"A": "all.zip", "B": OTHER}


@pytest.mark.parametrize(("prefix", "separator"), [("", "\\"), ("lab\\2022\\x\\", "\\"), ("a/b/c/", "/"), ("./", "/")])
def test_zips_of_any_tool_are_read(tmp_path: Path, prefix: str, separator: str) -> None:
    written = write_recording(tmp_path / "unpacked" / NAME)
    path = write_zip(tmp_path / f"{NAME}.ZIP", tmp_path / "unpacked" / NAME, prefix, separator)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/data/images/._0.npy", b"\x00\x05\x16\x07")
    (recording,) = open_recordings([path])
    assert recording.mouse_id == "A"
    np.testing.assert_array_equal(recording.batch(np.arange(T)).behavior, written["behavior"].astype(np.float32))
    assert recording.data_hash == Recording.open(tmp_path / "unpacked" / NAME).data_hash


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    written = write_recording(tmp_path / "lab" / NAME)
    images = tmp_path / "lab" / NAME / "data" / "images"
    images.rename(tmp_path / "other-disk")
    images.symlink_to(tmp_path / "other-disk")
    (images / "again").symlink_to(images)
    (images / "others").symlink_to(tmp_path / "lab" / NAME / "data" / "responses")
    (tmp_path / "lab" / NAME / "data" / "videos").symlink_to(tmp_path / "lab")
    (tmp_path / "lab" / NAME / "meta" / "up").symlink_to(tmp_path / "lab")
    (tmp_path / "link").symlink_to(tmp_path / "lab")
    recording = mice(tmp_path / "link")["A"]
    np.testing.assert_array_equal(recording.batch(np.arange(T)).image, written["images"].astype(np.float32))
    assert list(mice(tmp_path / "lab", tmp_path / "link")) == ["A"]  # the same recording twice


def test_a_name_that_no_file_can_have_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for name in ("a\nb", "\udcff", "x" * 201):
        write_recording(tmp_path / name)
        with pytest.raises(RecordingError, match=r"invalid name of a mouse.*--recordings NAME=PATH"):
            open_recordings([tmp_path / name])
        assert list(mice(Path(f"mine={tmp_path / name}"))) == ["mine"]


@pytest.mark.parametrize("name", ["2023.04.01_mouse1", "keys", "Ünïcode №7", "mouse 7", "100%", "training", "_modules"])
def test_any_name_of_a_folder_is_a_name_of_a_mouse(tmp_path: Path, name: str) -> None:
    write_recording(tmp_path / name)
    assert list(mice(tmp_path / name)) == [name]


def test_mice_are_named_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, place in enumerate(("m1/recording", "m2/recording")):
        write_recording(tmp_path / place, seed=i)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordingError, match=r"two recordings of mouse 'recording'.*name one: --recordings NAME="):
        open_recordings([tmp_path])
    assert list(mice(Path("left=m1/recording"), Path("right=m2"))) == ["left", "right"]
    assert list(mice(Path("m1"), Path("other=m2"))) == ["recording", "other"]
    with pytest.raises(RecordingError, match=r"both=\..*names 2 recordings"):
        mice(Path("both=."))
    with pytest.raises(RecordingError, match="given twice, and named twice; got 'b' and 'a'"):
        mice(Path("a=m1"), Path("b=m1"))
    with pytest.raises(RecordingError, match=r"invalid name of a mouse; got '\*'"):
        mice(Path("*=m1"))
    (tmp_path / "x=y").symlink_to(tmp_path / "m1" / "recording")  # a path that exists is a path
    assert list(mice(Path("x=y"))) == ["x=y"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (f"{NAME}.zip", b"/annex/objects/MD5-s1234567-d41d8cd98f00b204e9800998ecf8427e\n", "git-annex.*git annex get"),
        (f"{NAME}.zip", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS.*git lfs pull"),
        (f"{NAME}.zip", b"\n<!DOCTYPE html><html>Log in</html>", "an HTML page.*log in"),
        (f"{NAME}.zip", b"", "is empty"),
        ("x/data/images/3.npy", b"version https://git-lfs.github.com/spec/v1\n", r"3\.npy is a Git LFS pointer"),
        ("x/data/behavior/3.npy", b"<html><head></head>", r"3\.npy is an HTML page"),
        ("x/meta/trials/tiers.npy", b"../../.git/annex/objects/a/b", r"tiers\.npy is a git-annex pointer"),
        ("x/data/images/3.npy", np.ma.masked_array([1.0], [True]).dumps(), r"masked array \(numpy\.ma\).*filled"),
        ("x/data/images/3.npy", pickle.dumps([1, 2]), r"3\.npy is a Python pickle"),
    ],
)
def test_what_is_in_place_of_data_is_named_by_its_bytes(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    write_recording(tmp_path / "x")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordingError, match=said) as caught:
        open_recordings([tmp_path / name.split("/")[0]])
    assert name.split("/")[0] in str(caught.value)


def test_broken_links_are_named(tmp_path: Path) -> None:
    write_recording(tmp_path / "x")
    image = tmp_path / "x/data/images/3.npy"
    image.unlink()
    image.symlink_to("../../../.git/annex/objects/Zz/1q/MD5E-s3--1.npy/MD5E-s3--1.npy")
    with pytest.raises(RecordingError, match=r"'x': data/images/3\.npy is a git-annex link without its content.*get"):
        Recording.open(tmp_path / "x")
    image.unlink()
    image.symlink_to("/mnt/disk/3.npy")
    with pytest.raises(RecordingError, match=r"3\.npy is a link to /mnt/disk/3\.npy, which does not exist"):
        Recording.open(tmp_path / "x")
    (tmp_path / f"{NAME}.zip").symlink_to(".git/annex/objects/x.zip")
    with pytest.raises(RecordingError, match="git-annex link without its content"):
        open_recordings([tmp_path / f"{NAME}.zip"])


def test_trial_files_may_be_padded_with_zeros_but_not_be_there_twice(tmp_path: Path) -> None:
    written = write_recording(tmp_path / "x")
    for name in ("images", "responses", "behavior", "pupil_center"):
        for trial in range(T):
            folder = tmp_path / "x" / "data" / name
            (folder / f"{trial}.npy").rename(folder / f"{trial:04}.npy")
    recording = Recording.open(tmp_path / "x")
    np.testing.assert_array_equal(recording.batch(np.arange(T)).image, written["images"].astype(np.float32))
    shutil.copy(tmp_path / "x/data/behavior/0007.npy", tmp_path / "x/data/behavior/7.npy")
    with pytest.raises(RecordingError, match=r"'x' has trial 7 twice.*0007\.npy and data/behavior/7\.npy"):
        Recording.open(tmp_path / "x")


@pytest.mark.parametrize("words", [np.array, lambda words: np.array([np.str_(word) for word in words], dtype=object)])
def test_words_that_were_saved_as_objects_are_read(tmp_path: Path, words: object) -> None:
    write_recording(tmp_path / "x")
    right = Recording.open(tmp_path / "x")
    for name in ("tiers", "trial_idx", "frame_image_id"):
        path = tmp_path / f"x/meta/trials/{name}.npy"
        values = np.load(path)
        values = words(values.tolist()) if name == "tiers" else values  # type: ignore[operator]
        np.save(path, values.astype(object), allow_pickle=True)
        np.load(path, allow_pickle=True)
    again = Recording.open(tmp_path / "x")
    for name in ("tiers", "trial_ids", "image_ids"):
        np.testing.assert_array_equal(getattr(again, name), getattr(right, name))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_words_is_read_without_running_what_it_names(tmp_path: Path, protocol: int) -> None:
    words = np.array(["train", "test", "ü"], dtype=object)
    np.testing.assert_array_equal(read_words(pickle.dumps(words, protocol=protocol), (3,)), words.astype(str))

    class Trap(str):
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for trap in (np.array([Trap()], dtype=object), Trap()):
        with pytest.raises(ValueError, match="mkdir"):
            read_words(pickle.dumps(trap, protocol=protocol), (1,))
    assert not (tmp_path / "sprung").exists()
    for wrong in (np.array([None], object), np.array([1.5], object), np.array(["a", 1], object), [1], np.arange(3)):
        with pytest.raises(ValueError, match=r"its pickle|it holds"):
            read_words(pickle.dumps(wrong, protocol=protocol), (1,))
    with pytest.raises(ValueError, match="LONG_BINPUT"):  # would allocate 64 GB
        read_words(b"\x80\x04]r\xff\xff\xff\xff.", (0,))
    with pytest.raises(ValueError, match="more than 1000 characters"):
        read_words(pickle.dumps(np.array(["a" * 2000], object), protocol=protocol), (1,))


def nan_recording(folder: Path) -> dict[str, np.ndarray]:
    written = write_recording(folder)
    for name, trial in (("pupil_center", 5), ("behavior", 5), ("responses", 11)):
        values = written[name][trial].copy()
        values[1] = np.nan
        np.save(folder / f"data/{name}/{trial}.npy", values)
    return written


def test_trials_with_nan_are_refused_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = nan_recording(tmp_path / "x")
    for _ in range(2):  # also from the pack
        with pytest.raises(RecordingError, match=r"'x': data/.*\(2 trials in all: 5 .*--nan-trials exclude"):
            open_recordings([tmp_path / "x"])
    recording = mice(tmp_path / "x", nan_trials="exclude")["x"]
    assert "2 trials with NaN or infinity excluded (--nan-trials): 5 (behavior, pupil_center), 11 (responses)" in (
        capsys.readouterr().err
    )
    kept = np.concatenate([recording.tier(tier).indices for tier in ("train", "validation", "test")])
    assert sorted(kept) == sorted(set(range(T)) - {5, 11})
    for tier in ("train", "validation", "test"):
        expected = [trial for trial in np.flatnonzero(written["tiers"] == tier) if trial not in (5, 11)]
        np.testing.assert_array_equal(recording.tier(tier).indices, expected)
    assert all(np.isfinite(values).all() for values in vars(recording.batch(kept)).values())
    sent = pickle.loads(pickle.dumps(recording))
    np.testing.assert_array_equal(sent.tiers, recording.tiers)
    assert sent.data_hash == recording.data_hash
    assert any("5 (behavior, pupil_center)" in note for note in recording.notes())
    assert main(["inspect", str(tmp_path / "x")]) == 1
    assert "--nan-trials exclude" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "x"), "--nan-trials", "exclude"]) == 0


@pytest.mark.parametrize("files", ["kept", "deleted"])
def test_a_tier_takes_trials_out_without_renumbering(tmp_path: Path, files: str) -> None:
    """The other way that the hint names; the trials' files may be gone, too, of the first trial as well."""
    written = nan_recording(tmp_path / "x")
    tiers = written["tiers"].copy()
    tiers[[0, 5, 11]] = "excluded"
    np.save(tmp_path / "x/meta/trials/tiers.npy", tiers)
    if files == "deleted":
        for trial in (0, 5, 11):
            for name in ("images", "responses", "behavior", "pupil_center"):
                (tmp_path / f"x/data/{name}/{trial}.npy").unlink()
    recording = Recording.open(tmp_path / "x")
    kept = np.setdiff1d(np.arange(T), [0, 5, 11])
    np.testing.assert_array_equal(recording.batch(kept).image, written["images"][kept].astype(np.float32))
    np.testing.assert_array_equal(recording.batch(kept).response, written["responses"][kept].astype(np.float32))
    assert sum(len(recording.tier(tier)) for tier in ("train", "validation", "test")) == T - 3
    assert any("3 trials of tier 'excluded'" in note for note in recording.notes())
    for name in ("images", "behavior"):
        (tmp_path / f"x/data/{name}/7.npy").unlink()
    with pytest.raises(RecordingError, match=r"lacks 7\.npy.*write 'excluded' for them in meta/trials/tiers\.npy"):
        Recording.open(tmp_path / "x")


def test_files_that_claim_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    write_recording(tmp_path / "x")
    path = tmp_path / "x/data/images/3.npy"
    for shape, said in (((10**6, 10**6), "claims 1,000,000,000,000 values"), ((True, True), r"shape \(True, True\)")):
        with path.open("wb") as stream:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.write(bytes(16))
        with pytest.raises(RecordingError, match=rf"3\.npy is not a complete \.npy array .*{said}"):
            Recording.open(tmp_path / "x")
    with path.open("wb") as stream:
        stream.truncate(2**40)  # a file without content: it takes no space
    with pytest.raises(RecordingError, match=r"3\.npy is too large for an array of one trial; got 1,099,511,627,776"):
        Recording.open(tmp_path / "x")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RecordingError, match=r"3\.npy is not a file"):
        Recording.open(tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta/trials/tiers.npy", bytes(4_000_000))
        for info in archive.infolist():
            info.file_size = 2**40  # as its directory claims
    with pytest.raises(RecordingError, match=r"bomb\.zip' unpacks to .* times its size"):
        open_recordings([tmp_path / "bomb.zip"])
