"""Whether a bad recording is told from a good one, on simulated mice; and the report."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.recordings import NAME, write_recording
from support.tiny_twins import competition_recording

from training.__main__ import main
from training.data.recordings import Recording
from training.metrics import split_half_reliability
from training.quality.alignment import SHIFTS, Alignment, align, image_features
from training.quality.checks import quality_of
from training.simulation.simulate import simulate

SIZES = {"n_neurons": 40, "n_train": 150, "n_validation": 20, "n_test_images": 15, "n_test_repeats": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("simulated")


def simulated(folder: Path, seed: int = 0, **sizes: int) -> Path:
    sizes = {**SIZES, **sizes}
    return simulate(folder, mouse_id="SIM1", data_key="90001-1-1", seed=seed, image_shape=(1, 18, 32), **sizes)


def in_time(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Responses, image ids and features of all trials, in the order of time."""
    recording = Recording.open(path)
    order = np.argsort(recording.trial_ids)
    batch = recording.batch(order)
    return batch.response, recording.image_ids[order], image_features(batch.image)


def measured(found: Alignment) -> tuple[float, float]:
    assert found.repeats is not None
    assert found.relation is not None
    return found.repeats.value, found.relation.value


@pytest.mark.parametrize("seed", range(10))
def test_a_misaligned_recording_is_flagged_with_its_shift_and_a_good_one_is_not(folder: Path, seed: int) -> None:
    responses, ids, features = in_time(simulated(folder, seed))
    rng = np.random.default_rng(seed)
    good = align(responses, ids, features)
    assert good.flags() == []
    shift = int(rng.integers(1, SHIFTS)) * (-1) ** seed
    moved = align(responses, np.roll(ids, shift), np.roll(features, shift, axis=0))
    (flag,) = moved.flags()
    assert f"misaligned with their images by {abs(shift)}" in flag
    assert f"trial t{shift:+d} " in flag
    assert measured(moved)[0] < 0.1 * measured(good)[0]
    mixed = rng.permutation(len(ids))
    (flag,) = align(responses, ids[mixed], features[mixed]).flags()
    assert "misaligned with their images, or the neurons do not respond" in flag
    later = np.arange(len(ids))
    later[130:] = np.roll(later[130:], 1)  # a trial was lost in the middle
    (flag,) = align(responses, ids[later], features[later]).flags()
    assert "in a part of the session" in flag
    assert "to 259 (by +1)" in flag or "to 194 (by +1)" in flag
    assert "0 to 64" not in flag


def test_images_in_another_order_than_their_ids_are_flagged_though_responses_repeat(folder: Path) -> None:
    responses, ids, features = in_time(simulated(folder))
    _, first, index = np.unique(ids, return_index=True, return_inverse=True)
    other = np.random.default_rng(0).permutation(len(first))
    (flag,) = align(responses, ids, features[first[other][index]]).flags()
    assert "responses repeat, but have no relation to the images" in flag


def test_without_repeats_the_relation_alone_tells(folder: Path) -> None:
    responses, ids, features = in_time(simulated(folder, n_train=400))
    _, counts = np.unique(ids, return_counts=True)
    once = np.isin(ids, np.unique(ids)[counts == 1])
    responses, ids, features = responses[once], ids[once], features[once]
    good = align(responses, ids, features)
    assert good.repeats is None
    assert good.flags() == []
    assert "by 3" in align(responses, np.roll(ids, 3), np.roll(features, 3, axis=0)).flags()[0]


def test_repeats_are_the_mean_correlation_of_pairs_of_trials(folder: Path) -> None:
    responses, ids, features = in_time(simulated(folder))
    z = (responses - responses.mean(0)) / responses.std(0)
    pairs = [(t, u) for t in range(len(ids)) for u in range(t) if ids[t] == ids[u]]
    wanted = np.mean([(z[t] * z[u]).mean() for t, u in pairs])
    assert measured(align(responses, ids, features))[0] == pytest.approx(wanted)


def test_features_are_block_means_and_local_contrast() -> None:
    images = np.random.default_rng(0).uniform(0, 255, (3, 1, 16, 32))
    found = image_features(images)
    levels = images.reshape(3, 8, 2, 16, 2).mean((2, 4))
    contrast = images.reshape(3, 4, 4, 8, 4).std((2, 4))
    assert found == pytest.approx(np.concatenate([levels.reshape(3, -1), contrast.reshape(3, -1)], axis=1))


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(simulated(folder), target / "static90001-1-1-GrayImageNet-copy"))


def test_a_good_recording_has_no_flag_and_the_scores_of_its_metrics(folder: Path) -> None:
    recording = Recording.open(simulated(folder))
    quality = quality_of(recording)
    assert quality.flags == ()
    test = recording.tier("test")
    wanted = split_half_reliability(recording.responses(test.indices), test.image_ids)
    assert quality.reliability is not None
    # of the same splits, as trials are in another order: close, not equal
    assert quality.reliability.mean() == pytest.approx(wanted.mean(), abs=0.03)


def test_every_fault_is_flagged_by_its_name(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    ids = np.load(path / "meta/trials/frame_image_id.npy")
    tiers = np.load(path / "meta/trials/tiers.npy")
    time = np.load(path / "meta/trials/trial_idx.npy")
    train, test = np.flatnonzero(tiers == "train"), np.flatnonzero(tiers == "test")
    for trial in range(len(ids)):
        response = np.load(path / f"data/responses/{trial}.npy")
        response[:8] = 0  # dead
        response *= 1 + time[trial] / len(ids)  # doubles over the session
        np.save(path / f"data/responses/{trial}.npy", response)
        behavior = np.load(path / f"data/behavior/{trial}.npy")
        np.save(path / f"data/behavior/{trial}.npy", np.array([behavior[0], behavior[1], 0.0], np.float32))
    for trial in train[:15]:
        np.save(path / f"data/images/{trial}.npy", np.full((1, 18, 32), 255, np.uint8))
    np.save(path / f"data/images/{train[20]}.npy", np.load(path / f"data/images/{test[0]}.npy"))
    other = test[ids[test] == ids[test[1]]][0]
    np.save(path / f"data/images/{other}.npy", np.load(path / f"data/images/{train[30]}.npy"))
    flags = "\n".join(quality_of(Recording.open(path)).flags)
    for words in (
        "1 image id of trials that show different images",
        "8 neurons of 40 do not respond",
        "15 of 260 trials with an image that is mostly black or white",
        "15 trials with a blank image",
        "responses drift: the last tenth of the session is at",
        "running_speed is constant",
        "the mouse runs in 0% of trials",
        "1 image in two tiers",
    ):
        assert words in flags, (words, flags)


def test_inspect_writes_a_report_and_prints_what_needs_a_look(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(folder, tmp_path)
    for name in ("frame_image_id", "tiers"):
        values = np.load(path / f"meta/trials/{name}.npy")
        time = np.argsort(np.load(path / "meta/trials/trial_idx.npy"))
        values[time] = np.roll(values[time], 2)
        np.save(path / f"meta/trials/{name}.npy", values)
    report = tmp_path / "report"
    assert main(["inspect", str(path), "--report", str(report)]) == 0
    assert "warning: SIM1: trials are misaligned with their images by 2" in capsys.readouterr().out
    text = (report / "report.md").read_text()
    assert "**trials are misaligned with their images by 2" in text
    assert "Mouse SIM1 is simulated" in text
    assert "![quality of SIM1](quality-SIM1.png)" in text
    assert sorted(path.name for path in report.iterdir()) == ["quality-SIM1.pdf", "quality-SIM1.png", "report.md"]


def test_recordings_of_a_few_random_trials_and_with_withheld_responses_are_reported(tmp_path: Path) -> None:
    write_recording(tmp_path / NAME)
    flags = quality_of(Recording.open(tmp_path / NAME)).flags
    assert any("misaligned with their images, or the neurons do not respond" in flag for flag in flags)
    withheld = quality_of(competition_recording(tmp_path / "s", "26872-17-20", behavior=False))
    assert not withheld.in_time  # trial ids are hashed
    assert withheld.reliability is None  # the test responses are zeros
    assert withheld.coverage == {}


def test_converting_prints_the_same_warnings(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = Recording.open(simulated(folder))
    order = np.argsort(recording.trial_ids)
    batch = recording.batch(order)
    np.savez(
        tmp_path / "set.npz",
        images=batch.image,
        trial_image_ids=np.roll(np.arange(len(order)), 1),
        responses=batch.response,
        tiers=recording.tiers[order],
    )
    assert main(["convert", "arrays", str(tmp_path / "set.npz"), "--output", str(tmp_path / "m")]) == 0
    assert "warning: trials are misaligned with their images by 1" in capsys.readouterr().out
