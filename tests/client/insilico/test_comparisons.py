"""Finished results compared: numbers by hand and by SciPy, in any order of neurons; others are refused."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import scipy.stats
import xarray
from v1t_client import InvalidArgument
from v1t_client._cli import main
from v1t_client.insilico import Receipt, Result
from v1t_client.insilico.comparisons.attention_table import AttentionTable
from v1t_client.insilico.comparisons.statistics import holm, paired_test, stars
from v1t_client.insilico.comparisons.twin_figures import twin_figures
from v1t_client.insilico.comparisons.twins import compare_twins, comparison_text, spread_along
from v1t_client.insilico.framework.result import variable

N, H, W = 60, 9, 16
CNN = {"name": "cnn", "hash": "c1" * 32, "members": 5, "simulated": True, "version": "2"}
V1T = {"name": "v1t", "hash": "d2" * 32, "members": 1, "simulated": False, "version": None}


def fields(seed: int, *, n: int = N, model: dict[str, Any] = CNN, **values: Any) -> Result:
    """Receptive fields of random shapes, as `v1t rf` leaves them. Ids and positions in cortex are those of any seed."""
    rng, same = np.random.default_rng(seed), np.random.default_rng(99)
    major = rng.uniform(8, 14, n)
    columns = {
        "center_x": rng.uniform(10, 50, n),
        "center_y": rng.uniform(5, 30, n),
        "sigma_major": major,
        "sigma_minor": major * rng.uniform(0.5, 1, n),
        "angle": rng.uniform(-90, 90, n),
        "fit_r2": rng.uniform(0.2, 0.9, n),
        "peak": rng.uniform(5, 40, n),
        "reliable": rng.uniform(size=n) < 0.85,
        "sigma_half": major * 0.8,
    } | values
    ids = same.permutation(500)[:n]
    dataset = xarray.Dataset(
        {"map": variable(rng.normal(size=(n, H, W)), "1", dims=("neuron", "y", "x"))}
        | {name: variable(column, "px") for name, column in columns.items()},
        coords={
            "neuron": ("neuron", ids),
            **{f"{axis}_um": ("neuron", same.uniform(-300, 300, n).astype(np.float32)) for axis in "xyz"},
            "x": ("x", 4.0 * np.arange(W) + 1.5),
            "y": ("y", 4.0 * np.arange(H) + 1.5),
        },
        attrs={
            "mouse": "A", "model": model["name"], "model_hash": model["hash"], "n_images": 2000, "noise": "white",
            "image_height": 4 * H, "image_width": 4 * W, "state": "median", "held": "running_speed 1 cm/s", "notes": "",
        },
    )  # fmt: skip
    held = {"running_speed": 1.0}
    return Result(dataset, Receipt(experiment="rf", parameters={"contrast": 1.0}, model=model, held=held))


def written(result: Result, folder: Path) -> Path:
    result.write(folder, {})
    return folder


def with_attributes(result: Result, **attributes: Any) -> Result:
    return replace(result, dataset=result.dataset.assign_attrs(attributes))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return written(fields(1), tmp_path / "rf-cnn")


# Statistics


def test_paired_test_is_scipy_s_with_its_effect_size() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 1, (2, 25)) + np.array([[0.5], [0.0]])
    test, expected = paired_test(a, b), scipy.stats.ttest_rel(a, b)
    assert test.p == pytest.approx(expected.pvalue)
    np.testing.assert_allclose(test.interval, expected.confidence_interval(0.95))
    d_z = (a - b).mean() / (a - b).std(ddof=1)
    assert test.effect == pytest.approx(d_z * (1 - 3 / (4 * 24 - 1)))
    for end, tail in zip(test.effect_interval, (0.025, 0.975), strict=True):  # where the found t has this upper tail
        assert scipy.stats.nct.sf(expected.statistic, 24, end * 5) == pytest.approx(tail, rel=1e-4)


def test_many_clear_differences_have_a_finite_interval() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=8_000)
    test = paired_test(a, a - rng.normal(3, 1, 8_000))  # t is 270
    assert test.effect_interval[0] < test.effect < test.effect_interval[1]
    assert test.effect_interval[1] - test.effect_interval[0] == pytest.approx(
        2 * 1.96 * np.sqrt((1 + test.effect**2 / 2) / 8_000), rel=0.02
    )


def test_differences_without_spread_are_not_tested() -> None:
    for a, b in (([1.0], [2.0]), ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])):
        test = paired_test(a, b)
        assert test.difference == -1
        assert np.isnan([test.p, test.effect, *test.interval]).all()


def test_holm_and_stars() -> None:
    corrected = holm([0.01, float("nan"), 0.04, 0.03])
    assert corrected == pytest.approx([0.03, float("nan"), 0.06, 0.06], nan_ok=True)
    assert [stars(p) for p in (0.00001, 0.0005, 0.005, 0.03, 0.05, float("nan"))] == [
        "****", "***", "**", "*", "n.s.", "-"
    ]  # fmt: skip


# Two twins


def test_spread_is_the_diagonal_of_the_covariance() -> None:
    rng = np.random.default_rng(2)
    major, minor, angle = rng.uniform(3, 6, 20), rng.uniform(1, 3, 20), rng.uniform(-180, 180, 20)
    x, y = spread_along(major, minor, angle)
    for i in range(20):
        c, s = np.cos(np.radians(angle[i])), np.sin(np.radians(angle[i]))
        turn = np.array([[c, -s], [s, c]])
        covariance = turn @ np.diag([major[i] ** 2, minor[i] ** 2]) @ turn.T
        np.testing.assert_allclose([x[i] ** 2, y[i] ** 2], np.diag(covariance))


def test_units_are_compared_by_id(first: Path, tmp_path: Path) -> None:
    other = fields(2, model=V1T)
    shuffled = np.random.default_rng(3).permutation(N)
    second = written(replace(other, dataset=other.dataset.isel(neuron=shuffled)), tmp_path / "rf-v1t")
    data = compare_twins(first, second).dataset

    a, b = fields(1).dataset, other.dataset
    by_id: dict[int, list[float]] = {}
    for row, neuron in enumerate(a["neuron"].values):
        rows = row, int(np.flatnonzero(b["neuron"].values == neuron)[0])
        if not all(bool(one["reliable"][i]) for one, i in zip((a, b), rows, strict=True)):
            continue
        by_id[int(neuron)] = [
            float(spread_along(*(one[name][i].item() for name in ("sigma_major", "sigma_minor", "angle")))[axis])
            for axis in (0, 1)
            for one, i in zip((a, b), rows, strict=True)
        ]
    n_dropped = int(0.05 * len(by_id))
    assert n_dropped > 0
    wide = {k for column in range(4) for k in sorted(by_id, key=lambda i: by_id[i][column])[-n_dropped:]}
    kept = sorted(by_id.keys() - wide)
    assert data["neuron"].values[data["compared"].values].tolist() == kept

    sigma_x, sigma_y = (np.array([by_id[i][2 * axis : 2 * axis + 2] for i in kept]).T for axis in (0, 1))
    for name, (of_first, of_second) in {"sigma_x": sigma_x, "sigma_y": sigma_y}.items():
        row = data.sel(quantity=name)
        expected = scipy.stats.ttest_rel(of_first, of_second)
        assert row["p_value"].item() == pytest.approx(expected.pvalue)
        assert row["mean_1"].item() == pytest.approx(of_first.mean())
        assert row["sd_2"].item() == pytest.approx(of_second.std())
        assert row["difference"].item() == pytest.approx((of_first - of_second).mean())
    p = data["p_value"].values
    order = np.argsort(p)
    by_hand = np.minimum(np.maximum.accumulate(p[order] * (4 - np.arange(4))), 1)
    np.testing.assert_allclose(data["p_holm"].values[order], by_hand)

    r2 = {int(i): min(a["fit_r2"].sel(neuron=i).item(), b["fit_r2"].sel(neuron=i).item()) for i in kept}
    best = sorted(kept, key=lambda i: -r2[i])[:12]
    assert data["shown"].values.tolist() == best
    np.testing.assert_array_equal(data["map_2"].values[3], b["map"].sel(neuron=best[3]).values)


def test_swapped_twins_give_the_opposite_difference(first: Path, tmp_path: Path) -> None:
    second = written(fields(2, model=V1T), tmp_path / "rf-v1t")
    there, back = compare_twins(first, second).dataset, compare_twins(second, first).dataset
    np.testing.assert_array_equal(there["compared"], back["compared"])
    np.testing.assert_allclose(there["difference"], -back["difference"])
    np.testing.assert_allclose(there["effect_low"], -back["effect_high"], rtol=1e-6)
    np.testing.assert_allclose(there["p_holm"], back["p_holm"])
    assert (there.attrs["first"], there.attrs["second"]) == ("cnn", "v1t")


def test_the_result_says_which_twins_it_compares(first: Path, tmp_path: Path) -> None:
    second = written(fields(2, model=V1T), tmp_path / "rf-v1t")
    result = compare_twins(first, second)
    caption = result.caption()
    assert "model cnn@2 c1c1c1c1c1c1 and v1t d2d2d2d2d2d2;" in caption
    assert caption.startswith("SIMULATED")
    assert comparison_text(result).startswith(caption)
    assert result.receipt.parameters["models"] == [CNN, V1T]
    same = compare_twins(first, written(fields(2), tmp_path / "rf-again"))
    assert same.dataset.attrs["first"] == "cnn (rf-cnn)"  # one model in both
    assert compare_twins(first, second, names=("CNN", "ViT")).dataset.attrs["second"] == "ViT"
    with pytest.raises(InvalidArgument, match="two names"):
        compare_twins(first, second, names=("CNN",))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda result: with_attributes(result, n_images=4000), "other_noise"),
        (lambda result: replace(result, receipt=replace(result.receipt, held={"running_speed": 9.0})),
         "other_behavior"),
        (lambda result: replace(result, dataset=result.dataset.assign(sigma_half=result.dataset["sigma_major"])),
         "other_bias"),
    ],
)  # fmt: skip
def test_another_cause_of_a_difference_is_noted(first: Path, tmp_path: Path, change: Any, code: str) -> None:
    plain = fields(2, model=V1T, sigma_major=fields(1).dataset["sigma_major"].values)
    columns = ("sigma_minor", "sigma_half", "reliable")
    plain = replace(plain, dataset=plain.dataset.assign({name: fields(1).dataset[name] for name in columns}))
    assert compare_twins(first, written(plain, tmp_path / "plain")).receipt.notes == []
    result = compare_twins(first, written(change(plain), tmp_path / "changed"))
    assert [note["code"] for note in result.receipt.notes] == [code]
    assert result.receipt.notes[0]["message"] in comparison_text(result)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda result: with_attributes(result, mouse="B"), "two mice"),
        (lambda result: replace(result, dataset=result.dataset.isel(neuron=slice(1, None))), "other neurons"),
        (lambda result: replace(result, dataset=result.dataset.assign_coords(neuron=np.arange(N) + 1000)),
         "other neurons"),
        (lambda result: replace(result, dataset=result.dataset.assign_coords(x_um=-result.dataset["x_um"])),
         "another recording"),
        (lambda result: with_attributes(result, image_width=8 * W), "other images"),
        (lambda result: replace(result, dataset=result.dataset.isel(x=slice(1, None))), "other images"),
        (lambda result: replace(result, dataset=result.dataset.assign(reliable=~fields(1).dataset["reliable"])),
         "no unit"),
        (lambda result: replace(result, receipt=replace(result.receipt, experiment="tuning")),
         "not receptive fields"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(first: Path, tmp_path: Path, change: Any, words: str) -> None:
    second = written(change(fields(2, model=V1T)), tmp_path / "rf-v1t")
    with pytest.raises(InvalidArgument, match=words) as caught:
        compare_twins(first, second)
    assert caught.value.got


@pytest.mark.parametrize("n", [1, N])
@pytest.mark.usefixtures("rendered_figures")
def test_figures_are_drawn_of_any_number_of_units(tmp_path: Path, n: int) -> None:
    reliable = {"reliable": np.arange(N) < n}
    folders = [
        written(fields(seed, model=model, **reliable), tmp_path / f"rf-{seed}") for seed, model in ((1, CNN), (2, V1T))
    ]
    result = compare_twins(*folders)
    figures = result.drawn(twin_figures)
    assert set(figures) == {"fields", "sizes", "centers"}
    result.write(tmp_path / "out", figures)
    assert all(path.stat().st_size > 5_000 for path in (tmp_path / "out").glob("*.png"))
    n_compared = int(result.dataset["compared"].sum())
    assert len(figures["fields"].axes) == 2 * min(12, n_compared)
    xarray.testing.assert_identical(Result.load(tmp_path / "out").dataset, result.dataset)


def test_the_command_compares_twins(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = written(fields(2, model=V1T), tmp_path / "rf-v1t")
    line = ["compare", str(first), str(second), "--names", "CNN,V1T", "--output", str(tmp_path / "out")]
    assert main(line) == 0
    out = capsys.readouterr().out
    result = Result.load(tmp_path / "out")
    row = result.dataset.sel(quantity="sigma_y")
    assert f"{row['mean_2'].item():.2f} ± {row['sd_2'].item():.2f}" in out
    assert (tmp_path / "out" / "summary.md").read_text(encoding="utf-8") == out
    table = pyarrow.parquet.read_table(tmp_path / "out" / "neurons.parquet")
    assert table.num_rows == N
    assert {"neuron_id", "sigma_x_1", "sigma_y_2", "center_x_1", "compared"} <= set(table.column_names)
    assert main(line) == 2  # it exists
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert "--url" not in capsys.readouterr().out


# Attention over mice


def attention(mouse: str, r: tuple[float, float], p: tuple[float, float], **attributes: Any) -> Result:
    values = {f"correlation_{axis}": variable(r[i], "1", dims=()) for i, axis in enumerate("xy")}
    values |= {f"p_value_{axis}": variable(p[i], "1", dims=()) for i, axis in enumerate("xy")}
    values["center_x"] = variable(np.zeros(30), "1", dims="image")
    attrs = {"mouse": mouse, "model": "v1t", "model_hash": "d2" * 32, "simulated": 0} | attributes
    dataset = xarray.Dataset(values, coords={"image": np.arange(30)}, attrs=attrs)
    return Result(dataset, Receipt(experiment="attention", parameters={}, model=V1T))


@pytest.fixture
def mice(tmp_path: Path) -> list[Path]:
    return [
        written(attention("A", (-0.525, 0.409), (1e-20, 3e-4)), tmp_path / "attention-A"),
        written(attention("B", (0.3, float("nan")), (0.03, float("nan"))), tmp_path / "attention-B"),
        written(attention("C|1", (0.1, 0.2), (0.4, 0.004)), tmp_path / "attention-C"),
    ]


def test_table_has_a_row_per_mouse_with_stars_and_the_mean(mice: list[Path]) -> None:
    text = AttentionTable.of(mice).to_markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1  # aligned
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (lines[0], *lines[2:])]
    assert rows[0] == ["mouse", "images", "horizontal", "", "p", "Holm", "vertical", "", "p", "Holm"]
    assert rows[1] == ["A", "30", "0.525", "****", "1e-20", "5e-20", "0.409", "***", "0.0003", "0.0012"]
    assert rows[2] == ["B", "30", "0.300", "*", "0.03", "0.06", "-", "-", "-", "-"]
    assert rows[3] == ["C\\|1", "30", "0.100", "n.s.", "0.4", "0.4", "0.200", "**", "0.004", "0.012"]
    x, y = np.array([0.525, 0.3, 0.1]), np.array([0.409, 0.2])
    assert rows[4][2] == f"{x.mean():.3f} ± {x.std(ddof=1):.3f}"
    assert rows[4][6] == f"{y.mean():.3f} ± {y.std(ddof=1):.3f}"


def test_table_of_two_twins_names_the_model_and_averages_each(mice: list[Path], tmp_path: Path) -> None:
    other = {"model": "vit", "model_hash": "e3" * 32, "simulated": 1}
    more = [written(attention(m, (0.2, 0.2), (0.5, 0.5), **other), tmp_path / f"vit-{m}") for m in "AB"]
    text = AttentionTable.of([*mice[:2], *more]).to_markdown()
    assert text.startswith("SIMULATED: no animal was recorded (mouse A, B)")
    assert text.count("| vit e3e3e3 |") == 3
    assert text.count("mean ± sd") == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: attention("A", (0.1, 0.1), (0.5, 0.5)), "same mouse and twin"),
        (lambda: fields(1), "not a result of attention"),
        (lambda: replace(bare := attention("D", (0.1, 0.1), (0.5, 0.5)),
                         dataset=bare.dataset.drop_vars(["correlation_x", "correlation_y"])), "no pupil centres"),
    ],
)  # fmt: skip
def test_results_that_do_not_fit_into_the_table_are_refused(
    mice: list[Path], tmp_path: Path, make: Any, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        AttentionTable.of([*mice, written(make(), tmp_path / "other")])


def test_the_command_prints_and_writes_the_table(
    mice: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["attention-table", *map(str, mice), "--output"]
    assert main([*line, str(tmp_path / "t.csv")]) == 0
    printed = capsys.readouterr().out
    assert main([*line, str(tmp_path / "t.md")]) == 0
    assert (tmp_path / "t.md").read_text(encoding="utf-8") == printed
    with (tmp_path / "t.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["mouse"] for row in rows] == ["A", "B", "C|1"]
    assert float(rows[0]["correlation_x"]) == -0.525  # with its sign
    assert rows[0]["stars_y"] == "***"
    assert float(rows[2]["p_holm_y"]) == pytest.approx(0.012)
    assert main([*line, str(tmp_path / "t.csv")]) == 2
    assert main([*line, str(tmp_path / "t.csv"), "--force"]) == 0
    assert main([*line, str(tmp_path / "t.xlsx")]) == 2
    assert ".md or .csv" in capsys.readouterr().err
