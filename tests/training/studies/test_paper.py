"""The page of the paper: what is finished stands in it, what is not has its command, in Markdown and HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from v1t_client._cli import command as v1t

from training.__main__ import main
from training.studies.catalog import STUDIES
from training.studies.lines import Line
from training.studies.paper import ITEMS
from training.studies.results import write_results

MICE = ("A", "B")


def finished(folder: Path, name: str, *, scale: float = 1.0, without: str = "") -> dict[str, float]:
    """Writes a study with random scores; returns label -> mean over mice and seeds."""
    rng, study, lines, means = np.random.default_rng(0), STUDIES[name], [], {}
    labels = [(v.label, v.x or v.trials) for v in study.variants if v.shown and v.label != without]
    for label, x in [*labels, *((f"{label} ensemble", None) for label in study.ensembles)]:
        scores = scale * rng.uniform(0.3, 0.5, (2, len(MICE)))
        seeds = tuple(
            {m: {"single_trial_correlation": float(v), "feve": float("nan")} for m, v in zip(MICE, row, strict=True)}
            for row in scores
        )
        lines.append(Line(label, None if x is None else float(x), seeds))
        means[label] = float(scores.mean())
    write_results(folder, name, study, lines, notes=[], about={"data": {}}, caption="mice A and B, simulated.")
    return means


def section(page: Path, where: str) -> str:
    text = page.read_text(encoding="utf-8")
    return text[text.index(f"## {where}:") :].split("\n## ")[0]


def page(output: Path, *more: str) -> Path:
    assert main(["study", "paper", "--output", str(output), *more]) == 0
    return output / "paper.md"


def test_a_finished_study_fills_its_table_and_the_tables_of_mice(tmp_path: Path) -> None:
    means = finished(tmp_path, "comparison")
    written = page(tmp_path)
    table = section(written, "Table 1")
    for label, mean in means.items():
        assert re.search(rf"^\| {label} +\| [0-9. ]+\| {mean:.3f} \(", table, flags=re.MULTILINE)
    relative = 100 * (means["V1T"] / means["CNN"] - 1)
    row = next(line for line in table.splitlines() if line.startswith("| V1T "))
    assert f"{relative:+.1f} %" in row
    assert "To fill it" not in table
    assert "![comparison](comparison.png)" in table
    assert "mean (sd) over mice" in section(written, "Table A.5")
    assert "not in this project" not in table


def test_what_is_missing_has_the_command_that_fills_it(tmp_path: Path) -> None:
    finished(tmp_path, "comparison", without="LN")
    written = page(tmp_path, "--seeds", "2", "--scale", "paper", "--recordings", "some/where")
    command = f"python -m training study comparison --output {tmp_path} --recordings some/where --scale paper --seeds 2"
    assert "Missing: LN." in section(written, "Table 1")
    assert command in section(written, "Table 1")
    assert "analyze pupil RUN --recordings some/where" in section(written, "Fig. A.4")
    for item in ITEMS:
        assert "```sh" in section(written, item.where)


def test_every_command_of_the_page_is_one_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page(tmp_path).read_text(encoding="utf-8")
    for command in re.findall(r"^v1t .*", text, re.MULTILINE):
        v1t._parser().parse_args(command.split()[1:])
    verbs = {(command.split()[3], command.split()[4]) for command in re.findall(r"^python -m .*", text, re.MULTILINE)}
    assert {name for verb, name in verbs if verb == "study"} == set(STUDIES) - {"readout-start", "distillation"}
    for verb, name in verbs:
        with pytest.raises(SystemExit) as ended:
            main([verb, *([name] if verb != "sweep" else []), "--help"])
        assert ended.value.code == 0
    capsys.readouterr()


def test_the_papers_numbers_stand_beside_ours(tmp_path: Path) -> None:
    finished(tmp_path, "center-crop")
    table = section(page(tmp_path), "Section 5, crop")
    whole, cropped = (
        next(row for row in table.splitlines() if re.match(rf"\| V1T, fixed crop +\| {alpha} ", row))
        for alpha in ("1", "0.8")
    )
    assert [row.split("|")[3].strip() for row in (whole, cropped)] == ["0.426", "0.430"]
    finished(tmp_path, "comparison")
    rows = section(page(tmp_path), "Table 1").splitlines()
    numbers = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in rows if row.startswith("|")}
    assert numbers["LN"] == "0.275"
    assert numbers["V1T ensemble"] == "0.439"
    assert numbers["CNN, no behaviour"] == ""


def test_two_data_sets_stand_side_by_side(tmp_path: Path) -> None:
    own, other = tmp_path / "sensorium", tmp_path / "franke"
    means, others = finished(own, "comparison"), finished(other, "comparison", scale=0.5)
    table = section(page(own, "--beside", str(other)), "Table 1")
    row = next(line for line in table.splitlines() if line.startswith("| V1T "))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert [cell[:5] for cell in cells if "(" in cell] == [f"{one['V1T']:.3f}" for one in (means, others)]
    assert "sensorium: single_trial_correlation" in table
    assert "![comparison](../franke/comparison.png)" in table


def test_the_html_has_the_tables_and_figures_of_the_markdown(tmp_path: Path) -> None:
    finished(tmp_path, "comparison")
    markdown = page(tmp_path).read_text(encoding="utf-8")

    class Counts(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append(tag)
            if tag == "img":
                assert (tmp_path / str(dict(attrs)["src"])).exists()

    counts = Counts()
    counts.feed((tmp_path / "paper.html").read_text(encoding="utf-8"))
    assert counts.tags.count("table") == len(re.findall(r"^\|-", markdown, re.MULTILINE))
    assert counts.tags.count("tr") == len(re.findall(r"^\| ", markdown, re.MULTILINE))
    assert counts.tags.count("img") == markdown.count("![")
    assert counts.tags.count("h2") == len(ITEMS)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "paper", "--output", str(tmp_path / "none")]) == 1
    assert "is not a folder of studies" in capsys.readouterr().err
    (tmp_path / "comparison.json").write_text("{", encoding="utf-8")
    assert main(["study", "paper", "--output", str(tmp_path)]) == 1
    assert "comparison.json cannot be read" in capsys.readouterr().err
