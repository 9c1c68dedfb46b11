"""Images in two tiers: equal ones, ones that look alike, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.fft import dctn

from training.__main__ import main
from training.data.leaks import find_leaks, perceptual_hash
from training.data.recordings import Recording
from training.simulation.simulate import simulate

SIZES = {"n_neurons": 2, "n_train": 60, "n_validation": 20, "n_test_images": 20, "n_test_repeats": 2}


def simulated(folder: Path, mouse_id: str = "SIM1", animal: int = 90001, *, seed: int = 0) -> Path:
    key = f"{animal}-1-1"
    return simulate(folder, mouse_id=mouse_id, data_key=key, image_shape=(1, 36, 64), seed=seed, **SIZES)


def trials_of(path: Path, tier: str) -> np.ndarray:
    return np.flatnonzero(np.load(path / "meta/trials/tiers.npy") == tier)


def image_of(path: Path, trial: int) -> np.ndarray:
    image: np.ndarray = np.load(path / f"data/images/{trial}.npy")
    return image


def test_a_simulated_recording_has_no_leak(tmp_path: Path) -> None:
    assert find_leaks([Recording.open(simulated(tmp_path))]) == []


def test_equal_and_alike_images_are_found_by_their_trials(tmp_path: Path) -> None:
    path, rng = simulated(tmp_path), np.random.default_rng(0)
    train, test, validation = (trials_of(path, tier) for tier in ("train", "test", "validation"))
    np.save(path / f"data/images/{train[3]}.npy", image_of(path, validation[1]))
    changed = 0.8 * image_of(path, test[0]) + 20 + rng.normal(0, 4, (1, 36, 64))  # darker, and with noise
    np.save(path / f"data/images/{train[7]}.npy", changed.clip(0, 255).astype(image_of(path, test[0]).dtype))
    found = find_leaks([Recording.open(path)])
    equal, alike = found
    assert (equal.one.trial, equal.other.trial, equal.equal, equal.bits) == (train[3], validation[1], True, 0)
    assert (alike.one.trial, alike.other.tier, alike.equal) == (train[7], "test", False)
    ids = np.load(path / "meta/trials/frame_image_id.npy")
    assert ids[alike.other.trial] == ids[test[0]]


def test_a_test_image_of_one_mouse_in_the_training_of_another_is_a_leak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = simulated(tmp_path / "a"), simulated(tmp_path / "b", "SIM2", 90002, seed=9)
    trial, test = trials_of(other, "train")[5], trials_of(one, "test")[0]
    np.save(other / f"data/images/{trial}.npy", image_of(one, test))
    assert main(["inspect", str(one), str(other), "--leaks"]) == 0
    printed = capsys.readouterr().out
    assert "images in both train and test: 1 equal, 0 alike" in printed
    assert f"train trial {trial} of mouse SIM2 and test trial" in printed
    assert main(["inspect", str(one), "--leaks"]) == 0
    assert "images in two tiers: none" in capsys.readouterr().out


def test_the_hash_is_the_low_frequencies_of_scipys_transform() -> None:
    images = np.random.default_rng(1).random((5, 2, 20, 31))
    spectrum = dctn(images.mean(1), axes=(1, 2), norm="ortho")[:, :9, :9].reshape(5, -1)[:, 1:]
    expected = spectrum > np.median(spectrum, axis=1, keepdims=True)
    np.testing.assert_array_equal(perceptual_hash(images), expected)


def test_the_hash_does_not_depend_on_the_size() -> None:
    small = np.random.default_rng(2).random((4, 1, 36, 64))
    large = small.repeat(4, axis=2).repeat(4, axis=3)
    assert (perceptual_hash(small) != perceptual_hash(large)).sum(1).max() <= 2
