"""`python -m training analyze WHAT CHECKPOINT ...`: the paper's analyses of a trained twin (appendix A)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from training.analyses import behavior_mlp, behavior_worth, pupil, readout_start, retinotopy
from training.arguments import add_checkpoints, add_device, add_output, add_recordings
from training.checkpoints.checkpoint import source_commit
from training.checkpoints.ensemble import ENSEMBLE, Ensemble, load_ensemble, member_checkpoints
from training.data.mouse import data_hashes, open_recordings
from training.data.recordings import Recording
from training.errors import ScoringError
from training.evaluation.evaluate import check_known, scorable
from training.figures import save_figure
from training.files import write_files
from training.tables import caption, markdown_table, simulated_note
from training.trainer.hardware import device_named

__all__ = ["ANALYSES", "Analysis", "add_arguments", "run"]


@dataclass(frozen=True)
class Analysis:
    """The result of one of the paper's analyses.

    Attributes:
        rows: the rows of the table, as dictionaries of numbers, words or None.
        notes: sentences that a reader of the table needs.
        over_mice: means and sds over mice, by name.
        more: rows of further tables, by name.
    """

    rows: Sequence[dict[str, Any]]
    figure: Figure
    notes: Sequence[str] = ()
    over_mice: dict[str, float] = field(default_factory=dict)
    more: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict)


def _retinotopy(ensemble: Ensemble, recordings: Sequence[Recording], _: Sequence[Path]) -> Analysis:
    results = [retinotopy.retinotopy(ensemble, recording) for recording in recordings]
    return Analysis(
        rows=[result.row() for result in results],
        figure=retinotopy.draw(results),
        notes=retinotopy.notes(ensemble),
    )


def _pupil(ensemble: Ensemble, recordings: Sequence[Recording], _: Sequence[Path]) -> Analysis:
    found, left_out = scorable(recordings, "test")
    if not found:
        raise ScoringError("; ".join(left_out.values()))
    results = [pupil.accuracy_by_pupil(ensemble, recording) for recording in found]
    over_mice = pupil.over_mice(results)
    return Analysis(
        rows=[result.row() for result in results],
        figure=pupil.draw(results),
        notes=[
            f"Largest third of pupils against the smallest, mean (sd) over mice: {over_mice['large_mean']:.3f} "
            f"({over_mice['large_sd']:.3f}) against {over_mice['small_mean']:.3f} ({over_mice['small_sd']:.3f}), "
            f"gain {over_mice['gain_percent_mean']:+.1f} % ({over_mice['gain_percent_sd']:.1f} %).",
            *(f"Mouse {mouse_id} was left out: {reason}" for mouse_id, reason in left_out.items()),
        ],
        over_mice=over_mice,
    )


def _behavior(ensemble: Ensemble, recordings: Sequence[Recording], _: Sequence[Path]) -> Analysis:
    found, left_out = scorable(recordings, "test")
    if not found:
        raise ScoringError("; ".join(left_out.values()))
    results = [behavior_worth.behavior_worth(ensemble, recording) for recording in found]
    return Analysis(
        rows=[row for result in results for row in result.rows()],
        figure=behavior_worth.draw(results),
        notes=[
            *behavior_worth.notes(results),
            *(f"Mouse {mouse_id} was left out: {reason}" for mouse_id, reason in left_out.items()),
        ],
        over_mice=behavior_worth.over_mice(results),
        more={"partition": [row for result in results for row in result.partition_rows()]},
    )


def _b_mlp(ensemble: Ensemble, recordings: Sequence[Recording], _: Sequence[Path]) -> Analysis:
    results = [behavior_mlp.b_mlp_activations(ensemble, recording) for recording in recordings]
    return Analysis(
        rows=[block.row() for blocks in results for block in blocks],
        figure=behavior_mlp.draw(results),
        notes=[
            "sd_over_units: sd of the units' means over trials. sd_over_trials: a unit's sd over trials, averaged over "
            f"units. saturated_share: share of activations with absolute values above {behavior_mlp.SATURATED}."
        ],
    )


def _readout_start(ensemble: Ensemble, recordings: Sequence[Recording], checkpoints: Sequence[Path]) -> Analysis:
    results = [readout_start.readout_start(ensemble, recording, checkpoints) for recording in recordings]
    return Analysis(
        rows=[result.row() for result in results],
        figure=readout_start.draw(results),
        notes=readout_start.notes(results),
    )


# name -> (description, function of the ensemble, the recordings and the members' checkpoints)
ANALYSES: dict[str, tuple[str, Callable[[Ensemble, Sequence[Recording], Sequence[Path]], Analysis]]] = {
    "pupil": ("single-trial correlation with the largest pupils against the smallest (Figure A.4)", _pupil),
    "behavior": ("what behaviour and gaze are worth: scores without them, parts of the variance", _behavior),
    "b-mlp": ("what behaviour adds to the tokens of each block (Figure A.1)", _b_mlp),
    "retinotopy": ("readout positions against cortical positions (A.8)", _retinotopy),
    "readout-start": ("readout positions at the start and at the end, on energy maps (darker: higher)", _readout_start),
}

EPILOG = """examples:
  python -m training analyze pupil runs/v1t --recordings runs/recordings --output runs/v1t-analyses
  python -m training analyze retinotopy runs/v1t --recordings runs/recordings --output runs/v1t-analyses

analyses:
""" + "\n".join(f"  {name:<15}{help_}" for name, (help_, _) in ANALYSES.items())


def write_analysis(folder: Path, name: str, analysis: Analysis, about: dict[str, Any], *, caption: str) -> list[Path]:
    """Writes `name`.md, .json, .png and .pdf.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    content = {
        "analysis": name,
        **about,
        "rows": analysis.rows,
        **analysis.more,
        "over_mice": analysis.over_mice,
        "notes": analysis.notes,
    }
    text = "\n\n".join([*tables(analysis), *analysis.notes]) + "\n"
    paths = write_files(folder, {f"{name}.md": text, f"{name}.json": content})
    return paths + save_figure(analysis.figure, folder, name, caption=caption)


def tables(analysis: Analysis) -> list[str]:
    """The rows in Markdown, with numbers to three places, then the further tables."""
    return [_table(analysis.rows), *(_table(rows) for rows in analysis.more.values())]


def _table(rows: Sequence[dict[str, Any]]) -> str:

    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    names = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table(names, [[cell(row.get(name)) for name in names] for row in rows])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("what", choices=sorted(ANALYSES), help="the analysis, see below")
    add_checkpoints(parser)
    add_recordings(parser, "recordings of the twin's mice")
    add_output(parser, "folder for table, JSON and figure")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    ensemble = load_ensemble(args.checkpoints).to(device_named(args.device))
    recordings = open_recordings(args.recordings, nan_trials=args.nan_trials)
    check_known(ensemble, recordings)
    analysis = ANALYSES[args.what][1](ensemble, recordings, _members(args.checkpoints))
    simulated = [recording.mouse_id for recording in recordings if recording.simulated]
    if (note := simulated_note(simulated)) is not None:
        analysis = replace(analysis, notes=[note, *analysis.notes])
    about = {"weights": ensemble.weights_hashes, "data": data_hashes(recordings), "commit": source_commit()}
    neurons = {row["mouse"]: ensemble.mice[row["mouse"]].n_neurons for row in analysis.rows}
    about_figure = caption(args.checkpoints[0].name, neurons, trials=ANALYSES[args.what][0], simulated=simulated)
    paths = write_analysis(args.output, args.what, analysis, about, caption=about_figure)
    print("\n\n".join([*tables(analysis), *analysis.notes]))
    print(f"written: {', '.join(str(path) for path in paths)}")
    return 0


def _members(paths: Sequence[Path]) -> list[Path]:
    """The checkpoints of the members; none of an ensemble folder, whose members' runs are not known."""
    return [] if (paths[0] / ENSEMBLE).is_file() else member_checkpoints(paths)
