"""`python -m training analyze WHAT CHECKPOINT ...`: the paper's analyses of a trained twin (appendix A)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from training.analyses import retinotopy
from training.checkpoint import source_commit, write_atomically
from training.ensemble import Ensemble, load_ensemble
from training.errors import CheckpointError
from training.evaluate import check_known
from training.figures import save_figure
from training.mouse import open_recordings
from training.recordings import Recording
from training.tables import as_json, markdown_table

__all__ = ["ANALYSES", "Analysis", "add_arguments", "run"]


@dataclass(frozen=True)
class Analysis:
    """One of the paper's analyses, done.

    Attributes:
        rows: of the table, a dictionary each; numbers, words, or None.
        notes: what a reader of the table must know, a sentence each.
        details: what goes into the JSON beside the rows.
    """

    rows: Sequence[dict[str, Any]]
    figure: Figure
    notes: Sequence[str] = ()
    details: dict[str, Any] | None = None


def _retinotopy(ensemble: Ensemble, recordings: Sequence[Recording]) -> Analysis:
    results = [retinotopy.retinotopy(ensemble, recording) for recording in recordings]
    return Analysis(
        rows=[result.row() for result in results],
        figure=retinotopy.draw(results),
        notes=retinotopy.notes(ensemble),
    )


# word -> (what it does, how)
ANALYSES: dict[str, tuple[str, Callable[[Ensemble, Sequence[Recording]], Analysis]]] = {
    "retinotopy": ("readout positions against cortical positions (A.8)", _retinotopy),
}

EPILOG = """examples:
  python -m training analyze retinotopy runs/v1t --recordings runs/recordings --output runs/v1t-analyses

analyses:
""" + "\n".join(f"  {name:<12}{help_}" for name, (help_, _) in ANALYSES.items())


def write_analysis(folder: Path, name: str, analysis: Analysis, about: dict[str, Any]) -> list[Path]:
    """Writes `name`.md, .json, .png and .pdf.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    content = {"analysis": name, **about, "rows": analysis.rows, "notes": list(analysis.notes)}
    text = "\n\n".join([table(analysis), *analysis.notes]) + "\n"
    try:
        paths = save_figure(analysis.figure, folder, name)
        write_atomically(folder / f"{name}.md", text.encode())
        write_atomically(
            folder / f"{name}.json", json.dumps(as_json({**content, **(analysis.details or {})}), indent=2).encode()
        )
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error
    return [folder / f"{name}.md", folder / f"{name}.json", *paths]


def table(analysis: Analysis) -> str:
    """The rows in Markdown, numbers to three places."""

    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    names = list(dict.fromkeys(name for row in analysis.rows for name in row))
    return markdown_table(names, [[cell(row.get(name)) for name in names] for row in analysis.rows])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("what", choices=sorted(ANALYSES), help="which analysis")
    parser.add_argument("checkpoints", nargs="+", type=Path, help="a run, an ensemble, or checkpoints that make one")
    parser.add_argument("--recordings", nargs="+", required=True, type=Path, metavar="DIR", help="of the twin's mice")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="for table, JSON and figure")


def run(args: argparse.Namespace) -> int:
    ensemble = load_ensemble(args.checkpoints)
    recordings = open_recordings(args.recordings)
    check_known(ensemble, recordings)
    _, analyse = ANALYSES[args.what]
    analysis = analyse(ensemble, recordings)
    about = {
        "weights": [member.weights_hash for member in ensemble.members],
        "data": {recording.mouse_id: recording.data_hash for recording in recordings},
        "commit": source_commit(),
    }
    paths = write_analysis(args.output, args.what, analysis, about)
    print("\n\n".join([table(analysis), *analysis.notes]))
    print(f"written: {', '.join(str(path) for path in paths)}")
    return 0
