"""Relative columns, tables of mice, tests and stars, from score tables whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from training.evaluation.statistics import holm
from training.studies.catalog import STUDIES
from training.studies.comparisons import comparisons_text, draw_stars, mice_tables, relative_column
from training.studies.lines import Line
from training.studies.results import draw, results_table

SCORE = "single_trial_correlation"


def a_line(label: str, *seeds: dict[str, float], x: float | None = None, numbers: tuple[int, ...] = ()) -> Line:
    return Line(label, x, tuple({m: {SCORE: v} for m, v in seed.items()} for seed in seeds), 0, numbers)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines() if row.startswith("|")]


def test_relative_columns_are_to_the_cnn_and_to_the_vit() -> None:
    lines = [
        a_line(label, {"A": a, "B": b}) for label, a, b in (("CNN", 0.3, 0.5), ("ViT", 0.4, 0.6), ("V1T", 0.5, 0.6))
    ]
    header, _, *rows = cells(results_table(STUDIES["comparison"], lines))
    columns = [header.index(f"relative to {label}") for label in ("CNN", "ViT")]
    assert [[row[column] for column in columns] for row in rows] == [
        ["", "-20.0 %"],
        ["+25.0 %", ""],
        ["+37.5 %", "+10.0 %"],
    ]


def test_a_line_is_compared_with_that_of_its_own_system_and_place() -> None:
    lines = [a_line(label, {"A": score}) for label, score in (("CNN: direct", 0.2), ("V1T: direct", 0.4))]
    lines += [a_line("CNN: transfer", {"A": 0.1}), a_line("V1T: transfer", {"A": 0.3})]
    assert relative_column(lines, "direct", share=True) == ["", "", "50.0 %", "75.0 %"]
    curve = [a_line(label, {"A": s}, x=x) for label, x, s in (("CNN", 500, 0.2), ("CNN", 900, 0.5), ("V1T", 900, 0.4))]
    assert relative_column(curve, "CNN", share=False) == ["", "", "-20.0 %"]


def test_tables_of_mice_have_the_deviation_over_seeds_and_over_mice() -> None:
    lines = [
        a_line("CNN: direct", {"A": 0.2, "B": 0.4}, {"A": 0.4, "B": 0.4}),
        a_line("CNN: transfer", {"A": 0.6, "B": 0.2}, {"A": 0.6, "B": 0.2}),
    ]
    about, table, _, relative = mice_tables(lines, [SCORE, "feve"], axis=None, relative=["direct"])
    assert SCORE in about
    assert cells(table)[2] == ["CNN: direct", "0.300 (0.100)", "0.400 (0.000)", "0.350 (0.050)"]
    assert cells(relative)[2:] == [["CNN: transfer", "+100.0 %", "-50.0 %"]]
    assert mice_tables([a_line("CNN", {"A": 0.2})], [SCORE], axis=None) == []


def test_the_table_of_tests_is_scipys_and_holms() -> None:
    rng = np.random.default_rng(0)
    scores = {
        (label, x): rng.normal(mean, 0.01, 4) for label, mean in (("CNN", 0.4), ("V1T", 0.43)) for x in (500, 900)
    }
    lines = [a_line(label, *({"A": float(v)} for v in values), x=x) for (label, x), values in scores.items()]
    _, table, _ = comparisons_text([("V1T", "CNN")], lines, SCORE, axis="trials")
    rows = cells(table)[2:]
    pairs = [(scores["V1T", x], scores["CNN", x]) for x in (500, 900)]
    paired = [stats.ttest_rel(*pair).pvalue for pair in pairs]
    for row, (a, b), p, corrected in zip(rows, pairs, paired, holm(paired), strict=True):
        values = [float(row[i].split()[0]) for i in (3, 4, 5, 6)]
        expected = [a.mean() - b.mean(), stats.ttest_ind(a, b).pvalue, p, corrected]
        assert values == pytest.approx(expected, rel=0.06, abs=6e-4)
    assert [row[1] for row in rows] == ["500", "900"]


def test_a_seed_that_diverged_leaves_the_others_in_their_pairs() -> None:
    a = a_line("V1T", {"A": 0.5}, {"A": 0.7}, {"A": 0.61}, numbers=(0, 2, 3))
    b = a_line("CNN", {"A": 0.4}, {"A": 9.0}, {"A": 0.6}, {"A": 0.5})
    _, table, _ = comparisons_text([("V1T", "CNN")], [a, b], SCORE, axis=None)
    assert cells(table)[2][1:3] == ["3", "+0.103 [+0.089, +0.118]"]


def test_one_seed_has_no_tests() -> None:
    lines = [a_line("V1T", {"A": 0.5}), a_line("CNN", {"A": 0.4})]
    assert comparisons_text([("V1T", "CNN")], lines, SCORE, axis=None) == []


def test_stars_stand_under_their_place() -> None:
    lines = [
        a_line(label, *({"A": mean + noise} for noise in (0.0, 0.01, 0.02)), x=x)
        for label, x, mean in (("V1T", 500, 0.1), ("CNN", 500, 0.9), ("V1T", 900, 0.4), ("CNN", 900, 0.401))
    ]
    axes = Figure().subplots()
    axes.set_ylim(0, 1)
    draw_stars(axes, [("V1T", "CNN")], lines, SCORE)
    assert {text.get_position()[0]: text.get_text() for text in axes.texts[1:]} == {500: "****", 900: "n.s."}
    assert draw(STUDIES["sample-efficiency"], lines).axes[0].texts


def test_every_label_that_a_study_compares_is_one_of_its_own() -> None:
    for study in STUDIES.values():
        labels = {variant.label for variant in study.variants}
        for label in {*study.ensembles, *(name for pair in study.tests for name in pair)}:
            assert label in labels
        for label in study.relative:
            assert any(own == label or own.endswith(f": {label}") for own in labels)
