"""Tuning: known neurons' preferences are recovered, and the fits are those of the field's functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from scipy.special import erf
from support.gabor_bank import GaborBank
from v1t_client import ConnectionFailed, InvalidArgument
from v1t_client.insilico import Monitor, perform
from v1t_client.insilico.experiments.receptive_fields import ReceptiveFields
from v1t_client.insilico.experiments.tuning import Tuning
from v1t_client.insilico.fitting import tuning_curves as curves


def bank_of(n: int = 12, **options: Any) -> GaborBank:
    return GaborBank(n=n, **options)


def wave(bank: GaborBank, i: int, phase: float, orientation: float, frequency: float) -> np.ndarray:
    """A full-field grating of contrast 1, seen from a neuron's centre; angles in radians."""
    y, x = np.mgrid[: bank.shape[0], : bank.shape[1]]
    along = (x - bank.center[i, 0]) * np.cos(orientation) + (y - bank.center[i, 1]) * np.sin(orientation)
    return np.asarray(np.cos(2 * np.pi * frequency * along + phase))


def over_phases(bank: GaborBank, i: int, orientation: float, frequency: float, contrast: float) -> float:
    phases = np.arange(8) * np.pi / 4
    images = np.stack([110 * (1 + contrast * wave(bank, i, phase, orientation, frequency)) for phase in phases])
    return float(bank.responses(images)[:, i].mean())


# Indices and fits


def test_selectivity_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    degrees = np.arange(0, 360, 30)
    r = rng.uniform(0, 2, (5, 12))
    osi = [
        abs(sum(r[i, k] * np.exp(2j * np.pi * d / 180) for k, d in enumerate(degrees))) / r[i].sum() for i in range(5)
    ]
    dsi = [
        abs(sum(r[i, k] * np.exp(1j * np.pi * d / 180) for k, d in enumerate(degrees))) / r[i].sum() for i in range(5)
    ]
    np.testing.assert_allclose(curves.orientation_selectivity(r, degrees), osi)
    np.testing.assert_allclose(curves.direction_selectivity(r, degrees), dsi)
    one_way = np.where(degrees == 60, 1.0, 0.0)[None]
    assert curves.direction_selectivity(one_way, degrees) == pytest.approx(1)
    assert curves.preferred_angle(one_way, degrees) == pytest.approx(60)
    assert curves.orientation_selectivity(np.zeros((1, 12)), degrees) == 0


def test_fits_recover_the_curves_that_made_the_data() -> None:
    rng = np.random.default_rng(1)
    n = 40
    noise = lambda k: rng.normal(0, 0.01, (n, k))  # noqa: E731
    degrees = np.arange(0, 180, 15.0)
    preferred, kappa = rng.uniform(0, 180, n), rng.uniform(0.5, 6, n)
    r = 0.3 + 2 * np.exp(kappa[:, None] * (np.cos(2 * np.radians(degrees - preferred[:, None])) - 1))
    fit = curves.fit_orientation(degrees, r + noise(12))
    assert fit.ok.all()
    assert np.abs((fit.values[:, 0] - preferred + 90) % 180 - 90).max() < 1
    np.testing.assert_allclose(fit.values[:, 1], kappa, rtol=0.1)

    frequencies = np.geomspace(0.01, 0.1, 8)
    peak, octaves = rng.uniform(0.015, 0.07, n), rng.uniform(1, 2.5, n)
    sigma = octaves * np.log(2) / (2 * np.sqrt(2 * np.log(2)))
    r = 0.3 + 2 * np.exp(-0.5 * (np.log(frequencies / peak[:, None]) / sigma[:, None]) ** 2)
    fit = curves.fit_frequency(frequencies, r + noise(8))
    np.testing.assert_allclose(fit.values[:, 0], peak, rtol=0.05)
    np.testing.assert_allclose(np.median(fit.values[:, 1] / octaves), 1, rtol=0.05)

    contrasts = np.array([0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1])
    c50, power = rng.uniform(0.1, 0.5, n), rng.uniform(1.2, 3.5, n)
    r = 0.3 + 2 * contrasts ** power[:, None] / (contrasts ** power[:, None] + (c50**power)[:, None])
    fit = curves.fit_contrast(contrasts, r + noise(8))
    np.testing.assert_allclose(fit.values[:, 0], c50, rtol=0.12)
    np.testing.assert_allclose(np.median(fit.values[:, 1] / power), 1, rtol=0.05)

    diameters = np.geomspace(8, 200, 10)
    a, b, surround = rng.uniform(15, 40, n), rng.uniform(60, 120, n), rng.uniform(0.2, 0.8, n)
    r = 0.2 + 2 * erf(diameters / a[:, None]) - 2 * surround[:, None] * erf(diameters / b[:, None])
    fit = curves.fit_size(diameters, r + noise(10))
    fine = np.linspace(8, 200, 400)
    truth = 0.2 + 2 * erf(fine / a[:, None]) - 2 * surround[:, None] * erf(fine / b[:, None])
    assert np.abs(fit.curve(fine) - truth).max() < 0.1


def test_flat_curves_have_no_fit() -> None:
    flat = np.full((2, 8), 0.7)
    for fit in (
        curves.fit_orientation(np.arange(0, 180, 22.5), flat),
        curves.fit_frequency(np.geomspace(0.01, 0.1, 8), flat),
        curves.fit_contrast(np.linspace(0, 1, 8), flat),
        curves.fit_size(np.geomspace(5, 100, 8), flat),
    ):
        assert not fit.ok.any()
        assert np.isnan(fit.r2).all()


def test_shuffles_find_tuning_and_only_tuning() -> None:
    rng = np.random.default_rng(2)
    degrees = np.arange(0, 180, 15.0)
    noise = rng.uniform(0, 1, (300, 12, 8))
    p = curves.shuffled_selectivity(noise, degrees, rng=rng, n=200)
    assert 0.02 < (p < 0.05).mean() < 0.09  # as often as it says
    tuned = noise + (1 + np.cos(2 * np.radians(degrees - 40)))[None, :, None]
    assert curves.shuffled_selectivity(tuned[:50], degrees, rng=rng, n=200).max() < 0.02


# The experiment


def test_known_preferences_are_recovered() -> None:
    bank = bank_of()
    bank.c50[:] = np.linspace(0.4, 0.8, bank.n)  # a neuron that is saturated at full contrast has no peak to find
    result = Tuning(mouse="BANK").run(bank)
    data = result.dataset
    error = np.abs((data["preferred_orientation"] - np.degrees(bank.orientation) + 90) % 180 - 90)
    assert float(error.max()) < 2  # degrees
    assert bool(data["orientation_ok"].all())
    assert float(data["osi_p"].max()) < 0.01
    assert float(data["dsi"].max()) < 1e-6
    np.testing.assert_allclose(np.median(data["preferred_frequency"] / bank.frequency), 1, rtol=0.04)
    np.testing.assert_allclose(data["preferred_frequency"], bank.frequency, rtol=0.12)
    assert float(data["phase_modulation"].max()) < 0.3  # complex cells
    for i in range(bank.n):
        best = np.unravel_index(data["response"].values[i].argmax(), data["response"].shape[1:])
        o, f = np.radians(data["orientation"].values[best[0]]), data["frequency"].values[best[1]]
        assert float(data["response"].values[i].max()) == pytest.approx(over_phases(bank, i, o, f, 1.0), rel=1e-3)
        half = over_phases(bank, i, o, f, 0.35)
        assert float(data["contrast_response"].sel(contrast=0.35)[i]) == pytest.approx(half, rel=1e-3)
        even, odd, _ = bank.filters()
        shown = wave(bank, i, 0.0, o, f).ravel()
        drive = np.hypot(shown @ even[:, i], shown @ odd[:, i])
        assert float(data["c50"][i]) == pytest.approx(bank.c50[i] / drive, rel=0.04)
        assert float(data["contrast_exponent"][i]) == pytest.approx(bank.exponent[i], rel=0.04)
    assert "tuned to orientation" in Tuning(mouse="BANK").summarize(result)


def test_simple_cells_and_untuned_cells_are_told_apart() -> None:
    bank = bank_of()
    bank.is_complex[:6] = False
    bank.frequency[9] = 0  # a blob sees light, not orientation
    bank.phase[9] = 0
    data = Tuning(mouse="BANK").run(bank).dataset
    assert float(data["phase_modulation"][:6].min()) > 0.8
    assert float(data["osi"][9]) < 0.1
    assert float(data["osi_p"][9]) > 0.05


@pytest.mark.slow
def test_sizes_are_centred_on_receptive_fields(tmp_path: Path) -> None:
    bank = bank_of(n=6)
    bank.is_complex[:] = False
    bank.phase[:] = 0
    bank.exponent[:], bank.c50[:], bank.baseline[:] = 1.5, 0.5, 0.2
    bank.suppression[:] = np.linspace(0, 4, 6)
    perform(ReceptiveFields(mouse="BANK", n_images=6000), bank, tmp_path / "rf", quiet=True)
    experiment = Tuning(mouse="BANK", rf=str(tmp_path / "rf"), contrasts=(0.0, 0.2, 0.4, 0.7, 1.0))
    result = perform(experiment, bank, tmp_path / "tuning", quiet=True)
    data = result.dataset
    assert bool(data["size_ok"].all())
    y, x = np.mgrid[:36, :64]
    blank = bank.responses(np.full((1, 36, 64), 110.0))[0]
    diameters = np.linspace(2, 54, 105)
    for i in range(bank.n):
        radius = np.hypot(x - bank.center[i, 0], y - bank.center[i, 1])
        truth = []
        for diameter in diameters:
            inside = np.clip(diameter / 2 - radius + 0.5, 0, 1)
            images = np.stack(
                [
                    110 * (1 + inside * wave(bank, i, p, bank.orientation[i], bank.frequency[i]))
                    for p in np.arange(8) * np.pi / 4
                ]
            )
            truth.append(bank.responses(images)[:, i].mean() - blank[i])
        evoked = np.array(truth)
        index = 1 - evoked[-1] / evoked.max()
        assert float(data["suppression_index"][i]) == pytest.approx(index, abs=0.06)
        if index > 0.15:
            assert float(data["preferred_diameter"][i]) == pytest.approx(diameters[evoked.argmax()], rel=0.2)
    assert float(data["iso_surround"][-1]) < 0.9 < float(data["iso_surround"][0])
    assert {"orientation.png", "population.png", "sizes.png"} <= {p.name for p in (tmp_path / "tuning").iterdir()}
    other = bank_of(n=6, seed=3)
    other.model = type(other.model)(name="other", hash="ef" * 32)
    with pytest.raises(InvalidArgument, match="not of this mouse's twin"):
        experiment.run(other)


def test_an_interrupted_tuning_goes_on(tmp_path: Path) -> None:
    experiment = Tuning(mouse="BANK", n_orientations=6, n_phases=4)
    small: dict[str, Any] = {"n": 4, "shape": (18, 32)}
    with pytest.raises(ConnectionFailed):
        perform(experiment, bank_of(**small, limit=150), tmp_path / "out", quiet=True)
    bank = bank_of(**small)
    result = perform(experiment, bank, tmp_path / "out", quiet=True)
    fresh = bank_of(**small)
    xarray.testing.assert_identical(result.dataset, experiment.run(fresh).dataset)
    assert bank.asked == fresh.asked - 128  # 32 cells of 4 phases were kept


def test_frequencies_are_per_degree_where_there_is_a_monitor() -> None:
    monitor = Monitor(width_cm=56.5, height_cm=31.8, distance_cm=15)
    bank = bank_of(n=4)
    few: dict[str, Any] = {"mouse": "BANK", "n_orientations": 4, "n_phases": 4}
    degrees = Tuning(**few, monitor=monitor).run(bank).dataset
    pixels = Tuning(**few).run(bank).dataset
    k = monitor.fitted(36, 64).pixels_per_degree
    np.testing.assert_allclose(degrees["preferred_frequency"], pixels["preferred_frequency"] * k, rtol=1e-3)
    assert degrees["preferred_frequency"].attrs["units"] == "cycles/deg"


def test_what_makes_no_curve_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="too few gratings"):
        Tuning(mouse="BANK", n_orientations=2)
    with pytest.raises(InvalidArgument, match="contrasts do not make a curve"):
        Tuning(mouse="BANK", contrasts=(0.5, 0.2, 0.9, 1, 1))
    with pytest.raises(InvalidArgument, match="too high for the image's pixels"):
        Tuning(mouse="BANK", frequencies=(0.1, 0.2, 0.4, 0.6)).run(bank_of())
