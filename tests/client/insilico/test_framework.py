"""What every in-silico experiment stands on: the monitor, the screen, the subject, work folders, results, receipts."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import xarray
from matplotlib.figure import Figure
from support.gabor_bank import GaborBank
from v1t_client import ConnectionFailed, InvalidArgument, Model, ReplyInvalid
from v1t_client.insilico import Experiment, Monitor, Receipt, Result, Screen, Subject, Work, perform

MONITOR = Monitor(width_cm=56.5, height_cm=31.8, distance_cm=15)


@dataclass(frozen=True, kw_only=True)
class Steps(Experiment):
    """Mean response to `n_steps` grey levels, one request each, kept after each."""

    name: ClassVar[str] = "steps"
    n_steps: int = 5

    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        saved = work.load("steps") or {"done": np.array(0), "total": np.zeros(len(subject))}
        done, total = int(saved["done"]), saved["total"]
        with work.progress(self.n_steps, "steps", done=done) as bar:
            for step in range(done, self.n_steps):
                total = total + subject.respond(subject.screen.blank() + 5 * step)[0]
                work.save("steps", done=step + 1, total=total)
                bar.advance(1)
        return subject.dataset({"response": ("neuron", total / self.n_steps, {"units": "1"})})

    def draw(self, result: Result) -> dict[str, Any]:
        figure = Figure(figsize=(2, 2))
        figure.add_subplot().plot(result.dataset["response"])
        return {"response": figure}


# The monitor


def test_a_degree_is_what_trigonometry_says_at_the_screens_middle() -> None:
    monitor = MONITOR.fitted(144, 256)
    pixel = 56.5 / 256
    assert monitor.pixels_per_degree == pytest.approx(15 * np.tan(np.pi / 180) / pixel, rel=2e-3)
    assert monitor.degrees(monitor.pixels([3.0, 7.0])) == pytest.approx([3.0, 7.0])
    azimuth, elevation = monitor.angles([127.5, 255.5], [71.5, 71.5])
    assert azimuth == pytest.approx([0, np.degrees(np.arctan(56.5 / 2 / 15))], rel=2e-3, abs=1e-9)
    assert elevation == pytest.approx([0, 0])
    assert monitor.angles(127.5, 0)[1] > 0  # up


def test_monitor_is_read_from_words_and_comes_back_from_a_receipt() -> None:
    monitor = Monitor.parse("56.5x31.8cm @ 15cm")
    assert monitor == MONITOR
    fitted = monitor.fitted(144, 256)
    assert Monitor.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
    for bad in ("56.5@15", "0x31@15", "31.8x56.5"):
        with pytest.raises(InvalidArgument):
            Monitor.parse(bad)
    with pytest.raises(InvalidArgument, match="square pixels"):
        Monitor.parse("31.8x56.5@15").fitted(144, 256)
    with pytest.raises(InvalidArgument, match="another size"):
        fitted.fitted(36, 64)


def test_degrees_without_a_monitor_are_refused() -> None:
    screen = Screen.of(GaborBank().mouse("BANK"))
    assert screen.unit == "px"
    with pytest.raises(InvalidArgument, match="monitor"):
        screen.in_unit("deg")


# The screen


def test_grating_has_its_frequency_direction_phase_and_contrast() -> None:
    screen = Screen.of(GaborBank(shape=(72, 128)).mouse("BANK"))
    image = screen.grating(direction=30, frequency=0.05, phase=40, contrast=0.6)[0]
    y, x = np.mgrid[:72, :128]
    along = (x - 63.5) * np.cos(np.pi / 6) + (y - 35.5) * np.sin(np.pi / 6)
    expected = 110 * (1 + 0.6 * np.cos(2 * np.pi * 0.05 * along + np.radians(40)))
    np.testing.assert_allclose(image, expected, atol=1e-3)


def test_lengths_in_degrees_are_the_same_picture_as_in_pixels() -> None:
    mouse = GaborBank(shape=(72, 128)).mouse("BANK")
    degrees, pixels = Screen.of(mouse, monitor=MONITOR), Screen.of(mouse)
    k = degrees.px
    assert k == pytest.approx(MONITOR.fitted(72, 128).pixels_per_degree)
    a = degrees.gabor(direction=20, frequency=0.08, sigma=6, x=5, y=-3, aspect=1.5)
    b = pixels.gabor(direction=20, frequency=0.08 / k, sigma=6 * k, x=5 * k, y=-3 * k, aspect=1.5)
    np.testing.assert_allclose(a, b, atol=1e-3)
    x, y = degrees.place(63.5 + 5 * k, 35.5 - 3 * k)
    assert (x, y) == (pytest.approx(5), pytest.approx(-3))


def test_iso_surround_continues_the_center_and_cross_surround_does_not() -> None:
    screen = Screen.of(GaborBank(shape=(72, 128)).mouse("BANK"))
    wave = {"direction": 15.0, "frequency": 0.06, "phase": 70.0, "contrast": 0.8}
    iso = screen.center_surround(**wave, surround_direction=15, diameter=30, surround_contrast=0.8)
    np.testing.assert_allclose(iso, screen.grating(**wave), atol=1e-3)
    cross = screen.center_surround(**wave, surround_direction=105, diameter=30, surround_contrast=0.8)
    y, x = np.mgrid[:72, :128]
    radius = np.hypot(x - 63.5, y - 35.5)
    inside, outside = radius < 14, radius > 16
    np.testing.assert_allclose(cross[0][inside], screen.grating(**wave)[0][inside], atol=1e-3)
    turned = screen.grating(**{**wave, "direction": 105})[0]
    np.testing.assert_allclose(cross[0][outside], turned[outside], atol=1e-3)


def test_plaid_is_two_gratings_and_a_ramp_scales_contrast_alone() -> None:
    screen = Screen.of(GaborBank().mouse("BANK"), luminance=90)
    plaid = screen.plaid(direction=10, frequency=0.1, angle=60)
    parts = screen.grating(direction=[10, 70], frequency=0.1, contrast=0.5)
    np.testing.assert_allclose(plaid[0], parts.sum(0) - 90, atol=1e-3)
    ramp = screen.contrast_ramp(plaid[0], [0, 0.5, 1])
    np.testing.assert_allclose(ramp.mean((1, 2)) - 90, np.array([0, 0.5, 1]) * (plaid.mean() - 90), atol=1e-3)
    np.testing.assert_allclose(ramp.std((1, 2)), np.array([0, 0.5, 1]) * plaid.std(), rtol=1e-4, atol=1e-3)


def test_images_are_in_grey_levels_around_the_background() -> None:
    screen = Screen.of(GaborBank().mouse("BANK"))
    image = screen.grating(direction=np.arange(0, 180, 30), frequency=0.1)
    assert image.shape == (6, 36, 64)
    assert image.dtype == np.float32
    assert 0 <= image.min() < 1
    assert 219 < image.max() <= 220
    assert (screen.blank(2) == 110).all()


# The subject


def test_subject_asks_only_its_neurons_in_its_order_in_its_state() -> None:
    bank = GaborBank()
    ids = bank.ids[[7, 2, 19]]
    subject = Subject.of(bank, "BANK", neuron_ids=ids.tolist(), state={"running_speed": 12.0, "pupil_dilation": None})
    images = subject.screen.grating(direction=np.linspace(0, 180, 70), frequency=0.15)
    expected = bank.responses(images, speed=12.0)
    np.testing.assert_allclose(subject.respond(images), expected[:, [7, 2, 19]], rtol=1e-5)
    speeds = np.linspace(0, 20, 70)
    expected = bank.responses(images, speed=speeds)
    np.testing.assert_allclose(subject.only([1]).respond(images, running_speed=speeds), expected[:, [2]], rtol=1e-5)
    np.testing.assert_array_equal(subject.neurons.coordinates_um, bank.coordinates[[7, 2, 19]])


def test_all_neurons_in_another_order_are_answered_in_that_order() -> None:
    bank = GaborBank(6)
    order = [4, 0, 5, 2, 1, 3]
    subject = Subject.of(bank, "BANK", neuron_ids=bank.ids[order].tolist())
    image = subject.screen.grating(direction=40, frequency=0.15)
    np.testing.assert_allclose(subject.respond(image), bank.responses(image)[:, order], rtol=1e-5)


def test_unknown_neurons_and_missing_scores_are_named() -> None:
    bank = GaborBank()
    with pytest.raises(InvalidArgument, match="no such neurons; got 5"):
        Subject.of(bank, "BANK", neuron_ids=[int(bank.ids[0]), 5])
    best = Subject.of(bank, "BANK", best=3)
    np.testing.assert_array_equal(best.neurons.neuron_ids, bank.ids[np.argsort(-bank.scores)[:3]])
    bank.scores[:] = np.nan
    with pytest.raises(InvalidArgument, match="no test scores"):
        Subject.of(bank, "BANK", best=3)


def test_a_bundle_that_is_swapped_in_the_middle_is_noticed() -> None:
    bank = GaborBank()
    subject = Subject.of(bank, "BANK")
    bank.model = Model(name="bank", hash="cd" * 32)
    with pytest.raises(ReplyInvalid, match="changed its bundle"):
        subject.respond(subject.screen.blank())


# Runs


def test_a_run_leaves_labelled_arrays_a_table_figures_and_a_receipt(tmp_path: Path, rendered_figures: None) -> None:
    bank = GaborBank()
    ids = tuple(bank.ids[:4].tolist())
    experiment = Steps(mouse="BANK", neuron_ids=ids, monitor=MONITOR, seed=3, pupil_center=(1.0, 2.0))
    made = perform(experiment, bank, tmp_path / "out", quiet=True, where="bank", command="v1t steps BANK")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "result.nc", "neurons.parquet", "receipt.json", "response.png", "response.pdf",
    }  # fmt: skip
    result = Result.load(tmp_path / "out")
    xarray.testing.assert_identical(result.dataset, made.dataset)
    np.testing.assert_array_equal(result.dataset["neuron"], ids)
    np.testing.assert_array_equal(result.dataset["y_um"], bank.coordinates[:4, 1])
    assert result.dataset["response"].attrs["units"] == "1"

    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "out" / "neurons.parquet").to_pydict()
    assert table["neuron_id"] == list(ids)
    np.testing.assert_array_equal(table["response"], made.dataset["response"])
    receipt = Receipt.load(tmp_path / "out")
    assert receipt == result.receipt
    assert receipt.model["hash"] == bank.model.hash
    assert receipt.screen["monitor"]["pixels_per_degree"] > 0
    assert receipt.assumed == ["running_speed left out: the training median was used"]
    assert Steps.from_dict(receipt.parameters) == experiment
    again = Steps.from_dict(receipt.parameters).run(bank)
    xarray.testing.assert_identical(again.dataset, made.dataset)


def test_a_result_becomes_a_frame_and_files_with_its_receipt(tmp_path: Path) -> None:
    import pandas

    result = Steps(mouse="BANK", seed=3).run(GaborBank())
    for name in ("out.parquet", "out.nc", "out.zarr"):
        result.save(tmp_path / name)
    table = pandas.read_parquet(tmp_path / "out.parquet")
    for frame in (result.to_pandas(), table):
        assert Receipt.from_json(frame.attrs["receipt"]) == result.receipt
        for name, values in result.table().items():
            np.testing.assert_array_equal(frame[name], values)
    for stored in (xarray.load_dataset(tmp_path / "out.nc"), xarray.open_zarr(tmp_path / "out.zarr").load()):
        assert Receipt.from_json(stored.attrs.pop("receipt")) == result.receipt
        xarray.testing.assert_equal(stored, result.dataset)
        assert stored["response"].attrs == result.dataset["response"].attrs


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    bank = GaborBank(limit=3)
    experiment = Steps(mouse="BANK")
    with pytest.raises(ConnectionFailed):
        perform(experiment, bank, tmp_path / "out", quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out.partial"}
    with pytest.raises(InvalidArgument, match="unfinished run"):
        Result.load(tmp_path / "out")
    with pytest.raises(InvalidArgument, match="differs in n_steps"):
        perform(Steps(mouse="BANK", n_steps=9), bank, tmp_path / "out", quiet=True)
    fresh = GaborBank()
    result = perform(experiment, fresh, tmp_path / "out", quiet=True)
    assert fresh.asked == 2  # of 5; three were kept
    xarray.testing.assert_identical(result.dataset, experiment.run(GaborBank()).dataset)


def test_a_run_that_was_refused_before_any_work_is_not_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed):
        perform(Steps(mouse="BANK", n_steps=9), GaborBank(limit=0), tmp_path / "out", quiet=True)
    perform(Steps(mouse="BANK", n_steps=2), GaborBank(), tmp_path / "out", quiet=True)
    assert Receipt.load(tmp_path / "out").parameters["n_steps"] == 2


def test_a_result_is_overwritten_only_by_force(tmp_path: Path) -> None:
    bank = GaborBank()
    perform(Steps(mouse="BANK"), bank, tmp_path / "out", quiet=True)
    before = (tmp_path / "out" / "receipt.json").read_text()
    with pytest.raises(InvalidArgument, match="--force"):
        perform(Steps(mouse="BANK", n_steps=2), bank, tmp_path / "out", quiet=True)
    assert (tmp_path / "out" / "receipt.json").read_text() == before
    perform(Steps(mouse="BANK", n_steps=2), bank, tmp_path / "out", quiet=True, force=True)
    assert Receipt.load(tmp_path / "out").parameters["n_steps"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (False, False), (True, True)])
def test_a_run_says_how_long_the_rest_takes_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, quiet: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("v1t_client._large_sets.progress._EVERY", 0.0)
    Steps(mouse="BANK").run(GaborBank(), Work(quiet=quiet))
    said = stream.getvalue()
    if quiet or not terminal:
        assert said == ""
    else:
        assert re.search(r"steps: 2 of 5, .*/s, \d+ s left", said)
        assert said.endswith("\r\x1b[K")


def test_what_is_no_receipt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_text('{"experiment": "rf"}')
    with pytest.raises(InvalidArgument, match="not a receipt"):
        Receipt.load(tmp_path)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        Receipt.load(tmp_path / "nothing.json")
    with pytest.raises(InvalidArgument, match="no such parameters; got colour"):
        Steps.from_dict({"mouse": "BANK", "colour": 1})
