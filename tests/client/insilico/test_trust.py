"""What results say about themselves: the state that was held, notes, simulation, and what a number depends on."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from matplotlib.figure import Figure
from PIL import Image
from support.gabor_bank import GaborBank
from v1t_client import BehaviorState, ConnectionFailed, InvalidArgument, Model, MouseDetail, Note, Prediction
from v1t_client.insilico import EXPERIMENTS, Receipt, Result, Subject, perform
from v1t_client.insilico.experiments.behavior import Behavior
from v1t_client.insilico.experiments.receptive_field_figures import median_size, size_bias
from v1t_client.insilico.experiments.receptive_fields import ReceptiveFields
from v1t_client.insilico.experiments.screening import Screening
from v1t_client.insilico.experiments.tuning import Tuning
from v1t_client.insilico.fitting.tuning_curves import orientation_peaks
from v1t_client.insilico.framework.checkpoint import new_folder
from v1t_client.insilico.framework.plotting import add_footer
from v1t_client.insilico.most_exciting_inputs.experiment import MostExcitingInputs
from v1t_client.insilico.stimuli.pictures import Pictures

SHAPE = (18, 32)
MODEL = Model(name="demo", hash="cd" * 32, simulated=True, notice="Simulated.", version="7")


class Recorded(GaborBank):
    """A bank that records the options of its predictions, has a state "running", and notes what is too fast."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.options: list[dict[str, Any]] = []
        self.standardized = False

    def predict(self, mouse: str, image: Any, **options: Any) -> Prediction:
        self.options.append(options)
        prediction = super().predict(mouse, image, **options)
        fast = options.get("running_speed") is not None and np.max(options["running_speed"]) > 18
        return replace(prediction, notes=(Note("outside_recording", "running_speed", "too fast"),) if fast else ())

    def mouse(self, mouse: str, *, model: str | None = None) -> MouseDetail:
        running = BehaviorState("running", "", 30, (50.0, 0.5, 21.0), (331.0, 221.0))
        detail = super().mouse(mouse, model=model)
        return replace(detail, states=(running,), standardized_inputs=self.standardized)


@pytest.fixture
def bank() -> Recorded:
    bank = Recorded(n=9, shape=SHAPE, model=MODEL)
    bank.is_complex[:] = False
    bank.frequency[:], bank.phase[:] = 0, 0
    return bank


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_experiment_holds_the_median_but_the_search_whose_literature_holds_the_mean(name: str) -> None:
    assert EXPERIMENTS[name].state == ("mean" if name == "mei" else "median")


def test_the_state_is_passed_on_and_written_into_result_receipt_and_figures(bank: Recorded, tmp_path: Path) -> None:
    experiment = Behavior(mouse="BANK", channels=("running_speed",), n_images=2, state="running", pupil_dilation=44.0)
    footers: list[str] = []
    figures = experiment.figures

    class Drawn(Behavior):
        def figures(self, result: Result) -> dict[str, Any]:
            footers.append(result.caption())
            return figures(result)

    result = perform(Drawn(**experiment.__dict__), bank, tmp_path / "out", quiet=True)
    assert {options["state"] for options in bank.options} == {"running"}
    loaded = Result.load(tmp_path / "out")
    held = {
        "pupil_dilation": 44.0, "pupil_dilation_derivative": 0.5, "running_speed": 21.0,
        "pupil_center_x": 331.0, "pupil_center_y": 221.0,
    }  # fmt: skip
    assert loaded.receipt.held == held
    attributes = loaded.dataset.attrs
    table = parquet.read_schema(tmp_path / "out" / "neurons.parquet").metadata
    assert (table[b"simulated"], table[b"state"], table[b"model"]) == (b"1", b"running", b"demo")
    assert (attributes["simulated"], attributes["state"], attributes["model_version"]) == (1, "running", "7")
    assert "running_speed 21 cm/s" in attributes["held"]
    for words in ("SIMULATED", "mouse BANK", "demo@7 cdcdcdcdcdcd", "'running'", "pupil_dilation 44 eye-camera px"):
        assert words in footers[0] == result.caption()
    with pytest.raises(InvalidArgument, match="no such state"):
        Behavior(mouse="BANK", state="rest").run(bank)


def test_an_index_of_gaze_holds_the_other_coordinate_at_the_state(bank: Recorded) -> None:
    Behavior(mouse="BANK", channels=("pupil_center_x",), n_images=1, state="running").run(bank)
    assert {tuple(options["pupil_center"])[1] for options in bank.options} == {221.0}


def test_a_receipt_from_before_named_states_is_replayed_at_the_mean() -> None:
    old = {"experiment": "rf", "parameters": {"mouse": "A", "n_images": 500}, "model": {}}
    assert ReceptiveFields.from_dict(Receipt.from_json(json.dumps(old)).parameters).state == "mean"
    new = ReceptiveFields(mouse="A")
    receipt = Receipt(experiment="rf", parameters=new.to_dict(), model={})
    assert ReceptiveFields.from_dict(Receipt.from_json(receipt.to_json()).parameters) == new


def test_strict_is_passed_on_only_where_it_is_given(bank: Recorded) -> None:
    Behavior(mouse="BANK", channels=("running_speed",), n_images=1).run(bank)
    assert all("strict" not in options for options in bank.options)
    Behavior(mouse="BANK", channels=("pupil_dilation",), n_images=1, strict=True).run(bank)
    assert bank.options[-1]["strict"] is True


def test_notes_of_an_interrupted_run_are_kept(tmp_path: Path) -> None:
    asked = Behavior(
        mouse="BANK", channels=("running_speed", "pupil_dilation"), values=("running_speed=0,30",), n_images=2
    )
    with pytest.raises(ConnectionFailed):
        perform(asked, Recorded(n=3, shape=SHAPE, limit=6), tmp_path / "out", quiet=True)
    result = perform(asked, Recorded(n=3, shape=SHAPE), tmp_path / "out", quiet=True)
    fast = [note for note in result.receipt.notes if note["input"] == "running_speed"]
    assert [note["code"] for note in fast] == ["outside_recording"]
    assert fast[0]["count"] >= 2  # of the experiment itself and of the reply before the interruption
    assert "outside what was recorded: running_speed" in result.caption()
    assert any(line.startswith("note: ") for line in result.receipt.lines())


# What a size depends on


def test_the_stated_bias_of_sizes_is_what_more_images_show(bank: Recorded) -> None:
    sizes = {}
    for n in (1500, 3000, 30_000):
        data = ReceptiveFields(mouse="BANK", n_images=n, seed=1).run(bank).dataset
        assert data["reliable"].all()
        sizes[n] = (data["sigma_major"] + data["sigma_minor"]).values / 2
        if n == 3000:
            half = data["sigma_half"].values
    assert np.median(half / sizes[3000]) == pytest.approx(np.median(sizes[1500] / sizes[3000]), abs=0.03)
    bias, error = size_bias(half, sizes[3000])
    left = size_bias(half, sizes[3000])[0] / np.sqrt(10)  # at 30,000 images
    assert bias - left == pytest.approx(np.median(sizes[3000] / sizes[30_000]) - 1, abs=max(0.03, 2 * error))


def test_a_size_that_depends_on_the_number_of_images_says_so_and_is_printed_once(bank: Recorded) -> None:
    experiment = ReceptiveFields(mouse="BANK", n_images=1500)
    result = experiment.run(bank)
    data = result.dataset
    size = ((data["sigma_major"] + data["sigma_minor"]) / 2).values
    bias = (np.median(data["sigma_half"] / size) - 1) / (np.sqrt(2) - 1)
    noted = [note["message"] for note in result.receipt.notes if note["code"] == "size_depends_on_images"]
    assert len(noted) == int(abs(bias) >= 0.02)
    assert all(f"{abs(bias):.0%} too" in message for message in noted)
    words = median_size(result)
    assert f"{np.median(size):.2f} px" in words
    assert words in experiment.summarize(result)
    assert words in experiment.figures(result)["sizes"].get_suptitle().replace("\n", " ")


# Two peaks


def test_two_peaks_are_found_where_they_are_and_only_where_they_are() -> None:
    theta = np.arange(12) * 15.0

    def bump(center: float, width: float = 20) -> np.ndarray:
        away = np.abs((theta - center + 90) % 180 - 90)
        return np.exp(-0.5 * (away / width) ** 2)

    rng = np.random.default_rng(0)
    for _ in range(50):
        a, gap, second = rng.uniform(0, 180), rng.uniform(75, 105), rng.uniform(0.6, 0.9)
        first, other = orientation_peaks((0.1 + bump(a, 12) + second * bump(a + gap, 12))[None], theta)
        for found, true in ((first[0], a), (other[0], a + gap)):
            assert abs((found - true + 90) % 180 - 90) < 6
        single = orientation_peaks((0.1 + bump(a, rng.uniform(12, 40)))[None], theta)
        assert np.isnan(single[1][0])
        assert abs((single[0][0] - a + 90) % 180 - 90) < 6
    assert np.isnan(orientation_peaks(np.ones((1, 12)) + 0.01 * rng.standard_normal((1, 12)), theta)[1]).all()
    weak = (0.1 + bump(30, 12) + 0.1 * bump(120, 12))[None]
    assert np.isnan(orientation_peaks(weak, theta)[1]).all()


def test_a_neuron_of_two_peaks_is_not_given_one_orientation_silently() -> None:
    class Plaid(GaborBank):
        """The first neuron answers to its orientation and, less, to the one across it."""

        def responses(self, images: np.ndarray, speed: Any = None, dilation: Any = None) -> np.ndarray:
            one = super().responses(images, speed, dilation)
            kept, self.orientation = self.orientation, self.orientation + np.pi / 2
            across = super().responses(images, speed, dilation)
            self.orientation = kept
            one[:, 0] += 0.7 * across[:, 0]
            return one

    bank = Plaid(n=4)
    experiment = Tuning(mouse="BANK", contrasts=(0.0, 0.25, 0.5, 0.75, 1.0))
    result = experiment.run(bank)
    data = result.dataset
    assert np.isfinite(data["second_orientation"].values).tolist() == [True, False, False, False]
    assert data["orientation_ok"].values.tolist() == [False, True, True, True]
    apart = data["preferred_orientation"].values - np.degrees(bank.orientation)
    assert (np.abs((apart + 90) % 180 - 90) < 8).all()
    assert "without 1 that have two peaks" in experiment.summarize(result)
    titles = [axis.get_title() for axis in experiment.figures(result)["orientation"].axes]
    assert sum("two peaks" in title for title in titles) == 1


# Figures


def test_counts_are_whole_and_effects_share_one_scale(bank: Recorded) -> None:
    experiment = Behavior(mouse="BANK", channels=("running_speed", "pupil_dilation"), n_images=2)
    figure = experiment.figures(experiment.run(bank))["curves"]
    figure.draw_without_rendering()
    above, below = figure.axes[:2], figure.axes[2:]
    assert above[0].get_ylim() == above[1].get_ylim()
    assert below[0].get_xlim() == pytest.approx(below[1].get_xlim(), rel=0.2)
    assert all(tick == round(tick) for tick in below[0].get_yticks())
    for axis, words in ((above[0], ["middle half of the neurons", "median neuron"]), (below[0], ["median"])):
        assert [text.get_text() for text in axis.get_legend().get_texts()] == words


def test_a_footer_is_below_everything_and_inside_the_figure() -> None:
    made = Figure(figsize=(3, 2), layout="constrained")
    axis = made.add_subplot()
    axis.set_xlabel("x")
    add_footer(made, "words " * 60)
    made.draw_without_rendering()
    (footer,) = made.texts
    box, label = footer.get_window_extent(), axis.xaxis.label.get_window_extent()
    assert 0 <= box.y0 < box.y1 <= label.y0
    assert 0 <= box.x0 < box.x1 <= made.bbox.width
    assert made.get_figheight() > 2


# Pictures


def test_grey_levels_are_refused_for_standardised_mice(bank: Recorded, tmp_path: Path) -> None:
    bank.standardized = True
    pixels = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)
    (tmp_path / "png").mkdir()
    (tmp_path / "npy").mkdir()
    Image.fromarray(pixels[0]).save(tmp_path / "png" / "1.png")
    np.save(tmp_path / "npy" / "1.npy", pixels[0])
    np.save(tmp_path / "stack.npy", pixels)
    for images in ("png", "npy", "stack.npy"):
        with pytest.raises(InvalidArgument, match=r"standardised.*--recordings"):
            Screening(mouse="BANK", images=str(tmp_path / images)).run(bank)
    np.save(tmp_path / "stack.npy", (pixels / 60 - 2).astype(np.float32))
    result = Screening(mouse="BANK", images=str(tmp_path / "stack.npy"), top=1).run(bank)
    assert result.dataset.attrs["standardized_inputs"] == 1
    assert result.receipt.standardized_inputs
    assert "standardised inputs" in result.caption()


def test_an_image_file_of_several_frames_is_refused_by_name(tmp_path: Path) -> None:
    frames = [Image.new("L", SHAPE[::-1], level) for level in (0, 200)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidArgument, match=r"moving\.png of 2 frames"):
        Pictures.open(tmp_path, (1, *SHAPE)).read([0])


def test_pictures_are_read_in_natural_order(tmp_path: Path) -> None:
    for level in (10, 9, 1):
        Image.new("L", SHAPE[::-1], level).save(tmp_path / f"{level}.png")
    pictures = Pictures.open(tmp_path, (1, *SHAPE))
    assert pictures.names == ("1.png", "9.png", "10.png")
    assert pictures.read([0, 1, 2])[:, 0, 0, 0].tolist() == [1, 9, 10]


# Full disks


@pytest.mark.parametrize("where", ["to_netcdf", "savefig", "savez"])
def test_a_full_disk_is_said_and_leaves_no_result_and_the_run_resumes(
    bank: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {
        "to_netcdf": "xarray.Dataset.to_netcdf",
        "savefig": "matplotlib.figure.Figure.savefig",
        "savez": "v1t_client.insilico.framework.checkpoint.np.savez",
    }[where]
    experiment = Behavior(mouse="BANK", channels=("running_speed",), n_images=2)
    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        with pytest.raises(InvalidArgument, match=r"No space left on device.*run the same command again"):
            perform(experiment, bank, tmp_path / "out", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert not list(tmp_path.glob("out.partial/made/*")) + list(tmp_path.glob("out.partial/*.tmp"))
    perform(experiment, bank, tmp_path / "out", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_written_is_removed(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "pack") as made:
            made.mkdir()
            (made / "frames.npy").touch()
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InvalidArgument, match="No space left on device"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_the_search_says_that_it_holds_the_mean() -> None:
    assert "--state mean" in MostExcitingInputs.examples
    subject = Subject.of(GaborBank(), "BANK", state={"state": "mean"})
    assert subject.held["running_speed"] == 3.0
