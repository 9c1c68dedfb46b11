"""What a notebook shows of an answer: the same numbers, the words of the server, and nothing that loads anything."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from support.gabor_bank import GaborBank
from v1t_client import Attention, Gradient, Model, Note, Prediction
from v1t_client.insilico import EXPERIMENTS

EVIL = "<script src='http://elsewhere/x.js'></script>&"
MODEL = Model("demo", "ab" * 32, members=3, simulated=True, notice=f"Simulated. {EVIL}", version="7")
ORIGIN: dict[str, Any] = {
    "mouse": f"A{EVIL}", "model": MODEL, "state": "running", "assumed": ("speed left out",),
    "notes": (Note("outside_recording", "image", f"too bright {EVIL}"),),
}  # fmt: skip


class Tables(HTMLParser):
    """The tables of a card as rows of texts, its tags and its whole text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data


def prediction(n_images: int, *, spread: bool = False) -> Prediction:
    rng = np.random.default_rng(n_images)
    values, std = rng.gamma(1.0, size=(2, n_images, 40)).astype(np.float32)
    ids = rng.permutation(900)[:40]
    return Prediction(values, ids, units="standardized", spread=std if spread else None, **ORIGIN)


@pytest.mark.parametrize("n_images", [1, 6])
def test_the_table_has_the_strongest_neurons_with_their_numbers(n_images: int) -> None:
    answer = prediction(n_images, spread=True)
    heads, *rows = Tables(answer._repr_html_()).tables[1]
    mean = answer.responses.astype(np.float64).mean(0)
    strongest = sorted(range(40), key=lambda j: -mean[j])[:5]
    assert [row[0] for row in rows] == [str(answer.neuron_ids[j]) for j in strongest]
    expected: dict[str, Any] = {"response": mean, "spread": answer.spread.mean(0)}
    if n_images > 1:
        values = answer.responses
        expected = {
            "mean": mean,
            "lowest": values.min(0),
            "highest": values.max(0),
            "mean spread": answer.spread.mean(0),
        }
    assert heads[1:] == list(expected)
    for k, values in enumerate(expected.values(), start=1):
        np.testing.assert_allclose([float(row[k]) for row in rows], values[strongest], rtol=1e-3)


def test_every_answer_says_its_origin_and_loads_nothing() -> None:
    ones = np.ones((2, 1, 4, 5), np.float32)
    gradient = Gradient(ones, ones[:, 0, 0, :3], ones[:, 0, 0, :2], ones[:, 0, 0], np.arange(5), units="raw", **ORIGIN)
    result = EXPERIMENTS["rf"](mouse="BANK", n_images=200).run(GaborBank(n=9, shape=(18, 32), model=MODEL))
    noted = replace(result.receipt, notes=[{"code": "c", "input": None, "message": f"too bright {EVIL}"}])
    for answer in (prediction(0), prediction(2), gradient, Attention(ones, **ORIGIN), replace(result, receipt=noted)):
        shown = Tables(answer._repr_html_())
        assert shown.tags <= {"div", "strong", "table", "caption", "thead", "tbody", "tr", "th", "td"}
        assert shown.attributes == {"style"}
        for words in ("demo@7 abababababab, 3 members", f"Simulated. {EVIL}", f"too bright {EVIL}"):
            assert words in shown.text
        if not isinstance(answer, type(result)):
            assert {("state", "running"), ("assumed", "speed left out")} <= set(map(tuple, shown.tables[0]))


def test_a_result_shows_the_first_rows_of_its_table() -> None:
    result = EXPERIMENTS["rf"](mouse="BANK", n_images=200).run(GaborBank(n=9, shape=(18, 32), model=MODEL))
    shown = Tables(result._repr_html_())
    heads, *rows = shown.tables[1]
    assert heads[0] == "neuron_id"
    assert [int(row[0]) for row in rows] == result.dataset["neuron"].values[:5].tolist()
    for k, name in enumerate(heads[1:], start=1):
        values = [float(row[k]) if row[k] not in ("True", "False") else row[k] == "True" for row in rows]
        np.testing.assert_allclose(values, result.dataset[name].values[:5].astype(float), rtol=1e-3)
    assert "the first 5 of 9 neurons" in shown.text
    assert dict(map(tuple, shown.tables[0]))["state"].startswith("median: pupil_dilation ")  # type: ignore[arg-type]
