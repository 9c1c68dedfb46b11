"""Simulated recordings: they open as real ones do, and the truth beside them is true."""

from __future__ import annotations

import argparse
import errno
import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support.checkout import ROOT

from training.__main__ import main
from training.data.layout import TRUTH
from training.data.recordings import Recording
from training.errors import ConfigError, RecordingError
from training.metrics import single_trial_correlation
from training.simulation import simulate as simulate_module
from training.simulation.behavior import simulate_behavior
from training.simulation.cortex import Cortex, load_cortex
from training.simulation.simulate import simulate
from training.simulation.stimuli import dead_leaves

SMALL = {"n_neurons": 60, "n_train": 120, "n_validation": 20, "n_test_images": 40, "n_test_repeats": 10}
TINY = {"n_neurons": 3, "n_train": 4, "n_validation": 2, "n_test_images": 2, "n_test_repeats": 2}
MOUSE = {"mouse_id": "SIM1", "data_key": "90001-1-1", "image_shape": (1, 36, 64)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("recordings"), **MOUSE, **SMALL, seed=5)


@pytest.fixture(scope="module")
def recording(folder: Path) -> Recording:
    return Recording.open(folder)


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / TRUTH) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def cortex(folder: Path) -> Cortex:
    return load_cortex(folder / TRUTH)


def grating(cortex: Cortex, *, orientation: float, frequency: float, phase: float) -> np.ndarray:
    """(1, 1, H, W) full-field grating whose wave runs along `orientation` (x right, y down)."""
    y, x = np.mgrid[: cortex.image_shape[1], : cortex.image_shape[2]]
    wave = 2 * np.pi * frequency * (x * np.cos(orientation) + y * np.sin(orientation)) + phase
    return (110 + 100 * np.cos(wave))[None, None]


def test_a_simulated_recording_opens_like_a_real_one(recording: Recording) -> None:
    assert recording.simulated
    assert (recording.mouse_id, recording.data_key) == ("SIM1", "90001-1-1")
    assert recording.image_shape == (1, 36, 64)
    assert recording.image_channels == ("gray",)
    assert recording.n_neurons == 60
    assert recording.has_behavior
    assert [len(recording.tier(tier)) for tier in ("train", "validation", "test")] == [120, 20, 400]
    assert set(np.unique(recording.scorable("test").image_ids, return_counts=True)[1]) == {10}
    assert len(set(recording.tier("train").image_ids) | set(recording.tier("validation").image_ids)) == 140
    assert sorted(recording.trial_ids) == list(range(540))
    assert not (np.diff(recording.trial_ids) > 0).all()  # a file's number is not its place in time


def test_statistics_are_those_of_the_training_trials(recording: Recording) -> None:
    batch = recording.batch(recording.tier("train").indices)
    for values, statistics in (
        (batch.image.reshape(-1, 1), recording.statistics.images),
        (batch.behavior, recording.statistics.behavior),
        (batch.pupil_center, recording.statistics.pupil_center),
        (batch.response, recording.statistics.responses),
    ):
        for name in ("mean", "std", "min", "max", "median"):
            expected = getattr(np, name)(values.astype(np.float64), axis=0)
            np.testing.assert_allclose(getattr(statistics, name), expected, rtol=1e-4, atol=1e-3)


def test_the_same_arguments_give_the_same_recording(tmp_path: Path) -> None:
    hashes = [
        Recording.open(simulate(tmp_path / place, **MOUSE, **TINY, seed=seed)).data_hash
        for place, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_mice_of_one_seed_share_test_images_and_nothing_else(tmp_path: Path) -> None:
    mice = [
        Recording.open(simulate(tmp_path, **(MOUSE | {"mouse_id": f"SIM{i}", "data_key": f"9000{i}-1-1"}), **TINY))
        for i in (1, 2)
    ]
    tests = [mouse.tier("test") for mouse in mice]
    images = [
        {int(i): mouse.batch(trials.indices[trials.image_ids == i][:1]).image for i in set(trials.image_ids)}
        for mouse, trials in zip(mice, tests, strict=True)
    ]
    assert images[0].keys() == images[1].keys()
    for image_id, image in images[0].items():
        np.testing.assert_array_equal(image, images[1][image_id])
    assert not set(mice[0].tier("train").image_ids) & set(mice[1].tier("train").image_ids)
    assert not np.array_equal(mice[0].neuron_coordinates, mice[1].neuron_coordinates)


def test_a_recording_that_exists_is_kept(tmp_path: Path) -> None:
    folder = simulate(tmp_path, **MOUSE, **TINY)
    (folder / "mine.txt").write_text("kept")
    assert simulate(tmp_path, **MOUSE, **TINY) == folder
    assert (folder / "mine.txt").exists()


def test_colour_recordings_have_two_channels(tmp_path: Path) -> None:
    recording = Recording.open(simulate(tmp_path, **(MOUSE | {"image_shape": (2, 36, 64)}), **TINY))
    assert recording.image_shape == (2, 36, 64)
    assert recording.statistics.images.mean.shape == (2,)
    image = recording.batch(np.array([0])).image[0]
    assert not np.array_equal(image[0], image[1])


def test_the_truth_is_what_its_neurons_do_with_the_files(
    recording: Recording, truth: dict[str, np.ndarray], cortex: Cortex
) -> None:
    indices = np.random.default_rng(0).permutation(recording.n_trials)[:50]
    batch = recording.batch(indices)
    expected = cortex.expected_responses(batch.image, batch.behavior, batch.pupil_center)
    np.testing.assert_allclose(expected, truth["expected_responses"][indices], rtol=1e-4, atol=1e-5)


def test_the_ceiling_is_the_truths_correlation_and_realistic(
    recording: Recording, truth: dict[str, np.ndarray], cortex: Cortex
) -> None:
    trials = recording.scorable("test")
    expected = single_trial_correlation(
        recording.responses(trials.indices), truth["expected_responses"][trials.indices]
    )
    np.testing.assert_allclose(truth["ceiling"], expected, atol=1e-6)
    responsive = cortex.responsive
    assert 0.55 < truth["ceiling"][responsive].mean() < 0.7
    assert 0.05 < truth["ceiling"][responsive].std() < 0.2
    assert 0.6 < truth["reliability"][responsive].mean() < 0.9


def test_noise_is_skewed_never_negative_and_right_on_average(cortex: Cortex) -> None:
    expected = (cortex.noise_floor + np.linspace(1, 20, 4)[:, None]).astype(np.float32)  # (4, N)
    draws = np.stack([cortex.respond(expected, np.random.default_rng(seed)) for seed in range(4000)])
    assert draws.min() >= 0
    assert (draws.mean(0) > np.median(draws, axis=0)).mean() > 0.95
    error = np.abs(draws.mean(0) - expected) / (draws.std(0) / np.sqrt(4000))
    assert error.mean() < 1.2  # in standard errors


@pytest.mark.slow
def test_some_neurons_do_not_respond(tmp_path: Path) -> None:
    cortex = Cortex.grow(2000, image_shape=(1, 36, 64), rng=np.random.default_rng(0))
    assert (~cortex.responsive).mean() == pytest.approx(0.05, abs=0.02)
    images = dead_leaves(20, image_shape=(1, 36, 64), rng=np.random.default_rng(1))
    behavior = simulate_behavior(20, np.random.default_rng(2))
    drive = cortex.drive(images, behavior.pupil_center)
    tuned = cortex.calibrated(drive, behavior.behavior, np.random.default_rng(3))
    spread = tuned.combine(drive, behavior.behavior).std(0)
    assert spread[~cortex.responsive].max() < 1e-4
    assert spread[cortex.responsive].min() > 1e-2


def test_a_filter_is_the_gabor_of_its_parameters(cortex: Cortex) -> None:
    n = int(np.argmin(np.abs(cortex.center - [32, 18]).sum(1)))
    even, odd, _ = cortex.filters()
    theta, s = cortex.orientation[n], cortex.sigma[n]
    expected = np.empty((36, 64))
    envelope = np.empty((36, 64))
    for y in range(36):
        for x in range(64):
            dx, dy = x - cortex.center[n, 0], y - cortex.center[n, 1]
            a, b = dx * np.cos(theta) + dy * np.sin(theta), dy * np.cos(theta) - dx * np.sin(theta)
            envelope[y, x] = np.exp(-(a**2) / (2 * s**2) - b**2 / (2 * (cortex.aspect[n] * s) ** 2))
            expected[y, x] = np.cos(2 * np.pi * cortex.frequency[n] * a + cortex.phase[n])
    expected = envelope * (expected - (envelope * expected).sum() / envelope.sum())
    np.testing.assert_allclose(even[:, n].reshape(36, 64), expected / np.abs(expected).sum(), atol=1e-12)
    np.testing.assert_allclose(even.sum(0), 0, atol=1e-12)
    np.testing.assert_allclose(odd.sum(0), 0, atol=1e-12)


def test_neurons_prefer_their_orientation(cortex: Cortex) -> None:
    angles, phases = np.arange(36) * np.pi / 36, np.arange(8) * np.pi / 4
    rest = np.repeat(cortex.gaze_rest[None], 36 * 8, axis=0)
    inside = (np.abs(cortex.center - [31.5, 17.5]) < [20, 8]).all(1)
    for n in np.flatnonzero(inside & (cortex.frequency * cortex.sigma > 0.2))[:6]:
        shown = [
            grating(cortex, orientation=angle, frequency=cortex.frequency[n], phase=phase)[0]
            for angle in angles
            for phase in phases
        ]
        best = cortex.drive(np.stack(shown), rest)[:, n].reshape(36, 8).max(1)
        difference = angles[int(np.argmax(best))] - cortex.orientation[n]
        assert abs((difference + np.pi / 2) % np.pi - np.pi / 2) < np.deg2rad(12)


def test_complex_cells_ignore_the_phase_and_simple_cells_do_not(cortex: Cortex) -> None:
    inside = (np.abs(cortex.center - [31.5, 17.5]) < [20, 8]).all(1) & (cortex.frequency * cortex.sigma > 0.25)
    for is_complex in (True, False):
        for n in np.flatnonzero(inside & (cortex.is_complex == is_complex))[:4]:
            arguments = {"orientation": cortex.orientation[n], "frequency": cortex.frequency[n]}
            drives = [
                cortex.drive(grating(cortex, **arguments, phase=phase), cortex.gaze_rest[None])[0, n]
                for phase in np.arange(8) * np.pi / 4
            ]
            assert (min(drives) > 0.5 * max(drives)) == is_complex


def test_uniform_light_drives_nobody(cortex: Cortex) -> None:
    images = np.stack([np.full((1, 36, 64), level) for level in (0, 90, 255)])
    assert cortex.drive(images, np.repeat(cortex.gaze_rest[None], 3, axis=0)).max() < 1e-5


def test_contrast_saturates(cortex: Cortex) -> None:
    image = dead_leaves(1, image_shape=(1, 36, 64), rng=np.random.default_rng(3)).astype(np.float64)
    low, high = (cortex.drive(110 + contrast * (image - 110), cortex.gaze_rest[None]).max() for contrast in (0.25, 0.5))
    assert low < high < 1.9 * low


def test_gaze_moves_receptive_fields(cortex: Cortex) -> None:
    images = dead_leaves(40, image_shape=(1, 36, 64), rng=np.random.default_rng(4))
    offset = np.array([9.0, -6.0])  # eye-camera px
    moved = cortex.drive(images, np.repeat((cortex.gaze_rest + offset)[None], 40, axis=0))
    shift = cortex.gaze_gain @ offset
    assert np.linalg.norm(shift) > 1
    elsewhere = replace(cortex, center=cortex.center + shift)
    expected = elsewhere.drive(images, np.repeat(cortex.gaze_rest[None], 40, axis=0))
    inside = (np.abs(cortex.center - [31.5, 17.5]) < [18, 6]).all(1)
    agreement = single_trial_correlation(moved, expected)[inside]
    unmoved = single_trial_correlation(moved, cortex.drive(images, np.repeat(cortex.gaze_rest[None], 40, axis=0)))
    assert np.median(agreement) > 0.98
    assert np.median(agreement) > np.median(unmoved[inside]) + 0.02


def test_running_and_dilation_act_with_the_sign_that_the_truth_says() -> None:
    cortex = Cortex.grow(1000, image_shape=(1, 36, 64), rng=np.random.default_rng(0))
    rest, running, dilated = cortex.gain(np.array([[40.0, 0, 0], [40, 0, 20], [55, 0, 0]]))
    np.testing.assert_array_equal(np.sign(np.round(running - rest, 12)), np.sign(cortex.running_gain))
    np.testing.assert_array_equal(np.sign(np.round(dilated - rest, 12)), np.sign(cortex.pupil_gain))
    assert (cortex.running_gain[cortex.responsive] < 0).mean() == pytest.approx(0.25, abs=0.04)


def test_retinotopy_is_smooth(truth: dict[str, np.ndarray]) -> None:
    x, y = truth["coordinates"][:, :2].T / 350
    design = np.stack([np.ones_like(x), x, y, x * y, x**2, y**2], axis=1)
    fitted = design @ np.linalg.lstsq(design, truth["center"], rcond=None)[0]
    scatter = (truth["center"] - fitted).std(0)
    assert (scatter < 1.2).all()  # px of 36 rows
    assert (truth["center"].std(0) > 4 * scatter).all()


def test_images_look_natural() -> None:
    images = dead_leaves(40, image_shape=(1, 144, 256), rng=np.random.default_rng(0))[:, 0].astype(np.float64)
    assert images.mean() == pytest.approx(110, abs=10)
    assert 45 < images.std() < 75
    window = np.hanning(144)[:, None] * np.hanning(256)
    power = (np.abs(np.fft.fft2((images - images.mean()) * window)) ** 2).mean(0)
    frequency = np.hypot(np.fft.fftfreq(144)[:, None], np.fft.fftfreq(256))
    edges = np.geomspace(0.02, 0.4, 10)
    rings = [power[(frequency >= low) & (frequency < high)].mean() for low, high in pairwise(edges)]
    slope = np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(rings), 1)[0]
    assert -2.8 < slope < -1.8  # natural images: about -2
    correlation = np.corrcoef(images.reshape(40, -1))
    assert np.abs(correlation[~np.eye(40, dtype=bool)]).mean() < 0.1


def test_behavior_is_consistent_and_in_units() -> None:
    simulated = simulate_behavior(3000, np.random.default_rng(1))
    dilation, derivative, speed = simulated.behavior.T
    assert 20 <= dilation.min() < 30
    assert 45 < dilation.max() <= 60
    assert speed.min() >= 0
    assert 0.1 < (speed > 1).mean() < 0.6  # bouts
    assert np.corrcoef(dilation, speed)[0, 1] > 0.3
    change = dilation[2:] - dilation[:-2]  # over the trial in between
    assert np.corrcoef(change, derivative[1:-1])[0, 1] > 0.6
    assert np.corrcoef(dilation[1:], dilation[:-1])[0, 1] > 0.9  # slow
    assert (simulated.pupil_center.std(0) > 1).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_neurons": 0}, "n_neurons.*0.*1 or more"),
        ({"n_test_repeats": 1}, "n_test_repeats"),
        ({"image_shape": (36, 64)}, "image_shape"),
        ({"data_key": "mouse"}, "data_key.*mouse"),
    ],
)
def test_impossible_recordings_are_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        simulate(tmp_path, **(MOUSE | TINY | change))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(simulate_module, "write_statistics", full)
    with pytest.raises(RecordingError, match="No space left"):
        simulate(tmp_path, **MOUSE, **TINY)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_can_be_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    simulate_module.add_arguments(parser)
    sizes = "--neurons 5 --train-trials 8 --validation-trials 2 --test-images 3 --test-repeats 2 --image-shape 1 36 64"
    assert simulate_module.run(parser.parse_args(["--output", str(tmp_path), "--mice", "2", *sizes.split()])) == 0
    printed = capsys.readouterr().out
    assert "MYSIM1" in printed
    assert "MYSIM2" in printed
    assert "split-half reliability" in printed
    mice = {Recording.open(path).mouse_id for path in tmp_path.glob("static*")}
    assert mice == {"MYSIM1", "MYSIM2"}
    demo = json.loads((ROOT / "exported_models" / "demo" / "manifest.json").read_text())
    assert not mice & demo["mice"].keys()  # so both can be served by one server


def test_the_command_takes_the_names_of_the_mice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--neurons 5 --train-trials 8 --validation-trials 2 --test-images 3 --test-repeats 2 --image-shape 1 36 64"
    arguments = ["simulate", "--output", str(tmp_path / "out"), "--mice", "1", *sizes.split(), "--mouse-prefix"]
    assert main([*arguments, "a/b"]) == 1
    assert "--mouse-prefix is invalid; got 'a/b'; expected letters, digits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "SIM"]) == 0
    (path,) = (tmp_path / "out").glob("static*")
    same = {"n_neurons": 5, "n_train": 8, "n_validation": 2, "n_test_images": 3, "n_test_repeats": 2}
    written = simulate(tmp_path / "same", mouse_id="SIM1", data_key="90001-1-1", image_shape=(1, 36, 64), **same)
    assert Recording.open(path).data_hash == Recording.open(written).data_hash
