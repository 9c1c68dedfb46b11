"""Attention over trials, on a predictor whose maps are known: a blob that follows the gaze along x."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import scipy.stats
import xarray
from support.gabor_bank import GaborBank
from support.live_server import Server
from v1t_client import Attention, ConnectionFailed, InvalidArgument
from v1t_client._cli import main
from v1t_client.insilico import Result, perform
from v1t_client.insilico.experiments.attention import AttentionMaps, center_of_mass, correlation

N = 70


class Looking(GaborBank):
    """Two members; the second looks half as far. What it is asked is kept in `seen`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[dict[str, Any]] = []

    def attention(self, mouse: str, image: Any, *, model: Any = None, **state: Any) -> Attention:
        images = np.asarray(image)
        self.asked += len(images)
        if self.limit is not None and self.asked > self.limit:
            raise ConnectionFailed("gone")
        self.seen.append({"image": images, **state})
        gaze = np.broadcast_to(state.get("pupil_center", (330, 220)), (len(images), 2))
        y, x = np.mgrid[:36, :64]
        maps = np.stack(
            [
                np.exp(-0.5 * ((x - 31.5 - far * (gaze[:, :1, None] - 330)) ** 2 + (y - 12.0) ** 2) / 3**2)
                for far in (1.0, 0.5)
            ],
            axis=1,
        )
        return Attention(maps=maps.astype(np.float32), mouse=mouse, model=self.model)


@pytest.fixture
def trials(tmp_path: Path) -> Path:
    """A folder with images, behaviour and gaze."""
    rng, folder = np.random.default_rng(5), tmp_path / "trials"
    folder.mkdir()
    np.save(folder / "images.npy", rng.integers(0, 256, (N, 36, 64), dtype=np.uint8))
    np.save(folder / "behavior.npy", rng.normal(size=(N, 3)))
    np.save(folder / "pupil_center.npy", rng.normal((330, 220), (6, 6), (N, 2)))
    return folder


def test_center_of_mass_is_the_weighted_mean_of_places() -> None:
    maps = np.random.default_rng(0).uniform(size=(2, 3, 5, 8))
    centers = center_of_mass(maps)
    x, y = np.linspace(-1 + 1 / 8, 1 - 1 / 8, 8), np.linspace(-1 + 1 / 5, 1 - 1 / 5, 5)
    for index in np.ndindex(2, 3):
        page = maps[index] / maps[index].sum()
        np.testing.assert_allclose(centers[index], [(page * x).sum(), (page * y[:, None]).sum()])


def test_correlation_is_pearson_s_with_its_p_value() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=30)
    b = 0.4 * a + rng.normal(size=30)
    r, p = correlation(a, b)
    assert r == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert p == pytest.approx(2 * scipy.stats.t.sf(abs(r) * np.sqrt(28 / (1 - r**2)), 28))
    assert np.isnan(correlation(np.full(30, 0.1), b)).all()


def test_maps_that_follow_gaze_correlate_with_it(trials: Path) -> None:
    bank = Looking(3)
    experiment = AttentionMaps(mouse="BANK", images=str(trials))
    result = experiment.run(bank)
    dataset, gaze = result.dataset, np.load(trials / "pupil_center.npy")
    assert dataset["attention"].shape == (N, 36, 64)
    np.testing.assert_allclose(dataset["pupil_center_x"], gaze[:, 0], rtol=1e-6)
    assert dataset["correlation_x"] > 0.99
    assert dataset["p_value_x"] < 1e-20
    assert not abs(dataset["correlation_y"]) > 0.3  # the maps' rows do not depend on gaze
    assert (dataset["member_correlation_x"].values > 0.99).all()
    expected = 0.75 * (gaze[:, 0] - 330) / 32  # the mean of both members, in half widths
    np.testing.assert_allclose(dataset["center_x"], expected, atol=0.02)
    assert "|r| = 0.99" in experiment.summarize(result) or "|r| = 1.0" in experiment.summarize(result)
    shown = dataset["shown"].values
    assert (np.diff(gaze[shown, 0]) > 0).all()
    np.testing.assert_array_equal(dataset["shown_image"][3, 0], np.load(trials / "images.npy")[shown[3]])


def test_each_trial_is_shown_in_its_own_state(trials: Path) -> None:
    bank = Looking(3)
    AttentionMaps(mouse="BANK", images=str(trials), running_speed=99.0).run(bank)
    for i, name in enumerate(("pupil_dilation", "pupil_dilation_derivative", "running_speed")):
        asked = np.concatenate([seen[name] for seen in bank.seen])
        np.testing.assert_allclose(asked, np.load(trials / "behavior.npy")[:, i], rtol=1e-6)
    images = np.concatenate([seen["image"] for seen in bank.seen])
    np.testing.assert_array_equal(images[:, 0], np.load(trials / "images.npy"))
    (trials / "behavior.npy").unlink()
    bank.seen.clear()
    AttentionMaps(mouse="BANK", images=str(trials), running_speed=99.0, limit=4).run(bank)
    assert [seen["running_speed"] for seen in bank.seen] == [99.0]
    assert len(bank.seen[0]["image"]) == 4


def test_without_gaze_there_are_maps_and_no_correlation(trials: Path) -> None:
    experiment = AttentionMaps(mouse="BANK", images=str(trials / "images.npy"), limit=5)
    result = experiment.run(Looking(3))
    assert "correlation_x" not in result.dataset
    assert set(experiment.figures(result)) == {"overlays"}
    assert "nothing is correlated" in experiment.summarize(result)


def test_an_interrupted_run_goes_on_and_leaves_a_row_per_image(trials: Path, tmp_path: Path) -> None:
    images = np.concatenate([np.load(trials / "images.npy")] * 5)  # 350: more than are kept at once
    arrays = {name: np.concatenate([np.load(trials / f"{name}.npy")] * 5) for name in ("behavior", "pupil_center")}
    for name, array in {"images": images, **arrays}.items():
        np.save(trials / f"{name}.npy", array)
    experiment = AttentionMaps(mouse="BANK", images=str(trials))
    expected = experiment.run(Looking(3)).dataset
    with pytest.raises(ConnectionFailed):
        perform(experiment, Looking(3, limit=300), tmp_path / "out", quiet=True)
    again = Looking(3)
    result = perform(experiment, again, tmp_path / "out", quiet=True)
    assert again.asked == 350 - 256
    xarray.testing.assert_identical(result.dataset, expected)
    xarray.testing.assert_identical(Result.load(tmp_path / "out").dataset, expected)
    table = pyarrow.parquet.read_table(tmp_path / "out" / "images.parquet")
    assert table.num_rows == 350
    np.testing.assert_array_equal(table["center_x"], expected["center_x"])
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"overlays.png", "gaze.png"}


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("behavior", np.zeros((N - 1, 3)), "does not fit"),
        ("pupil_center", np.full((N, 2), np.nan), "finite"),
        ("images", np.zeros((N, 36, 63)), "another size"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(trials: Path, name: str, array: np.ndarray, says: str) -> None:
    np.save(trials / f"{name}.npy", array)
    with pytest.raises(InvalidArgument, match=says):
        AttentionMaps(mouse="BANK", images=str(trials)).run(Looking(3))


def test_a_predictor_without_attention_is_refused(trials: Path) -> None:
    with pytest.raises(InvalidArgument, match="no attention"):
        AttentionMaps(mouse="BANK", images=str(trials)).run(GaborBank(3))


@pytest.mark.slow
def test_the_command_maps_a_served_twin(
    demo_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(6)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (6, 144, 256), dtype=np.uint8))
    np.save(tmp_path / "pupil_center.npy", rng.normal((335, 222), (10, 6), (6, 2)))
    where = ["--url", demo_server.url, "--output", str(tmp_path / "out"), "--quiet"]
    assert main(["attention", "SIM1", "--images", str(tmp_path), *where]) == 0
    assert "6 attention maps" in capsys.readouterr().out
    dataset = Result.load(tmp_path / "out").dataset
    assert dataset["attention"].shape == (6, 36, 64)
    assert dataset["member_correlation_x"].shape == (3,)
