"""Arrays of your own to recordings: each kind of set, the split, and what does not fit."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.__main__ import main
from training.convert.split import Split, split_by_image
from training.data.recordings import Recording

IMAGES, T, N = 14, 38, 6


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """14 images, 3 of them shown 9 times; ids with gaps, trials not in the order of time."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.permutation(90)[:IMAGES])
    return {
        "images": rng.integers(0, 256, (IMAGES, 12, 20)).astype(np.uint8),
        "image_ids": ids,
        "trial_image_ids": rng.permutation(np.concatenate([np.repeat(ids[:3], 9), ids[3:]])),
        "responses": rng.gamma(1.0, 2.0, (T, N)),
        "neuron_ids": rng.permutation(50)[:N] + 1,
        "neuron_coordinates": rng.normal(0, 100, (N, 3)),
        "behavior": rng.normal(3, 1, (T, 3)),
        "pupil_center": rng.normal(100, 5, (T, 2)),
        "trial_times": 5 + 0.9 * rng.permutation(T),
    }


def npz(folder: Path, given: dict[str, np.ndarray]) -> Path:
    path = folder / "set.npz"
    np.savez(path, **given)  # type: ignore[arg-type]
    return path


def zarr(folder: Path, given: dict[str, np.ndarray]) -> Path:
    import zarr as zarr_

    group = zarr_.open_group(str(folder / "set.zarr"), mode="w")
    for name, values in given.items():
        group.create_array(name, data=values)
    return folder / "set.zarr"


def npy(folder: Path, given: dict[str, np.ndarray]) -> Path:
    (folder / "set").mkdir()
    for name, values in given.items():
        np.save(folder / "set" / f"{name}.npy", values)
    return folder / "set"


def tables(folder: Path, given: dict[str, np.ndarray]) -> Path:
    """CSV and image files; the rows of neurons.csv are in another order than the columns of responses.csv."""
    path = folder / "set"
    (path / "images").mkdir(parents=True)
    for image_id, image in zip(given["image_ids"], given["images"], strict=True):
        Image.fromarray(image).save(path / "images" / f"{image_id:03d}.png")

    def write(name: str, header: list[Any], rows: Any) -> None:
        with (path / name).open("w", newline="") as stream:
            csv.writer(stream).writerows([header, *rows])

    names = ["pupil_dilation", "pupil_dilation_derivative", "running_speed"]
    write("responses.csv", given["neuron_ids"].tolist(), given["responses"].tolist())
    write(
        "trials.csv",
        ["image_id", "time", *names, "pupil_center_x", "pupil_center_y"],
        [
            [f"{image_id:03d}.png", time, *behavior, *gaze]
            for image_id, time, behavior, gaze in zip(
                given["trial_image_ids"], given["trial_times"], given["behavior"], given["pupil_center"], strict=True
            )
        ],
    )
    rows = [[i, *p] for i, p in zip(given["neuron_ids"].tolist(), given["neuron_coordinates"].tolist(), strict=True)]
    write("neurons.csv", ["neuron_id", "x_um", "y_um", "z_um"], rows[::-1])
    return path


def converted(path: Path, output: Path, *options: str) -> Recording:
    assert main(["convert", "arrays", str(path), "--output", str(output), *options]) == 0
    return Recording.open(output)


@pytest.mark.parametrize("kind", [npz, zarr, npy, tables])
def test_every_kind_of_set_becomes_the_recording_that_was_given(tmp_path: Path, kind: Any) -> None:
    given = arrays()
    recording = converted(kind(tmp_path, given), tmp_path / "MYMOUSE")
    assert recording.mouse_id == "MYMOUSE"
    batch = recording.batch(np.arange(T))
    place = {image_id: i for i, image_id in enumerate(given["image_ids"].tolist())}
    wanted = np.stack([given["images"][place[image_id]] for image_id in given["trial_image_ids"].tolist()])
    assert (batch.image[:, 0] == wanted).all()
    assert batch.response == pytest.approx(given["responses"], rel=1e-6)
    assert batch.behavior == pytest.approx(given["behavior"], rel=1e-6)
    assert batch.pupil_center == pytest.approx(given["pupil_center"], rel=1e-6)
    assert (recording.neuron_ids == given["neuron_ids"]).all()
    assert recording.neuron_coordinates == pytest.approx(given["neuron_coordinates"], rel=1e-5)
    assert (np.argsort(recording.trial_ids) == np.argsort(given["trial_times"])).all()
    if kind is not tables:
        assert (recording.image_ids == given["trial_image_ids"]).all()
    tiers = {tier: set(recording.tier(tier).image_ids.tolist()) for tier in ("train", "validation", "test")}
    assert [len(tiers[tier]) for tier in ("train", "validation", "test")] == [10, 1, 3]
    assert len(recording.tier("test")) == 27


def test_statistics_are_those_of_the_training_trials(tmp_path: Path) -> None:
    given = arrays()
    recording = converted(npz(tmp_path, given), tmp_path / "m")
    train = recording.tier("train").indices
    statistics = recording.statistics
    for name, values in (("responses", given["responses"]), ("behavior", given["behavior"])):
        for statistic in ("mean", "std", "min", "max", "median"):
            found = getattr(getattr(statistics, name), statistic)
            assert found == pytest.approx(getattr(np, statistic)(values[train], axis=0), rel=1e-5)
    pixels = recording.batch(train).image.astype(np.float64)
    assert statistics.images.std[0] == pytest.approx(pixels.std())
    assert statistics.images.median[0] == pytest.approx(np.median(pixels))


def test_images_of_floats_of_two_channels_and_of_another_size_are_kept_and_resized(tmp_path: Path) -> None:
    given = arrays()
    rng = np.random.default_rng(1)
    given["images"] = rng.uniform(0, 255, (IMAGES, 2, 24, 40)).astype(np.float32)
    recording = converted(npz(tmp_path, given), tmp_path / "a", "--image-size", "12", "20")
    assert recording.image_shape == (2, 12, 20)
    place = {image_id: i for i, image_id in enumerate(given["image_ids"].tolist())}
    first = given["images"][place[int(given["trial_image_ids"][0])]]
    assert recording.batch(np.array([0])).image[0] == pytest.approx(
        first.reshape(2, 12, 2, 20, 2).mean((2, 4)), rel=1e-4
    )


def test_the_split_is_by_image_seeded_and_has_a_test_where_everything_is_repeated() -> None:
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 5))
    one, same, other = (split_by_image(ids, Split(seed=seed)) for seed in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).any()
    for tiers in (one, other):
        kinds = [set(ids[tiers == tier].tolist()) for tier in ("train", "validation", "test")]
        assert [len(kind) for kind in kinds] == [31, 3, 6]
        assert not kinds[0] & kinds[1] | kinds[0] & kinds[2] | kinds[1] & kinds[2]
    assert set(split_by_image(np.arange(40), Split())) == {"train", "validation", "test"}


def test_other_behaviour_channels_keep_their_names_and_units_through_nwb_and_back(tmp_path: Path) -> None:
    given = arrays() | {
        "behavior": np.random.default_rng(2).normal(size=(T, 2)),
        "behavior_names": np.array(["whisking", "running_speed"]),
        "behavior_units": np.array(["std", "cm/s"]),
    }
    recording = converted(npz(tmp_path, given), tmp_path / "a")
    assert recording.behavior_channels == (("whisking", "std"), ("running_speed", "cm/s"))
    assert main(["convert", "to-nwb", str(tmp_path / "a"), "--output", str(tmp_path / "a.nwb")]) == 0
    assert main(["convert", "nwb", str(tmp_path / "a.nwb"), "--output", str(tmp_path / "b")]) == 0
    back = Recording.open(tmp_path / "b")
    assert back.behavior_channels == recording.behavior_channels
    trials = np.arange(T)
    assert (back.states_of(trials)[0] == recording.states_of(trials)[0]).all()


def test_a_name_that_requests_cannot_use_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arrays() | {"behavior_names": np.array(["running_speed", "whisking", "lick rate"])}
    assert main(["convert", "arrays", str(npz(tmp_path, given)), "--output", str(tmp_path / "out/m")]) == 1
    assert "invalid name of a channel; got 'lick rate'" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_tiers_that_are_given_are_kept(tmp_path: Path) -> None:
    given = arrays() | {"tiers": np.array((["train", "test", "validation"] * T)[:T])}
    assert (converted(npz(tmp_path, given), tmp_path / "a").tiers == given["tiers"]).all()


def changed(**new: Any) -> dict[str, np.ndarray]:
    given = arrays()
    for name, value in new.items():
        if value is None:
            del given[name]
        else:
            given[name] = value(given[name]) if callable(value) else value
    return given


def with_nan(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[3, 2] = np.nan
    return values


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"responses": None}, "has no responses; got images"),
        ({"images": None}, "images are an array or a folder; got neither"),
        ({"rsponses": np.zeros(3)}, "unknown array; got rsponses"),
        ({"responses": lambda r: r[:-1]}, "trial_image_ids and responses differ in length; got 38; expected 37 trials"),
        ({"behavior": lambda b: b[:-2]}, "behavior and responses differ in length; got 36; expected 38 trials"),
        ({"behavior": lambda b: b[:, :2]}, r"behavior has a wrong shape for 3 channels; got \(38, 2\)"),
        ({"pupil_center": lambda p: p[1:]}, "pupil_center and responses differ in length"),
        ({"neuron_ids": lambda n: n[1:]}, "neuron_ids and responses differ in length; got 5; expected 6"),
        ({"neuron_ids": lambda n: 0 * n}, "neuron_ids are not ids; got 1 distinct of 6"),
        ({"neuron_coordinates": lambda c: c[1:]}, "neuron_coordinates and responses differ in length"),
        ({"image_ids": lambda i: i[1:]}, "image_ids are not one id per image"),
        ({"trial_image_ids": lambda i: i + 1000}, r"38 trials with an image that does not exist; got \[10\d\d"),
        ({"trial_image_ids": lambda i: i + 0.5}, "trial_image_ids do not fit the images' ids"),
        ({"responses": with_nan}, r"responses: NaN or infinity in 1 trial, of 1 neuron; got nan at \(3, 2\)"),
        ({"pupil_center": lambda p: p + np.where(np.arange(T) == 5, np.nan, 0)[:, None]}, "pupil_center: NaN"),
        ({"responses": lambda r: r[:, 0]}, "responses are not responses"),
        ({"images": lambda i: (i / 255).astype(np.float32)}, "images are not grey levels; got values 0 to 1"),
        ({"images": lambda i: i[..., None]}, "channels last"),
        ({"tiers": np.array(["training"] * T)}, "unknown tier; got 'training'"),
        ({"tiers": np.array(["train"] * T)}, "there would be no validation trials; got 38 train"),
        ({"trial_times": lambda t: t * np.nan}, "trial_times are not times"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    tmp_path: Path, new: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = npz(tmp_path, changed(**new))
    assert main(["convert", "arrays", str(path), "--output", str(tmp_path / "out/m")]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_the_hints_for_responses_that_are_not_finite_help(tmp_path: Path) -> None:
    path = npz(tmp_path, changed(responses=with_nan))
    assert converted(path, tmp_path / "a", "--not-finite", "drop-trials").n_trials == T - 1
    assert converted(path, tmp_path / "b", "--not-finite", "drop-neurons").n_neurons == N - 1


def test_files_that_are_broken_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(path: Path) -> str:
        assert main(["convert", "arrays", str(path), "--output", str(tmp_path / "m")]) == 1
        return capsys.readouterr().err

    path = npz(tmp_path, arrays())
    path.write_bytes(path.read_bytes()[:2000])
    assert "cannot be read as .npz" in error(path)
    np.savez(tmp_path / "objects.npz", responses=np.array([{}], dtype=object))
    assert "cannot be read as .npz" in error(tmp_path / "objects.npz")
    assert "does not exist" in error(tmp_path / "none.npz")
    (tmp_path / "text.txt").touch()
    assert "is not a set of arrays" in error(tmp_path / "text.txt")
    folder = tables(tmp_path, arrays())
    text = (folder / "trials.csv").read_text().splitlines()
    (folder / "trials.csv").write_text("\n".join([*text[:4], text[4] + ",1", *text[5:]]))
    assert "trials.csv, line 5 has 8 values; expected 7" in error(folder)
    (folder / "trials.csv").write_text("\n".join(text).replace("image_id", "picture"))
    assert "trials.csv has no column image_id" in error(folder)
