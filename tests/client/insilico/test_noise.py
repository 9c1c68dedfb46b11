"""Noise that cancels what white noise leaves in a map, and mapping that stops when the fields are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import xarray
from support.gabor_bank import GaborBank
from support.live_server import Server
from v1t_client import Client, ConnectionFailed, InvalidArgument
from v1t_client.insilico import Receipt, perform
from v1t_client.insilico.experiments.noise_mapping import Halves, Noise
from v1t_client.insilico.experiments.receptive_fields import ReceptiveFields
from v1t_client.insilico.stimuli.noise import NoiseKind, NoiseSums, block_size, noise_images

KINDS: tuple[NoiseKind, ...] = get_args(NoiseKind)
GRID = (9, 16)
P = GRID[0] * GRID[1]
ORTHOGONAL: tuple[NoiseKind, ...] = ("orthogonal", "balanced")


def filters(n: int = 40) -> np.ndarray:
    """(P, n) of length 1: a Gaussian somewhere on the grid."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: GRID[0], : GRID[1]].reshape(2, -1, 1)
    w = np.exp(-0.5 * ((x - rng.uniform(5, 10, n)) ** 2 + (y - rng.uniform(3, 5, n)) ** 2) / rng.uniform(1, 2, n) ** 2)
    return np.asarray(w / np.linalg.norm(w, axis=0))


def halves_of(kind: NoiseKind, n_images: int, respond: Any, *, seed: int = 3, n: int = 40) -> tuple[Halves, Noise]:
    """Sums over the responses (B, n) to noise (B, P), in chunks as the experiment makes them."""
    noise = Noise(kind, seed, GRID, 1.0)
    chunk = noise.chunk(n_images, 500)
    halves = Halves((NoiseSums.empty(n, GRID), NoiseSums.empty(n, GRID)))
    for i, first in enumerate(range(0, n_images, chunk)):
        z = noise_images(kind, seed, first, min(chunk, n_images - first), GRID)
        halves.parts[i % 2].show(z, respond(z.reshape(len(z), -1).astype(np.float64)).astype(np.float32))
    assert halves.n_images == n_images
    return halves, noise


def map_of(kind: NoiseKind, n_images: int, respond: Any) -> np.ndarray:
    """(P, n)."""
    return halves_of(kind, n_images, respond)[0].total.weighted_average().reshape(-1, P).T


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


# The noise


@pytest.mark.parametrize("kind", KINDS)
def test_image_i_does_not_depend_on_where_a_request_begins(kind: NoiseKind) -> None:
    n = 2 * block_size(kind, GRID) + 307
    whole = noise_images(kind, 5, 0, n, GRID)
    for first, size in ((0, 1), (1, 4), (n // 2 - 3, 6), (n - 5, 5)):
        np.testing.assert_array_equal(noise_images(kind, 5, first, size, GRID), whole[first : first + size])
    assert abs(whole.mean()) < 0.02
    assert whole.var() == pytest.approx(1, abs=0.02)
    assert not np.array_equal(noise_images(kind, 6, 0, 2, GRID), whole[:2])


@pytest.mark.parametrize("grid", [GRID, (5, 5), (2, 3)])
def test_over_a_block_no_two_elements_are_correlated(grid: tuple[int, int]) -> None:
    for kind in ORTHOGONAL:
        n = block_size(kind, grid)
        for first in (0, 3 * n):
            z = noise_images(kind, 1, first, n, grid).reshape(n, -1).astype(np.float64)
            np.testing.assert_allclose(z.T @ z / n, np.eye(grid[0] * grid[1]), atol=1e-6)
            np.testing.assert_allclose(z.mean(0), 0, atol=1e-6)


def test_antithetic_images_come_in_pairs_of_opposite_sign() -> None:
    for kind, of in (("antithetic", "white"), ("balanced", "orthogonal")):
        pairs, single = noise_images(kind, 2, 0, 60, GRID), noise_images(of, 2, 0, 30, GRID)  # type: ignore[arg-type]
        np.testing.assert_array_equal(pairs[::2], single)
        np.testing.assert_array_equal(pairs[1::2], -single)


# What is left in a map, of neurons whose answer is a known function of the noise


def test_pairs_cancel_terms_of_even_order_exactly() -> None:
    w = filters()
    for kind in ("antithetic", "balanced"):
        even = map_of(kind, 200, lambda z: (z @ w) ** 2 + np.abs(z @ w) + 5)
        np.testing.assert_allclose(even, 0, atol=1e-5)
    assert rms(map_of("white", 200, lambda z: (z @ w) ** 2)) > 0.05


def test_a_block_of_orthogonal_noise_gives_the_filter_of_a_linear_neuron_exactly() -> None:
    w = filters()
    for kind in ORTHOGONAL:
        n = block_size(kind, GRID)
        np.testing.assert_allclose(map_of(kind, n, lambda z: 2 + z @ w), w, atol=1e-5)
        np.testing.assert_allclose(map_of(kind, 3 * n, lambda z: 2 + z @ w), w, atol=1e-5)
    # a rectified answer is half linear and half even
    balanced = map_of("balanced", block_size("balanced", GRID), lambda z: np.maximum(z @ w, 0))
    np.testing.assert_allclose(balanced, w / 2, atol=1e-5)
    assert rms(map_of("white", block_size("balanced", GRID), lambda z: np.maximum(z @ w, 0)) - w / 2) > 0.02


def test_errors_of_maps_fall_as_the_variance_of_what_is_not_cancelled() -> None:
    """response = w z + (w z)^2 - 1, of which each kind leaves other parts; the projection is nearly normal."""
    w = filters()

    def respond(z: np.ndarray) -> np.ndarray:
        return np.asarray(z @ w + (z @ w) ** 2 - 1)

    linear, even = 1.0, 2.0  # variances of w z and (w z)^2
    left = {"white": linear + even, "antithetic": 2 * linear, "orthogonal": even, "balanced": 0.0}
    for kind in KINDS:
        for blocks in (10, 40):
            n = blocks * block_size("balanced", GRID)
            expected = np.sqrt(left[kind] / n)
            assert rms(map_of(kind, n, respond) - w) == pytest.approx(expected, rel=0.12, abs=1e-5), (kind, n)


@pytest.mark.parametrize("kind", KINDS)
def test_chance_is_the_error_of_a_map(kind: NoiseKind) -> None:
    w = filters()

    def respond(z: np.ndarray) -> np.ndarray:
        return np.asarray(np.maximum(z @ w, 0) + 0.3 * (z @ w) ** 2 + 0.1 * (z @ w) ** 3)

    n = 12 * block_size("balanced", GRID)
    halves, noise = halves_of(kind, n, respond)
    truth = map_of("balanced", 150 * block_size("balanced", GRID), respond)
    error = halves.total.weighted_average().reshape(-1, P).T - truth
    assert rms(error) == pytest.approx(np.sqrt(np.mean(halves.chance(noise) ** 2)), rel=0.15)


def test_chance_of_one_block_is_not_understated() -> None:
    w = filters()
    for kind in ORTHOGONAL:
        n = block_size(kind, GRID)
        halves, noise = halves_of(kind, n, lambda z: np.maximum(z @ w, 0) + 0.1 * (z @ w) ** 2)
        error = halves.total.weighted_average().reshape(-1, P).T - w / 2
        assert np.median(halves.chance(noise)) >= 0.9 * rms(error)


# The experiment


def blobs(**options: Any) -> GaborBank:
    """Simple neurons whose receptive field is a round Gaussian."""
    bank = GaborBank(n=40, shape=(18, 32), **options)
    bank.frequency[:], bank.phase[:], bank.is_complex[:] = 0, 0, False
    return bank


@pytest.mark.parametrize("kind", ["white", "balanced"])
def test_mapping_stops_when_the_fields_are_known_as_well_as_it_says(kind: NoiseKind) -> None:
    bank, tolerance = blobs(), 0.05
    experiment = ReceptiveFields(mouse="BANK", noise=kind, until=tolerance, n_images=40_000, chunk=1000, seed=2)
    data = experiment.run(bank).dataset
    assert data.attrs["noise"] == kind
    assert 2000 <= data.attrs["n_images"] < 40_000
    away = np.stack([data["center_x"] - bank.center[:, 0], data["center_y"] - bank.center[:, 1]])
    size = ((data["sigma_major"] + data["sigma_minor"]) / 2).values
    truth = ReceptiveFields(mouse="BANK", noise="balanced", n_images=20 * 1154).run(bank).dataset
    true_size = ((truth["sigma_major"] + truth["sigma_minor"]) / 2).values
    # an error beyond twice its tolerance is rare if the tolerance is a standard error
    assert (np.hypot(*away) <= 2 * tolerance * size).mean() >= 0.9
    assert (np.abs(size / true_size - 1) <= 2 * tolerance).mean() >= 0.9
    stated = data["center_error"].values
    assert 0.6 < np.sqrt(np.mean((np.hypot(*away) / stated) ** 2)) < 1.5


def test_balanced_noise_needs_a_fraction_of_the_images() -> None:
    shown = {}
    for kind in ("white", "balanced"):
        experiment = ReceptiveFields(mouse="BANK", noise=kind, until=0.03, n_images=60_000, chunk=1000)
        shown[kind] = experiment.run(blobs()).dataset.attrs["n_images"]
    assert shown["balanced"] == 2 * block_size("balanced", (18, 32))  # the least number
    assert shown["white"] > 4 * shown["balanced"]


def test_a_stopped_run_is_the_run_over_so_many_images_and_resumes_to_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mouse": "BANK", "noise": "white", "chunk": 500}
    experiment = ReceptiveFields(**options, until=0.08, n_images=50_000)
    result = experiment.run(blobs())
    n = result.dataset.attrs["n_images"]
    assert n < 50_000
    assert n % 500 == 0
    cut = ReceptiveFields(**options, n_images=n).run(blobs())
    xarray.testing.assert_identical(result.dataset, cut.dataset)
    with pytest.raises(ConnectionFailed):
        perform(experiment, blobs(limit=n - 700), tmp_path / "rf", quiet=True)
    resumed = perform(experiment, blobs(), tmp_path / "rf", quiet=True)
    xarray.testing.assert_identical(resumed.dataset, result.dataset)
    again = ReceptiveFields.from_dict(Receipt.load(tmp_path / "rf").parameters)
    assert again == experiment


def test_the_default_is_the_best_noise_of_that_many_images_in_whole_blocks() -> None:
    orthogonal, balanced = block_size("orthogonal", (18, 32)), block_size("balanced", (18, 32))
    for asked, kind, shown in (
        (200, "orthogonal", 200),
        (balanced - 1, "orthogonal", orthogonal),
        (balanced + 300, "balanced", balanced),
        (3 * balanced - 1, "balanced", 2 * balanced),
    ):
        attributes = ReceptiveFields(mouse="BANK", n_images=asked).run(blobs()).dataset.attrs
        assert (attributes["noise"], attributes["n_images"]) == (kind, shown)


def test_without_a_number_of_images_a_run_ends_when_the_fields_are_known() -> None:
    default = ReceptiveFields(mouse="A")
    assert (default.n_images, default.until) == (500_000, 0.05)
    assert ReceptiveFields(mouse="A", n_images=500_000).until is None
    assert ReceptiveFields(mouse="A", until=0.1).until == 0.1
    for wrong in ({"until": 0.0}, {"until": 1.5}, {"noise": "pink"}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            ReceptiveFields(mouse="A", **wrong)


def test_neurons_without_a_field_never_stop_a_run() -> None:
    bank = blobs()
    bank.amplitude[:] = 0
    data = ReceptiveFields(mouse="BANK", until=0.5, n_images=5 * 1154, chunk=500).run(bank).dataset
    assert data.attrs["n_images"] == 5 * 1154


def test_a_receipt_from_before_other_noise_is_replayed_with_white_noise() -> None:
    old = '{"experiment": "rf", "parameters": {"mouse": "A", "n_images": 500}, "model": {}}'
    replayed = ReceptiveFields.from_dict(Receipt.from_json(old).parameters)
    assert (replayed.noise, replayed.until, replayed.n_images) == ("white", None, 500)


@pytest.mark.slow
def test_over_http_a_run_stops_where_it_stops_here(demo_server: Server) -> None:
    class Elsewhere:
        """A predictor that is no `Client`: the noise is summed up here."""

        def __init__(self, client: Client) -> None:
            self.predict, self.mice, self.mouse, self.neurons = (
                client.predict,
                client.mice,
                client.mouse,
                client.neurons,
            )

    block = block_size("balanced", (9, 16))
    experiment = ReceptiveFields(
        mouse="SIM1", rows=9, neuron_ids=(48, 369, 799), until=0.15, n_images=12 * block, chunk=block
    )
    with Client(demo_server.url) as client:
        there, here = experiment.run(client).dataset, experiment.run(Elsewhere(client)).dataset
    assert 2 * block <= there.attrs["n_images"] < 12 * block
    assert there.attrs["n_images"] == here.attrs["n_images"]
    np.testing.assert_allclose(there["center_x"], here["center_x"], atol=0.01)
