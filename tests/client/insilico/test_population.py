"""Screening, behaviour and retinotopy: known neurons give known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray
from PIL import Image
from support.gabor_bank import STATISTICS, GaborBank
from v1t_client import ConnectionFailed, InvalidArgument
from v1t_client.insilico import perform
from v1t_client.insilico.experiments.behavior import Behavior, pink_noise
from v1t_client.insilico.experiments.receptive_fields import ReceptiveFields
from v1t_client.insilico.experiments.retinotopy import Retinotopy
from v1t_client.insilico.experiments.screening import Screening
from v1t_client.insilico.framework.top_images import TopImages
from v1t_client.insilico.stimuli.screen import Screen

SHAPE = (18, 32)


def pictures(folder: Path, n: int, seed: int = 0) -> np.ndarray:
    """A folder of n pictures; (n, H, W)."""
    folder.mkdir(exist_ok=True)
    stack = np.random.default_rng(seed).integers(0, 256, (n, *SHAPE)).astype(np.uint8)
    for i, pixels in enumerate(stack):
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    return stack


# Screening


def test_best_and_worst_images_are_those_of_a_full_sort(tmp_path: Path) -> None:
    bank = GaborBank(n=3, shape=SHAPE)
    stack = pictures(tmp_path / "images", 75)
    experiment = Screening(mouse="BANK", images=str(tmp_path / "images"), top=6)
    result = perform(experiment, bank, tmp_path / "out", quiet=True)
    responses = bank.responses(stack.astype(float)).astype(np.float32)  # (75, n)
    order = np.argsort(-responses, axis=0, kind="stable")
    np.testing.assert_array_equal(result.dataset["best_image"], order[:6].T)
    np.testing.assert_array_equal(result.dataset["worst_image"][:, 0], responses.argmin(0))
    np.testing.assert_allclose(result.dataset["worst_response"], np.sort(responses, axis=0)[:6].T, rtol=1e-5)
    np.testing.assert_allclose(result.dataset["mean_response"], responses.mean(0), rtol=1e-5)
    np.testing.assert_allclose(result.dataset["std_response"], responses.std(0), rtol=1e-4)
    assert result.dataset["image"].values.tolist() == [f"{i:04d}.png" for i in range(75)]
    assert result.table()["top_file"].tolist() == [f"{i:04d}.png" for i in order[0]]
    assert (tmp_path / "out" / "images.png").exists()
    assert "75 images" in experiment.summarize(result)


def test_a_stack_gives_what_its_folder_gives(tmp_path: Path) -> None:
    bank = GaborBank(n=5, shape=SHAPE)
    np.save(tmp_path / "stack.npy", pictures(tmp_path / "images", 40))
    one = Screening(mouse="BANK", images=str(tmp_path / "images")).run(bank).dataset
    other = Screening(mouse="BANK", images=str(tmp_path / "stack.npy")).run(bank).dataset
    xarray.testing.assert_identical(one.drop_vars(["image", "top_file"]), other)


def test_top_k_is_that_of_a_sort_whatever_the_batches() -> None:
    rng = np.random.default_rng(0)
    responses = rng.integers(0, 9, (100, 3)).astype(np.float32)  # with ties
    top, start = TopImages.empty(3, 8), 0
    for size in (1, 30, 2, 67):
        top.add(responses[start : start + size], start)
        start += size
    np.testing.assert_array_equal(top.index, np.argsort(-responses, axis=0, kind="stable")[:8].T)
    few = TopImages.empty(2, 5)
    few.add(responses[:3, :2], 0)
    assert (few.index[:, 3:] == -1).all()


def test_images_of_another_size_are_named(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 3)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "images" / "small.png")
    with pytest.raises(InvalidArgument, match=r"small\.png: 1 x 9 x 9"):
        Screening(mouse="BANK", images=str(tmp_path / "images")).run(GaborBank(n=3, shape=SHAPE))
    with pytest.raises(InvalidArgument, match="no such folder"):
        Screening(mouse="BANK", images=str(tmp_path / "nowhere")).run(GaborBank(n=3, shape=SHAPE))


def test_an_interrupted_screening_goes_on_with_the_same_images_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("v1t_client.insilico.experiments.screening.SAVED_EVERY", 1)
    pictures(tmp_path / "images", 100)
    experiment = Screening(mouse="BANK", images=str(tmp_path / "images"))
    with pytest.raises(ConnectionFailed):
        perform(experiment, GaborBank(n=2, shape=SHAPE, limit=70), tmp_path / "out", quiet=True)
    bank = GaborBank(n=2, shape=SHAPE)
    extra = tmp_path / "images" / "zzzz.png"
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(extra)
    with pytest.raises(InvalidArgument, match="have changed since this run began"):
        perform(experiment, bank, tmp_path / "out", quiet=True)
    extra.unlink()
    result = perform(experiment, bank, tmp_path / "out", quiet=True)
    assert bank.asked == 36
    xarray.testing.assert_identical(result.dataset, experiment.run(GaborBank(n=2, shape=SHAPE)).dataset)


# Behaviour


def test_modulation_is_that_of_known_gains() -> None:
    bank = GaborBank(n=20, shape=SHAPE)
    data = Behavior(mouse="BANK").run(bank).dataset
    # gain = exp(g z), z from -1.64 to 1.64 over the percentiles: the index is tanh(1.64 g)
    np.testing.assert_allclose(data["modulation_running_speed"], np.tanh(1.64 * bank.running_gain), atol=1e-5)
    np.testing.assert_allclose(data["modulation_pupil_dilation"], np.tanh(1.64 * bank.pupil_gain), atol=1e-5)
    np.testing.assert_allclose(data["modulation_pupil_center_x"], 0, atol=1e-6)
    _, mean, std = STATISTICS["running_speed"]
    np.testing.assert_allclose(data["running_speed"], mean + std * np.array([-1.64, -0.67, 0, 0.67, 1.64]))
    assert data["response_running_speed"].attrs["units"] == "std of responses"
    curve = data["response_running_speed"].values
    expected = np.exp(bank.running_gain[:, None] * np.array([-1.64, -0.67, 0, 0.67, 1.64]))
    np.testing.assert_allclose(curve / curve[:, 2:3], expected, rtol=1e-4)


def test_a_grid_varies_two_channels_together(tmp_path: Path) -> None:
    bank = GaborBank(n=6, shape=SHAPE)
    experiment = Behavior(
        mouse="BANK", channels=("running_speed",), grid=("pupil_dilation", "running_speed"), n_images=4
    )
    result = perform(experiment, bank, tmp_path / "out", quiet=True)
    grid = result.dataset["response_grid"]
    assert grid.dims == ("neuron", "pupil_dilation", "running_speed")
    ratio = (grid[:, -1, -1] / grid[:, 0, 0]).values
    np.testing.assert_allclose(ratio, np.exp(3.28 * (bank.running_gain + bank.pupil_gain)), rtol=1e-4)
    assert {"curves.png", "grid.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "running_speed: modulation index median" in experiment.summarize(result)


def test_values_outside_of_the_training_range_are_said() -> None:
    bank = GaborBank(n=3, shape=SHAPE)
    asked = Behavior(mouse="BANK", channels=("running_speed",), values=("running_speed=0,10,90",), n_images=2)
    result = asked.run(bank)
    assert result.dataset["running_speed"].values.tolist() == [0, 10, 90]
    assert "running_speed at 90 cm/s is outside the training range, -12 to 18" in [
        note["message"] for note in result.receipt.notes
    ]
    inside = Behavior(mouse="BANK", channels=("running_speed",), n_images=2).run(bank)
    assert not any("outside" in line for line in inside.receipt.assumed)


def test_what_is_no_behaviour_is_refused() -> None:
    bank = GaborBank(n=2, shape=SHAPE)
    for wrong in ({"channels": ("whisking",)}, {"behavior": {"whisking": 1.0}}):
        with pytest.raises(InvalidArgument, match=r"no such behaviour channel.*whisking.*running_speed \[cm/s\]"):
            Behavior(mouse="BANK", **wrong).run(bank)
    with pytest.raises(InvalidArgument, match="running_speed is given twice"):
        Behavior(mouse="BANK", running_speed=1, behavior={"running_speed": 2}).run(bank)
    with pytest.raises(InvalidArgument, match="two different"):
        Behavior(mouse="BANK", grid=("running_speed", "running_speed"))
    with pytest.raises(InvalidArgument, match="are not a curve"):
        Behavior(mouse="BANK", values=("running_speed=3,1",)).run(bank)


def test_pink_noise_has_the_training_images_mean_contrast_and_a_falling_spectrum() -> None:
    screen = Screen.of(GaborBank(shape=(72, 128)).mouse("BANK"))
    noise = pink_noise(screen, 20, np.random.default_rng(0))
    np.testing.assert_allclose(noise.mean((1, 2)), 110, atol=1e-2)
    np.testing.assert_allclose(noise.std((1, 2)), 60, rtol=1e-3)
    power = (np.abs(np.fft.fft2(noise - 110)) ** 2).mean(0)
    along = power[0, 1:60]
    slope = np.polyfit(np.log(np.arange(1, 60)), np.log(along), 1)[0]
    assert slope == pytest.approx(-2, abs=0.2)


# Retinotopy


def test_retinotopy_is_recovered_from_receptive_fields(tmp_path: Path) -> None:
    bank = GaborBank(n=18, shape=SHAPE)
    bank.is_complex[:] = False
    bank.frequency[:], bank.phase[:] = 0, 0
    matrix = np.array([[0.012, -0.003], [0.002, 0.009]])  # px / um
    bank.coordinates[:, :2] = (bank.center - [15.5, 8.5]) @ np.linalg.inv(matrix).T
    perform(ReceptiveFields(mouse="BANK", n_images=4000), bank, tmp_path / "rf", quiet=True)
    experiment = Retinotopy(mouse="BANK", rf=str(tmp_path / "rf"))
    result = perform(experiment, bank, tmp_path / "out", quiet=True)
    data = result.dataset
    np.testing.assert_allclose(data["matrix"], matrix * 1000, atol=0.6)
    assert float(data["r2"].min()) > 0.97
    assert float(data["p"].max()) < 0.01
    assert "a plane explains" in experiment.summarize(result)
    bank.coordinates = np.random.default_rng(1).permutation(bank.coordinates)
    shuffled = experiment.run(bank).dataset
    assert float(shuffled["p"].max()) > 0.01
    bank.coordinates[:] = np.nan
    with pytest.raises(InvalidArgument, match="too few neurons"):
        experiment.run(bank)
