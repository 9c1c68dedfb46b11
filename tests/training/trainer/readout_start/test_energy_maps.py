"""Where neurons look, from the training trials: against the simulation's truth, and against numpy in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from support.tiny_twins import tiny_config, tiny_recordings

from training.config import ModelConfig
from training.data.mouse import Mouse
from training.data.recordings import Batch, Recording
from training.errors import ConfigError
from training.models import Twin
from training.models.image_positions import map_positions
from training.simulation.cortex import Cortex, load_cortex
from training.simulation.simulate import TRUTH
from training.trainer.readout_start import energy_maps as module
from training.trainer.readout_start.energy_maps import BLUR, LAG, EnergyMaps, check_maps, energy_maps, peaks
from training.trainer.readout_start.start import start_from_trials

SIZE = (36, 64)
CORES: dict[str, dict[str, Any]] = {
    "vit": {"patch_size": 12, "patch_stride": 4},
    "cct": {"patch_size": 8, "patch_stride": 2},
    "cnn": {"input_kernel": 9},
    "ln": {"input_kernel": 9},
}


def config_of(kind: str = "vit", **options: Any) -> ModelConfig:
    cropper = {"size": SIZE, **options.pop("cropper", {})}
    readout = {"hidden": 30, **options.pop("readout", {})}
    return tiny_config({"kind": kind, **CORES[kind]}, cropper=cropper, readout=readout, **options)


def twin_of(config: ModelConfig, recording: Any, seed: int = 0) -> Twin:
    torch.manual_seed(seed)
    return Twin(config, [Mouse.from_recording(recording)])


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """100 neurons, whose receptive fields move with the gaze, and 300 training trials."""
    return recording_of(tmp_path_factory.mktemp("gray"), channels=1)


@pytest.fixture(scope="module")
def color(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return recording_of(tmp_path_factory.mktemp("color"), channels=2)


def recording_of(folder: Path, *, channels: int) -> Recording:
    sizes = {"n_neurons": 100, "n_validation": 2, "n_test_images": 2, "n_test_repeats": 2}
    return tiny_recordings(folder, n_train=(300,), image_shape=(channels, *SIZE), **sizes)[0]


def truth_of(recording: Recording) -> Cortex:
    return load_cortex(recording.path / TRUTH)


def expected_positions(twin: Twin, cortex: Cortex) -> np.ndarray:
    (mouse_id,) = twin.mice
    return map_positions(twin, mouse_id, torch.from_numpy(cortex.center).float()).numpy()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vit", {}),
        ("cct", {}),
        ("cnn", {}),
        ("ln", {"behavior": "none"}),
        ("vit", {"shifter": False, "behavior": "channels"}),
        ("vit", {"cropper": {"crop": 0.8, "shifter": "pupil_center"}}),
        ("cnn", {"cropper": {"size": None, "crop": 0.9, "shifter": "behavior_and_pupil_center"}}),
    ],
)
def test_positions_before_training_are_the_true_centres(gray: Recording, kind: str, options: dict[str, Any]) -> None:
    twin, cortex = twin_of(config_of(kind, **options), gray), truth_of(gray)
    found = start_from_trials(twin, gray)
    mu, expected = twin.readout(gray.mouse_id).mu.detach().numpy(), expected_positions(twin, cortex)
    off = mu - expected
    assert twin.core.spacing is not None
    pixels = [(n - 1) * twin.core.spacing.step / 2 for n in twin.core.output_shape[:0:-1]]
    for axis, pixel in enumerate(pixels):
        assert np.corrcoef(mu[:, axis], expected[:, axis])[0, 1] > 0.97
        assert np.median(np.abs(off[:, axis])) * pixel < 1.5  # and not only up to a scale
    assert int(found.clear[cortex.responsive].sum()) > 40
    assert int(found.clear[~cortex.responsive].sum()) <= 1  # 1 % is chance
    assert_no_shift(twin, gray.mouse_id)


def assert_no_shift(twin: Twin, mouse_id: str) -> None:
    gaze = 5 * torch.randn(8, 5)
    for shifters, n in ((twin.shifters, 2), (twin.cropper.shifters, 5 if twin.cropper.uses_behavior else 2)):
        if shifters is not None:
            assert not shifters[mouse_id](gaze[:, :n]).any()


@pytest.mark.parametrize("grayscale", [False, True])
def test_two_channels_are_used_together(color: Recording, grayscale: bool) -> None:
    twin, cortex = twin_of(config_of(cropper={"grayscale": grayscale}), color), truth_of(color)
    start_from_trials(twin, color)
    mu, expected = twin.readout(color.mouse_id).mu.detach().numpy(), expected_positions(twin, cortex)
    assert min(np.corrcoef(mu[:, axis], expected[:, axis])[0, 1] for axis in (0, 1)) > 0.95


def test_free_positions_are_the_peaks_and_those_of_chance_move_to_the_middle(gray: Recording) -> None:
    twin, cortex = twin_of(config_of(readout={"position": "free"}), gray), truth_of(gray)
    found = start_from_trials(twin, gray)
    mu, expected = twin.readout(gray.mouse_id).mu.detach().numpy(), expected_positions(twin, cortex)
    clear = found.clear.numpy()
    assert np.array_equal(mu[clear], peaks(found.maps).numpy()[clear])
    assert min(np.corrcoef(mu[clear, axis], expected[clear, axis])[0, 1] for axis in (0, 1)) > 0.9
    off = np.linalg.norm(mu - expected, axis=1)
    assert off[~clear].mean() < np.linalg.norm(peaks(found.maps).numpy() - expected, axis=1)[~clear].mean()
    nothing = found.clearness.numpy() == 0
    np.testing.assert_allclose(mu[nothing], np.tile(mu[clear].mean(0), (nothing.sum(), 1)), atol=1e-5)


class Trials:
    """A recording in memory, of a mouse whose neurons lie on a line."""

    mouse_id = "A"

    def __init__(self, images: np.ndarray, responses: np.ndarray) -> None:
        self.images, self.all_responses = images.astype(np.float32), responses.astype(np.float32)
        self.response_std = np.ones(responses.shape[1], np.float32)
        self.rng = np.random.default_rng(0)

    def tier(self, name: str) -> Any:
        return SimpleNamespace(indices=np.arange(len(self.images)))

    def responses(self, trials: np.ndarray) -> np.ndarray:
        return self.all_responses[trials]

    def batch(self, trials: np.ndarray) -> Batch:
        behavior, pupil = np.ones((len(trials), 3), np.float32), np.ones((len(trials), 2), np.float32)
        return Batch(self.images[trials], behavior, pupil, self.all_responses[trials])

    def twin(self, config: ModelConfig) -> Twin:
        n = self.all_responses.shape[1]
        mouse = Mouse.without_recording("A", self.images.shape[1:], n)
        coordinates = np.stack([np.linspace(-300, 300, n), np.zeros(n), np.zeros(n)], axis=1).astype(np.float32)
        object.__setattr__(mouse, "neuron_coordinates", coordinates)
        torch.manual_seed(0)
        return Twin(config, [mouse])


def noise_trials(n_trials: int, n_neurons: int, shape: tuple[int, int, int], seed: int = 0) -> Trials:
    rng = np.random.default_rng(seed)
    return Trials(rng.normal(size=(n_trials, *shape)), rng.gamma(1, 1, (n_trials, n_neurons)))


@pytest.mark.parametrize("channels", [1, 2])
def test_maps_are_those_of_numpy_in_float64(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEURONS", 3)  # and so the sizes of chunks do not matter
    monkeypatch.setattr(module, "IMAGES", 7)
    trials: Any = noise_trials(40, 5, (channels, 18, 40))
    config = tiny_config({"kind": "cnn", "input_kernel": 5}, behavior="none", cropper={"size": None})
    twin = trials.twin(config)
    found = energy_maps(twin, trials)
    expected = numpy_maps(trials)
    assert tuple(found.maps.shape) == (5, 14, 36)  # two pixels less at each border, as the core's
    inner = expected[:, 2:-2, 2:-2]
    peak = inner.max((1, 2)) / inner.mean((1, 2))
    inner = (inner - inner.mean((1, 2), keepdims=True)) / inner.std((1, 2), ddof=1, keepdims=True)
    np.testing.assert_allclose(found.maps.numpy(), inner, atol=2e-4)
    ratio = (1 - found.clearness.numpy()) * peak  # the peak of chance, the same for all neurons
    assert found.clearness.max() > 0
    np.testing.assert_allclose(ratio[found.clearness > 0], ratio.max(), rtol=1e-4)


def numpy_maps(trials: Trials) -> np.ndarray:
    """(N, H, W) the blurred energy, with a loop over neurons and pixels."""
    responses = np.log1p(np.maximum(trials.all_responses.astype(np.float64), 0))
    H, W = trials.images.shape[2:]
    half = round(LAG * W / 2)
    sigma, reach = BLUR * W, int(np.ceil(3 * BLUR * W))
    kernel = {n: np.array([[gauss(i - j, sigma, reach) for j in range(n)] for i in range(n)]) for n in (H, W)}
    maps = np.zeros((responses.shape[1], H, W))
    for image in trials.images.astype(np.float64).transpose(1, 0, 2, 3):
        columns, rows = np.arange(W), np.arange(H)
        right, left = (np.clip(columns + s * half, 0, W - 1) for s in (1, -1))
        below, above = (np.clip(rows + s * half, 0, H - 1) for s in (1, -1))
        across, down = image[:, :, right] - image[:, :, left], image[:, below] - image[:, above]
        for feature in (across, np.abs(across), down, np.abs(down)):
            for n in range(len(maps)):
                c = np.array([[np.corrcoef(feature[:, y, x], responses[:, n])[0, 1] for x in columns] for y in rows])
                maps[n] += (c / c.std(ddof=1)) ** 2
    blurred = kernel[H] @ maps @ kernel[W].T
    return np.asarray(blurred / (kernel[H].sum(1)[:, None] * kernel[W].sum(1)))


def gauss(distance: int, sigma: float, reach: int) -> float:
    return float(np.exp(-0.5 * (distance / sigma) ** 2)) if abs(distance) <= reach else 0.0


def test_maps_lie_on_the_places_of_tokens_and_large_images_are_made_smaller() -> None:
    trials: Any = noise_trials(60, 4, (1, 24, 40), seed=3)
    pixels = energy_maps(trials.twin(tiny_config({"kind": "cnn", "input_kernel": 1}, cropper={"size": None})), trials)
    assert tuple(pixels.maps.shape) == (4, 24, 40)
    vit = energy_maps(trials.twin(tiny_config({"patch_size": 6, "patch_stride": 4}, cropper={"size": None})), trials)
    rows, columns = np.arange(2.5, 24 - 3, 4), np.arange(2.5, 40 - 3, 4)  # middles of the patches
    places = np.meshgrid(np.linspace(rows[0], rows[-1], 17), np.linspace(columns[0], columns[-1], 33), indexing="ij")
    for map_, expected in zip(vit.maps.numpy(), pixels.maps.numpy(), strict=True):
        sampled = map_coordinates(expected.astype(float), places, order=1)
        np.testing.assert_allclose(map_, (sampled - sampled.mean()) / sampled.std(ddof=1), atol=1e-3)
    large: Any = noise_trials(20, 4, (1, 72, 128))
    twin = large.twin(tiny_config({"kind": "cnn", "input_kernel": 9}, cropper={"size": None}))
    assert tuple(energy_maps(twin, large).maps.shape) == (4, 33, 61)  # (72 - 8) / 2 pixels, and the last one


def test_places_of_tokens_that_are_not_arranged_like_the_image_are_refused() -> None:
    square = tiny_config({"patch_size": 4, "patch_stride": 2, "token_grid": "nearest_square"}, cropper={"size": None})
    twin = noise_trials(2, 3, (1, 18, 32)).twin(square)
    with pytest.raises(ConfigError, match="token_grid to 'patches'"):
        check_maps(twin)


def awkward() -> Iterator[Any]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(30, 1, 18, 32))
    responses = rng.gamma(1, 1, (30, 6))
    yield pytest.param(images, 0 * responses, id="all neurons dead")
    yield pytest.param(0 * images + 3, responses, id="one grey for all images")
    yield pytest.param(np.repeat(images[:1], 30, 0), responses, id="one image")
    yield pytest.param(images[:1], responses[:1], id="one trial")
    yield pytest.param(images[:2], responses[:2], id="two trials")
    yield pytest.param(images, responses[:, :1], id="one neuron")
    yield pytest.param(images * (np.arange(32) < 16), responses, id="half of the screen black")
    yield pytest.param(images, responses - 5, id="negative responses")
    yield pytest.param(images, responses * np.array([1, 1e30, 1e-30, 1, 0, 1]), id="huge and tiny responses")


@pytest.mark.parametrize("position", ["network", "free"])
@pytest.mark.parametrize(("images", "responses"), list(awkward()))
def test_nothing_that_can_be_recorded_makes_a_start_fail(
    images: np.ndarray, responses: np.ndarray, position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.trainer.readout_start.positions.TO_MAPS", 5)
    monkeypatch.setattr("training.trainer.readout_start.positions.TO_PEAKS", 5)
    trials: Any = Trials(images, responses)
    twin = trials.twin(tiny_config(readout={"position": position, "hidden": 4}))
    found = start_from_trials(twin, trials)
    assert all(bool(parameter.isfinite().all()) for parameter in twin.parameters())
    assert bool(twin.readout("A").mu.isfinite().all())
    assert bool(found.maps.isfinite().all())
    assert bool(((found.clearness >= 0) & (found.clearness <= 1)).all())
    assert not found.clearness[responses.std(0) == 0].any()


def test_dead_neurons_do_not_make_others_clear() -> None:
    trials: Any = noise_trials(60, 8, (1, 18, 32))
    config = tiny_config()
    alone = energy_maps(trials.twin(config), trials)
    crowd: Any = Trials(trials.images, np.pad(trials.all_responses, ((0, 0), (0, 40))))
    among = energy_maps(crowd.twin(config), crowd)
    np.testing.assert_allclose(among.clearness[:8], alone.clearness, atol=0.06)  # other neurons are shuffled
    assert not among.clearness[8:].any()


def test_dead_neurons_look_where_their_neighbours_do(gray: Recording) -> None:
    dead = np.arange(100) % 3 == 0
    responses = gray.responses(np.arange(gray.n_trials)).copy()
    responses[:, dead] = 0

    class Damaged:
        def __getattr__(self, name: str) -> Any:
            return getattr(gray, name)

        def responses(self, trials: np.ndarray) -> np.ndarray:
            return responses[trials]

    damaged: Any = Damaged()
    twin = twin_of(config_of(), gray)
    found: EnergyMaps = start_from_trials(twin, damaged)
    assert not found.clearness[dead].any()
    off = twin.readout(gray.mouse_id).mu.detach().numpy() - expected_positions(twin, truth_of(gray))
    assert np.median(np.abs(off[dead]), axis=0).max() < 0.12
