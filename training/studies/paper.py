"""`python -m training study paper`: every table and figure of the paper in its order, filled from what is finished.

A page, as Markdown and HTML, in the folder of the studies, from the results of `study`, `sweep`, `analyze` and `v1t`
that lie there. What is missing is marked with the command that fills it. The paper's numbers stand beside ours where
this project knows them; elsewhere there is no column for them, and the page says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.config import PRESETS, TrainingConfig
from training.errors import CheckpointError
from training.files import write_files
from training.studies.catalog import CEILING, STUDIES, TRIALS, Study
from training.studies.comparisons import comparisons_text, mice_tables, relative_column
from training.studies.lines import Line
from training.studies.results import SHOWN
from training.studies.sweep_space import SPACE
from training.studies.web_page import web_page
from training.tables import markdown_table, number, number_and_sd

__all__ = ["ITEMS", "PAGE", "Item", "lines_from", "write_page"]

PAGE = "paper"
NO_NUMBERS = "The paper's numbers of this item are not in this project, so there is no column for them."


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper.

    Attributes:
        where: its number in the paper.
        study: the study that fills it.
        command: fills it, if no study does; FOLDER stands for the folder of the studies, RECORDINGS for recordings.
        files: patterns of what the command writes in FOLDER: texts (.md) and figures (.png).
        mice: it is the table of every mouse, of this score.
        paper: (label, place on the axis) -> the paper's single-trial correlation.
    """

    where: str
    title: str
    study: str | None = None
    command: str = ""
    files: tuple[str, ...] = ()
    mice: str | None = None
    paper: Mapping[tuple[str, float | None], float] = field(default_factory=dict)


def _analysis(where: str, title: str, name: str) -> Item:
    command = f"python -m training analyze {name} RUN --recordings RECORDINGS --output FOLDER/analyses"
    return Item(where, title, command=command, files=(f"analyses/{name}.md", f"analyses/{name}.png"))


def _experiment(where: str, title: str, verb: str, options: str = "", first: str = "") -> Item:
    command = f"{first}v1t {verb} MOUSE{options} --output FOLDER/{verb}-MOUSE"
    return Item(where, title, command=command, files=(f"{verb}-*/*.png",))


TABLE_1 = {"LN": 0.275, "CNN": 0.378, "ViT": 0.414, "V1T": 0.426, "V1T ensemble": 0.439}  # Dataset S
SWEEP = "python -m training sweep --recordings RECORDINGS --output FOLDER/sweep"
TRIALS_SHOWN = " --images FOLDER/trials-MOUSE"
WRITE_TRIALS = "python -m training trials RECORDING --tier test --output FOLDER/trials-MOUSE\n"
MAP_FIELDS = "v1t rf MOUSE --bundle V1T --output FOLDER/rf-MOUSE-V1T\n"
RF = " --rf FOLDER/rf-MOUSE-V1T"
COMPARE_FIELDS = """\
v1t rf MOUSE --bundle CNN --output FOLDER/rf-MOUSE-CNN
v1t rf MOUSE --bundle V1T --output FOLDER/rf-MOUSE-V1T
v1t compare FOLDER/rf-MOUSE-CNN FOLDER/rf-MOUSE-V1T --names CNN,V1T --output FOLDER/compare-MOUSE"""

ITEMS: tuple[Item, ...] = (
    Item(
        "Table 1",
        "The systems",
        study="comparison",
        paper={(label, None): score for label, score in TABLE_1.items()},
    ),
    Item("Fig. 2", "How many trials each system needs", study="sample-efficiency"),
    Item("Section 4.2", "One update for all mice, or one after each mouse", study="updates"),
    Item("Fig. 3a-b", "Receptive fields of two twins", command=COMPARE_FIELDS,
         files=("compare-*/summary.md", "compare-*/*.png")),
    _experiment("Fig. 3c-d and Fig. A.3", "Attention rollout, and its correlation with the gaze", "attention",
                TRIALS_SHOWN, first=WRITE_TRIALS),
    Item("Table 2", "Attention and gaze, every mouse",
         command="v1t attention-table FOLDER/attention-* --output FOLDER/table-2.md", files=("table-2.md",)),
    Item("Section 5", "Patch size and stride", study="patches"),
    Item(
        "Section 5, crop",
        "Centre crop",
        study="center-crop",
        paper={("V1T, fixed crop", 1.0): TABLE_1["V1T"], ("V1T, fixed crop", 0.8): 0.430},
    ),
    _analysis("Discussion", "What behaviour and gaze are worth", "behavior"),
    Item("Table A.2", "Hyperparameters", command=SWEEP,
         files=("sweep/sweep.json",)),
    Item("Table A.3", "Importance of the hyperparameters, and their correlation with the score",
         command=SWEEP, files=("sweep/sweep.md",)),
    Item("Table A.4", "Tokenizers and kinds of attention", study="tokenizers"),
    *(
        Item(f"Table A.{5 + i}", f"Every mouse: {score.replace('_', ' ')}", study="comparison", mice=score)
        for i, score in enumerate(SHOWN)
    ),
    Item("Table A.8", "Transfer to a new mouse", study="transfer"),
    Item("Table A.9", "Transfer from another data set", study="cross-dataset"),
    Item("Appendix A.2", "Where behaviour enters", study="behavior"),
    _analysis("Fig. A.1", "What the B-MLP adds", "b-mlp"),
    _experiment("Fig. A.2", "Centres of receptive fields against cortical positions", "retinotopy",
                RF, first=MAP_FIELDS),
    _analysis("Fig. A.4", "Accuracy by pupil dilation", "pupil"),
    _analysis("Appendix A.8", "Retinotopy of the readout", "retinotopy"),
)  # fmt: skip


def write_page(folders: Mapping[str, Path], *, options: str = "", recordings: str = "RECORDINGS") -> list[Path]:
    """Writes paper.md and paper.html into the first folder.

    Args:
        folders: name of a data set -> the folder of its studies; they stand side by side.
        options: of `study` in the commands that are shown, such as " --scale paper".
        recordings: what stands for RECORDINGS in the commands.

    Raises:
        CheckpointError: there is no such folder, a result cannot be read, or the page cannot be written.
    """
    for folder in folders.values():
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder of studies", hint="Give the --output of a study.")
    first = next(iter(folders.values()))
    blocks = [
        "# The paper's tables and figures",
        "Li, Cornacchia, Rochefort and Onken: V1T (TMLR 2023), in the paper's order. " + _about(folders),
    ]
    todo: list[tuple[str, str]] = []
    for item in ITEMS:
        filled, missing = _study_blocks(item, folders) if item.study else _file_blocks(item, folders)
        blocks += [f"## {item.where}: {item.title}", *filled]
        for name, what in missing:
            command = _command(item, folders[name], options, recordings)
            prefix = f"{name}: " if len(folders) > 1 else ""
            blocks += [f"{prefix}{what} To fill it:", f"```sh\n{command}\n```"]
            todo.append((item.where, command))
    n_open = len({where for where, _ in todo})
    blocks.insert(2, f"Complete: {len(ITEMS) - n_open} of {len(ITEMS)}.")
    text = "\n\n".join(blocks) + "\n"
    return write_files(first, {f"{PAGE}.md": text, f"{PAGE}.html": web_page("The paper's tables and figures", blocks)})


def _about(folders: Mapping[str, Path]) -> str:
    """Which data the page is about, by what the studies wrote."""
    parts = []
    for name, folder in folders.items():
        contents = [content for study in STUDIES if (content := _content(folder, study))]
        captions = [text for content in contents if (text := content.get("caption"))]
        parts.append(f"{name}: {captions[0]}" if captions else "" if contents else f"{name}: no study is finished.")
    return " ".join(parts)


def _command(item: Item, folder: Path, options: str, recordings: str) -> str:
    if item.study is not None:
        return f"python -m training study {item.study} --output {folder}{options}"
    return item.command.replace("FOLDER", str(folder)).replace("RECORDINGS", recordings)


def lines_from(content: Mapping[str, Any]) -> list[Line]:
    """The lines that a study wrote into its JSON."""
    nan = float("nan")
    return [
        Line(
            line["label"],
            line["x"],
            tuple(
                {mouse: {name: nan if v is None else v for name, v in scores.items()} for mouse, scores in seed.items()}
                for seed in line["seeds"]
            ),
            line["diverged"],
            tuple(line.get("seed_numbers", range(len(line["seeds"])))),
        )
        for line in content.get("lines", [])
    ]


def _content(folder: Path, study: str) -> dict[str, Any]:
    path = folder / f"{study}.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="Run its study again.") from error


Blocks = tuple[list[str], list[tuple[str, str]]]  # what is filled; (data set, what is missing there)


def _study_blocks(item: Item, folders: Mapping[str, Path]) -> Blocks:
    assert item.study is not None
    study, first = STUDIES[item.study], next(iter(folders.values()))
    sets = {name: lines_from(_content(folder, item.study)) for name, folder in folders.items()}
    missing = []
    for name, lines in sets.items():
        if absent := _absent(study, lines):
            missing.append((name, "No run yet." if not lines else f"Missing: {'; '.join(absent)}."))
    blocks: list[str] = []
    if any(sets.values()):
        if item.mice is None:
            blocks += [f"The paper: {study.paper}", side_by_side(study, sets, item.paper)]
            if not item.paper:
                blocks.append(NO_NUMBERS)
        for name, lines in sets.items():
            prefix = [f"### {name}"] if len(sets) > 1 and lines else []
            if item.mice is not None:
                blocks += [*prefix, *mice_tables(lines, [item.mice], axis=study.axis)]
                continue
            own = [
                *(mice_tables(lines, [], axis=study.axis, relative=study.relative) if item.where != "Table 1" else []),
                *comparisons_text(study.tests, lines, SHOWN[0], axis=study.axis),
                *_images([folders[name] / f"{item.study}.png"], first),
            ]
            blocks += [*prefix, *own] if own else []
    return blocks, missing


def side_by_side(
    study: Study, sets: Mapping[str, Sequence[Line]], paper: Mapping[tuple[str, float | None], float]
) -> str:
    """A table of a study on several data sets: scores, relative differences, and the paper's numbers where known."""
    keys = list(dict.fromkeys((line.label, line.x) for lines in sets.values() for line in lines))
    keys.sort(key=lambda key: key[0] == CEILING)
    columns: dict[str, list[str]] = {}
    if paper:
        columns[f"{SHOWN[0]} in the paper (Dataset S)"] = [number(paper[key]) if key in paper else "" for key in keys]
    for name, lines in sets.items():
        at = {(line.label, line.x): i for i, line in enumerate(lines)}
        prefix = f"{name}: " if len(sets) > 1 else ""
        found: dict[str, list[str]] = {score: [_cell(line, score) for line in lines] for score in SHOWN}
        found |= {f"relative to {label}": relative_column(lines, label, share=False) for label in study.relative}
        found["seeds"] = ["" if line.label == CEILING else str(len(line.seeds)) for line in lines]
        columns |= {
            prefix + head: [cells[at[key]] if key in at else "-" for key in keys] for head, cells in found.items()
        }
    heads = [[label, *([] if study.axis is None else ["" if x is None else f"{x:g}"])] for label, x in keys]
    rows = [[*head, *(cells[i] for cells in columns.values())] for i, head in enumerate(heads)]
    return markdown_table(["", *([] if study.axis is None else [study.axis]), *columns], rows)


def _cell(line: Line, score: str) -> str:
    mean, sd = line.over_seeds(score)
    return number_and_sd(mean, sd) if len(line.seeds) > 1 else number(mean)


def _absent(study: Study, lines: Sequence[Line]) -> list[str]:
    """The lines that a study should have and has not."""
    have = {(line.label, line.x) for line in lines if line.seeds}
    labels = {label for label, _ in have}
    absent = [
        variant.label + (f" at {variant.trials or variant.x:g}" if variant.trials or variant.x else "")
        for variant in study.variants
        if variant.shown
        and (
            (variant.label, float(variant.trials)) not in have
            if study.axis == TRIALS and variant.trials is not None
            else variant.label not in labels
            if variant.x is None
            else (variant.label, variant.x) not in have
        )
    ]
    return absent + [f"{label} ensemble" for label in study.ensembles if f"{label} ensemble" not in labels]


def _file_blocks(item: Item, folders: Mapping[str, Path]) -> Blocks:
    first, blocks, missing = next(iter(folders.values())), list[str](), list[tuple[str, str]]()
    if item.where == "Table A.2":
        blocks.append(_hyperparameters(folders))
    for name, folder in folders.items():
        paths = sorted(path for pattern in item.files for path in folder.glob(pattern))
        if not paths:
            missing.append((name, "No run yet."))
            continue
        if len(folders) > 1 and item.where != "Table A.2":
            blocks.append(f"### {name}")
        for path in paths:
            if path.suffix == ".md":
                blocks += path.read_text(encoding="utf-8").strip().split("\n\n")
        blocks += _images([path for path in paths if path.suffix == ".png"], first)
    return blocks, missing


def _hyperparameters(folders: Mapping[str, Path]) -> str:
    """The searched options: the published value, and the best of the sweep of each data set."""
    best = {name: _content(folder / "sweep", "sweep").get("best", {}) for name, folder in folders.items()}
    rows = []
    for option, range_ in SPACE["v1t"].items():
        part, key = option.split(".")
        cells = [f"{v:.4g}" if isinstance(v := values.get(option, "-"), float) else str(v) for values in best.values()]
        rows.append(
            [
                option,
                range_.described(),
                str(getattr(TrainingConfig() if part == "training" else getattr(PRESETS["v1t"], part), key)),
                *cells,
            ]
        )
    heads = [f"{name}: best" if len(best) > 1 else "best" for name in best]
    return markdown_table(["option", "searched here", "published", *heads], rows)


def _images(paths: Sequence[Path], beside: Path) -> list[str]:
    return [f"![{path.stem}]({Path(os.path.relpath(path, beside)).as_posix()})" for path in paths if path.exists()]
