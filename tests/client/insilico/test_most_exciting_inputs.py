"""Most exciting inputs, on a bank of Gabor neurons whose best image is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from PIL import Image
from support.gabor_bank import GaborBank
from support.live_server import Server
from v1t_client import Channel, ConnectionFailed, InvalidArgument, MouseDetail
from v1t_client._cli import main
from v1t_client.insilico import Receipt, Result, Subject, perform
from v1t_client.insilico.most_exciting_inputs.ascent import is_flat, respond_each, slopes
from v1t_client.insilico.most_exciting_inputs.canvas import Canvas
from v1t_client.insilico.most_exciting_inputs.experiment import MostExcitingInputs
from v1t_client.insilico.most_exciting_inputs.recipes import RECIPES

LUMINANCE, STD = 110.0, 60.0  # of the bank's images


def bank_of(n: int = 6, **options: Any) -> GaborBank:
    """Half of the neurons are simple."""
    bank = GaborBank(n, seed=4, **options)
    bank.is_complex[: n // 2] = False
    bank.exponent[:] = 2
    return bank


def search(**options: Any) -> MostExcitingInputs:
    return MostExcitingInputs(mouse="BANK", **{"recipe": "quick", "starts": 2, "noise": 0, **options})


def standardized(images: xarray.DataArray) -> np.ndarray:
    return (images.values - LUMINANCE) / STD


@pytest.fixture(scope="module")
def found() -> tuple[GaborBank, MostExcitingInputs, Result]:
    bank = bank_of()
    experiment = search(noise=70, least=True, diverse=4, diverse_steps=40)
    return bank, experiment, experiment.run(bank)


def test_the_bank_s_gradient_is_its_slope() -> None:
    bank, rng = bank_of(), np.random.default_rng(0)
    bank.suppression[:] = 0.7
    images, along = rng.uniform(0, 255, (3, 36, 64)), rng.normal(size=(3, 36, 64))
    weights, step = rng.normal(size=(3, 6)), 1e-4
    rise = ((bank.responses(images + step * along) - bank.responses(images - step * along)) * weights).sum(1)
    np.testing.assert_allclose((bank.slopes(images, weights) * along).sum((1, 2)), rise / (2 * step), rtol=1e-5)


def test_the_most_exciting_input_is_the_neuron_s_gabor(found: tuple[GaborBank, MostExcitingInputs, Result]) -> None:
    bank, _, result = found
    even, odd, _ = bank.filters()
    dataset = result.dataset
    for row in range(bank.n):
        mask = dataset["mask"].values[row].ravel()
        image = standardized(dataset["mei"][row, 0]).ravel() * mask
        pair = np.stack([even[:, row], odd[:, row]][: 1 + bool(bank.is_complex[row])], axis=1) * mask[:, None]
        fitted = pair @ np.linalg.lstsq(pair, image, rcond=None)[0]  # a complex neuron likes any phase
        correlation = fitted @ image / np.linalg.norm(fitted) / np.linalg.norm(image)
        assert correlation > 0.95, (row, correlation)
        if not bank.is_complex[row]:
            assert image @ even[:, row] > 0
    centers = np.stack([dataset["center_x"], dataset["center_y"]], axis=1)
    np.testing.assert_allclose(centers, bank.center, atol=0.6)
    assert (dataset["agreement"].values[:3] > 0.95).all()  # simple neurons have one best image
    assert (dataset["response"].values > dataset["mei_trace"].values[:, :, 0].max(1)).all()
    np.testing.assert_allclose(dataset["response"], np.diag(bank.responses(dataset["mei"].values[:, 0])), rtol=1e-4)


def test_the_image_beats_the_strongest_of_the_noise(found: tuple[GaborBank, MostExcitingInputs, Result]) -> None:
    bank, experiment, result = found
    from v1t_client.insilico.most_exciting_inputs.baselines import noise

    canvas = Canvas.of(bank.mouse("BANK"))
    images = noise(canvas, experiment.seed)(np.arange(70))
    assert images.mean() == pytest.approx(LUMINANCE, abs=2)
    assert images.std() == pytest.approx(STD, rel=0.1)
    np.testing.assert_allclose(result.dataset["best_noise"], bank.responses(images[:, 0]).max(0), rtol=1e-5)
    dataset = result.dataset
    assert dataset["beats_noise_in_mask"].values.all()
    assert "at the same norm" in experiment.summarize(result).split("for 6 of 6")[0]
    for row in range(bank.n):
        cut = (images[dataset["best_noise_index"].values[row], 0] - LUMINANCE) / STD * dataset["mask"].values[row]
        shown = LUMINANCE + STD * experiment.size * cut / np.linalg.norm(cut)
        response = bank.responses(np.clip(shown, 0, 255)[None])[0, row]
        assert response <= dataset["best_noise_in_mask"].values[row] + 1e-5


def test_the_least_exciting_input_silences_the_neuron(found: tuple[GaborBank, MostExcitingInputs, Result]) -> None:
    bank, _, result = found
    excess = result.dataset["least_response"].values - bank.baseline
    assert (excess >= -1e-5).all()
    assert (excess < 0.02 * bank.amplitude).all()


def test_diverse_inputs_excite_and_differ_most_where_the_neuron_is_invariant(
    found: tuple[GaborBank, MostExcitingInputs, Result],
) -> None:
    bank, _, result = found
    images, responses = result.dataset["diverse"].values, result.dataset["diverse_response"].values
    for row in range(bank.n):
        np.testing.assert_allclose(responses[row], bank.responses(images[row, :, 0])[:, row], rtol=1e-4)
    assert (responses >= 0.85 * result.dataset["response"].values[:, None] - 1e-5).all()
    distance = result.dataset["diverse_distance"].values
    assert distance[:3].max() < distance[3:].min()  # any phase will do for a complex neuron
    assert distance[3:].min() > 0.8


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_climbs_and_keeps_its_constraint(name: str) -> None:
    bank = bank_of(2)
    experiment = search(recipe=name, steps=25)
    dataset = experiment.run(bank).dataset
    trace = dataset["mei_trace"].values
    assert trace.shape == (2, 2, 26)
    assert (trace[:, :, -1].max(1) > trace[:, :, 0].max(1) + 0.1).all()
    images = dataset["mei_starts"].values
    length = images.std((2, 3, 4)) if experiment.constraint == "contrast" else np.sqrt((images**2).sum((2, 3, 4)))
    assert (length < 1.001 * experiment.size).all()
    assert (length > 0.8 * experiment.size).all()  # less where levels beyond black and white were cut
    assert dataset["mei"].min() >= 0
    assert dataset["mei"].max() <= 255


def test_a_search_is_flat_when_an_exponential_rise_has_flattened() -> None:
    t, window, since = np.arange(400), 20, np.full((1, 1), 20)
    for scale, tau in ((1.0, 12.0), (50.0, 12.0), (1.0, 30.0)):
        trace = (scale * (1 - np.exp(-t / tau)))[None, None]
        # e^(-(t - window) / tau) - e^(-t / tau) = 0.002 (1 - e^(-t / tau)), solved for t
        expected = tau * np.log((np.exp(window / tau) - 1 + 0.002) / 0.002)
        flat = [step for step in t if is_flat(trace[:, :, : step + 1], since, window)[0, 0]]
        assert flat[0] == pytest.approx(max(expected, 2 * window), abs=1)
    slow = np.concatenate([np.linspace(0, 1e-3, 41), np.linspace(1e-3, 5, 60)])[None, None]
    assert not is_flat(slow[:, :, :41], since, window)  # it still rises, for its scale
    assert is_flat(np.zeros((1, 1, 41)), since, window)  # a silent neuron has no image to find
    assert not is_flat(np.zeros((1, 1, 40)), since, window)
    assert not is_flat(np.zeros((1, 1, 400)), since, 0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_searches_end_when_they_are_done_and_lose_nothing(recipe: str) -> None:
    most = 256 if recipe == "blur-norm" else 150
    options: dict[str, Any] = {"recipe": recipe, "steps": most, "least": True}
    whole, ended = bank_of(), bank_of()
    full = search(**options, window=0).run(whole).dataset
    result = search(**options).run(ended)
    data = result.dataset
    assert (full["mei_steps"] == most).all()
    assert ended.asked < 0.8 * whole.asked
    assert (data["response"] >= 0.99 * full["response"]).all()
    assert (data["least_response"] <= full["least_response"] + 0.02 * full["response"]).all()
    for name in ("mei", "lei"):
        steps, trace = data[f"{name}_steps"].values, data[f"{name}_trace"].values
        assert ((steps > 2 * (most // 10) - 2) & (steps <= most)).all()
        for row, start in np.ndindex(steps.shape):
            n = steps[row, start]
            np.testing.assert_allclose(trace[row, start, n:], trace[row, start, n], rtol=1e-4)  # of the same image
            if not search(**options).search.is_falling:  # the same path up to its end
                expected = full[f"{name}_trace"][row, start, : n + 1]
                np.testing.assert_allclose(trace[row, start, : n + 1], expected, rtol=1e-3, atol=1e-4)
    assert (data["lei_steps"].values < most).any()
    assert f"of at most {most}" in search(**options).summarize(result)


def test_a_receipt_from_before_searches_ended_is_replayed_with_all_steps() -> None:
    old = '{"experiment": "mei", "parameters": {"mouse": "A", "steps": 90}, "model": {}}'
    assert MostExcitingInputs.from_dict(Receipt.from_json(old).parameters).window == 0
    assert MostExcitingInputs(mouse="A", steps=90).window == 9


def test_the_surround_that_suppresses_is_told_from_one_that_excites() -> None:
    bank = bank_of(2)
    bank.suppression[:] = 3.0
    dataset = search(surround=True, steps=30).run(bank).dataset
    alone, mask = dataset["center_response"].values, dataset["mask"].values > 0.999
    assert (dataset["suppressing_surround_response"].values < 0.9 * alone).all()
    assert (dataset["exciting_surround_response"].values > dataset["suppressing_surround_response"].values).all()
    for kind in ("exciting", "suppressing"):
        for row in range(2):
            inside = np.abs(dataset[f"{kind}_surround"].values[row, 0] - dataset["mei"].values[row, 0])[mask[row]]
            assert inside.max() < 0.5
            shown = dataset[f"{kind}_surround"].values[row, 0]
            expected = bank.responses(shown[None])[0, row]
            assert dataset[f"{kind}_surround_response"].values[row] == pytest.approx(expected, rel=1e-4)


def test_a_neuron_s_image_does_not_depend_on_which_others_are_asked_for() -> None:
    bank = bank_of()
    both = search(neuron_ids=tuple(bank.ids[[2, 5]].tolist()), steps=12).run(bank).dataset
    alone = search(neuron_ids=(int(bank.ids[5]),), steps=12).run(bank).dataset
    np.testing.assert_allclose(both["mei"][1], alone["mei"][0], atol=0.01)
    other = search(neuron_ids=(int(bank.ids[5]),), steps=12, seed=1).run(bank).dataset
    assert np.abs(other["mei_starts"] - alone["mei_starts"]).max() > 0.1


@pytest.mark.parametrize("answered", [30, 90, 150])
def test_a_search_whose_server_went_away_goes_on_and_ends_the_same(tmp_path: Path, answered: int) -> None:
    options: dict[str, Any] = {"steps": 23, "diverse": 2, "diverse_steps": 12, "noise": 40}
    experiment = search(**options)
    whole = bank_of(2)
    expected = experiment.run(whole).dataset
    broken = bank_of(2, limit=answered)
    with pytest.raises(ConnectionFailed):
        perform(experiment, broken, tmp_path / "meis", quiet=True)
    again = bank_of(2)
    result = perform(experiment, again, tmp_path / "meis", quiet=True)
    xarray.testing.assert_identical(result.dataset, expected)
    if answered > 60:
        assert again.asked < whole.asked - 30
    assert {path.stem for path in (tmp_path / "meis").glob("*.png")} == {"mei", "ascent", "diverse"}


def test_natural_images_are_beaten_at_their_own_contrast_and_in_the_mask(tmp_path: Path) -> None:
    bank, rng = bank_of(3), np.random.default_rng(1)
    pixels = rng.integers(0, 256, (40, 36, 64), dtype=np.uint8)
    even, _, _ = bank.filters()
    pixels[17] = np.clip(
        LUMINANCE + 120 * even[:, 1].reshape(36, 64) / np.abs(even[:, 1]).max(), 0, 255
    )  # one neuron's Gabor lies among them
    np.save(tmp_path / "all.npy", pixels)
    (tmp_path / "folder").mkdir()
    for i, page in enumerate(pixels):
        Image.fromarray(page).save(tmp_path / "folder" / f"{i:02}.png")
    from_array = search(natural=str(tmp_path / "all.npy")).run(bank).dataset
    from_folder = search(natural=str(tmp_path / "folder")).run(bank).dataset
    xarray.testing.assert_equal(from_array, from_folder.drop_vars("best_natural_file"))
    responses = bank.responses(pixels.astype(float))
    np.testing.assert_allclose(from_array["best_natural"], responses.max(0), rtol=1e-5)
    np.testing.assert_array_equal(from_array["best_natural_index"], responses.argmax(0))
    assert from_array["best_natural_index"][1] == 17
    assert (from_array["best_natural_in_mask"].values <= 1.01 * from_array["response"].values).all()
    assert (from_array["beats_natural"].values == (from_array["response"] > from_array["best_natural"]).values).all()


def test_natural_images_of_another_size_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.zeros((3, 36, 65), np.uint8))
    for path in ("other.npy", "nothing.npy", "no-folder"):
        with pytest.raises(InvalidArgument):
            search(natural=str(tmp_path / path)).run(bank_of(2))


# The canvas


def canvas_of(shape: tuple[int, int, int], rng: np.random.Generator) -> Canvas:
    channels = tuple(
        Channel(name=f"c{i}", unit="grey level", mean=float(rng.uniform(90, 130)), std=float(rng.uniform(40, 70)))
        for i in range(shape[0])
    )
    detail = GaborBank(1).mouse("BANK")
    return Canvas.of(MouseDetail(**{**vars(detail), "image_shape": shape, "image_channels": channels}))


@pytest.mark.parametrize(
    ("shape", "factor"), [((1, 144, 256), 4), ((2, 36, 64), 1), ((1, 18, 32), 1), ((1, 72, 100), 2)]
)
def test_pulling_back_is_the_transpose_of_showing(shape: tuple[int, int, int], factor: int) -> None:
    rng = np.random.default_rng(2)
    canvas = canvas_of(shape, rng)
    assert canvas.factor == factor
    images, gradient = rng.normal(size=(3, *canvas.grid)), rng.normal(size=(3, *shape)).astype(np.float32)
    linear = canvas.show(images).astype(float) - canvas.show(np.zeros(canvas.grid))
    np.testing.assert_allclose((linear * gradient).sum(), (images * canvas.pull_back(gradient)).sum(), rtol=1e-4)
    smooth = np.cumsum(np.cumsum(images, -1), -2) / 50
    np.testing.assert_allclose(canvas.read(canvas.show(smooth)), smooth, atol=0.3 if factor > 1 else 1e-4)


def test_slopes_are_of_each_neuron_by_its_own_image() -> None:
    bank, rng = bank_of(3, shape=(72, 128)), np.random.default_rng(3)
    subject = Subject.of(bank, "BANK")
    canvas = Canvas.of(subject.mouse)
    assert canvas.grid == (1, 36, 64)
    images, along = rng.normal(0, 0.4, (3, 15, *canvas.grid)), rng.normal(size=(3, 15, *canvas.grid))
    responses, slope = slopes(subject, canvas, images)
    np.testing.assert_allclose(responses, respond_each(subject, canvas, images), rtol=1e-5)
    rise = [
        (bank.responses(canvas.show(images[row] + 0.01 * along[row])[:, 0].astype(float))
         - bank.responses(canvas.show(images[row] - 0.01 * along[row])[:, 0].astype(float)))[:, row] / 0.02
        for row in range(3)
    ]  # fmt: skip
    np.testing.assert_allclose((slope * along).sum((2, 3, 4)), rise, rtol=0.02, atol=2e-3)


# Bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recipe": "magic"}, "walker2019"),
        ({"steps": 0}, "steps"),
        ({"starts": 0}, "starts"),
        ({"size": 0.0}, "size"),
        ({"share": 1.5}, "share"),
        ({"diverse": 1}, "diverse"),
        ({"neuron_ids": (7,)}, "no such neurons"),
    ],
)
def test_impossible_searches_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        search(**options).run(bank_of(2))


def test_all_neurons_of_a_large_mouse_are_not_searched_by_oversight() -> None:
    bank = GaborBank(501, shape=(6, 8))
    with pytest.raises(InvalidArgument, match="--best 20"):
        search(steps=1).run(bank)
    assert bank.asked == 0


def test_a_predictor_without_gradients_is_refused() -> None:
    class Plain:
        def __init__(self) -> None:
            bank = bank_of(2)
            self.predict, self.mice, self.mouse, self.neurons = bank.predict, bank.mice, bank.mouse, bank.neurons

    with pytest.raises(InvalidArgument, match="no gradients"):
        search().run(Plain())


def test_parameters_are_written_out_and_come_back() -> None:
    experiment = search(recipe="walker2019", steps=7)
    content = experiment.to_dict()
    assert (content["steps"], content["first_step"], content["first_blur"]) == (7, 0.05, 1.5)
    assert MostExcitingInputs.from_dict(content) == experiment


@pytest.mark.slow
def test_the_command_finds_images_of_a_served_twin(
    demo_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--best", "2", "--recipe", "quick", "--steps", "5", "--starts", "1", "--noise", "8", "--quiet"]
    output = tmp_path / "meis"
    assert main(["mei", "SIM1", *options, "--url", demo_server.url, "--output", str(output)]) == 0
    assert "response stds" in capsys.readouterr().out
    dataset = Result.load(output).dataset
    assert dataset["mei"].shape == (2, 1, 144, 256)
    trace = dataset["mei_trace"].values[:, 0]
    assert (trace[:, -1] > 1.5 * trace[:, 0]).all()
