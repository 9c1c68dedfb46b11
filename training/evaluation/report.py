"""The report of an evaluation: tables like the paper's Tables 1 and A.5 to A.7, JSON, a row per neuron, figures.

scores.md         mean and sd over mice of every system (Table 1); then for each score every mouse (Tables A.5 to A.7)
scores.json       the same numbers, what was scored and what was left out
neurons.parquet   a row per system, mouse and neuron: its id, its cortical coordinates and all of its scores
distributions.*, ceiling.*   figures (`training.evaluation.score_figures`)
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.arguments import add_checkpoints, add_device, add_recordings
from training.checkpoints.checkpoint import source_commit
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.data.mouse import data_hashes, open_recordings
from training.errors import ConfigError
from training.evaluation.evaluate import SCORES, MouseScores, evaluate, over_mice, scorable, score_names, scores_table
from training.evaluation.score_figures import draw_ceiling, draw_distributions
from training.figures import save_figure
from training.files import write_files
from training.metrics import FEV_THRESHOLD
from training.tables import caption, markdown_table, number, number_and_sd, simulated_note
from training.trainer.hardware import device_named

__all__ = ["add_arguments", "neuron_table", "run", "tables", "write_report"]

# mouse_id -> its scores, for the mice of one system
Scores = Mapping[str, MouseScores]

EPILOG = """examples:
  python -m training evaluate runs/v1t --recordings runs/recordings
  python -m training evaluate runs/ln runs/cnn runs/v1t --each --recordings runs/recordings --report runs/report
"""


def write_report(
    folder: Path,
    systems: Mapping[str, Scores],
    *,
    left_out: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes the report of one system, or of several in comparison.

    Args:
        systems: name of the system, such as "v1t" -> its scores from `evaluate`.
        left_out: mouse_id -> why it was not scored.
        about: more entries for scores.json.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    left_out = dict(left_out or {})
    content = {
        "fev_threshold": FEV_THRESHOLD,
        **(about or {}),
        "left_out": left_out,
        "systems": {name: _system_json(scores) for name, scores in systems.items()},
    }
    neurons = io.BytesIO()
    pq.write_table(neuron_table(systems), neurons, compression="zstd")
    text = tables(systems, left_out)
    paths = write_files(folder, {"scores.md": text, "scores.json": content, "neurons.parquet": neurons.getvalue()})
    scores = [mouse for of_system in systems.values() for mouse in of_system.values()]
    about_figure = caption(
        ", ".join(systems),
        {mouse.mouse_id: len(mouse.neuron_ids) for mouse in scores},
        trials=f"{scores[0].tier} trials",
        simulated=_simulated(systems),
    )
    paths += save_figure(draw_distributions(systems), folder, "distributions", caption=about_figure)
    if (ceiling := draw_ceiling(systems)) is not None:
        paths += save_figure(ceiling, folder, "ceiling", caption=about_figure)
    return paths


def _simulated(systems: Mapping[str, Scores]) -> list[str]:
    """The mice that are simulated."""
    mice = {mouse.mouse_id: mouse.simulated for scores in systems.values() for mouse in scores.values()}
    return [mouse_id for mouse_id, simulated in mice.items() if simulated]


def tables(systems: Mapping[str, Scores], left_out: Mapping[str, str]) -> str:
    """The content of scores.md."""
    mice = list(dict.fromkeys(mouse_id for scores in systems.values() for mouse_id in scores))
    names = [name for name in SCORES if any(name in score_names(scores) for scores in systems.values())]
    first = next(mouse for scores in systems.values() for mouse in scores.values())
    parts = ["# Scores", f"On the {first.tier} trials. Mean (sd) over mice; a mouse's value is its mean over neurons."]
    if (note := simulated_note(_simulated(systems))) is not None:
        parts.append(note)
    rows = []
    for system, scores in systems.items():
        means = over_mice(scores)
        rows.append([system, *(number_and_sd(*means[name]) if name in means else "-" for name in names)])
    parts.append(markdown_table(["system", *names], rows))
    for name in names:
        rows = []
        for system, scores in systems.items():
            cells = [number(scores[m].summary.get(name) if m in scores else None) for m in mice]
            rows.append([system, *cells, number_and_sd(*over_mice(scores).get(name, (np.nan, np.nan)))])
        parts += [
            f"## {SCORES[name][0].upper()}{SCORES[name][1:]}",
            markdown_table(["system", *mice, "mean (sd)"], rows),
        ]
    notes = [f"Mouse {mouse}: {reason}" for mouse, reason in left_out.items()]
    for system, scores in systems.items():
        notes += [f"{system}, mouse {mouse.mouse_id}: {note}" for mouse in scores.values() for note in mouse.notes]
    if notes:
        parts += ["## What was left out, and the inputs of the twins", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _system_json(scores: Scores) -> dict[str, Any]:
    return {
        "mice": {
            mouse.mouse_id: {
                "tier": mouse.tier,
                "trials": mouse.n_trials,
                "neurons": len(mouse.neuron_ids),
                "simulated": mouse.simulated,
                "summary": mouse.summary,
                "notes": list(mouse.notes),
            }
            for mouse in scores.values()
        },
        "over_mice": {name: {"mean": mean, "sd": sd} for name, (mean, sd) in over_mice(scores).items()},
    }


def neuron_table(systems: Mapping[str, Scores]) -> pa.Table:
    """A row per system, mouse and neuron; null where a neuron lacks a score."""
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("system", "mouse_id", "tier")),
            ("neuron_id", pa.int64()),
            *((name, pa.float32()) for name in ("x_um", "y_um", "z_um")),
            *((name, pa.float64()) for name in SCORES),
        ]
    )
    parts = []
    for system, scores in systems.items():
        for mouse in scores.values():
            N = len(mouse.neuron_ids)
            values = mouse.neurons | ({} if mouse.ceiling is None else {"ceiling": mouse.ceiling})
            columns = [
                *(pa.array([word] * N) for word in (system, mouse.mouse_id, mouse.tier)),
                pa.array(mouse.neuron_ids),
                *(pa.array(axis.astype(np.float32)) for axis in mouse.neuron_coordinates.T),
                *(
                    pa.array(values[name], from_pandas=True) if name in values else pa.nulls(N, pa.float64())
                    for name in SCORES
                ),
            ]
            parts.append(pa.Table.from_arrays(columns, schema=schema))
    about = {"simulated_mice": ", ".join(_simulated(systems))}
    return pa.concat_tables(parts).replace_schema_metadata(about)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_checkpoints(parser)
    add_recordings(parser, "recordings to score on")
    parser.add_argument("--tier", choices=["validation", "test"], default="test", help="(default: test)")
    parser.add_argument(
        "--each", action="store_true", help="score each path on its own, instead of all as one ensemble"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write scores.md, scores.json, neurons.parquet and figures"
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    recordings = open_recordings(args.recordings, nan_trials=args.nan_trials)
    _, left_out = scorable(recordings, args.tier)
    device = device_named(args.device)
    ensembles = {name: e.to(device) for name, e in _ensembles(args.checkpoints, each=args.each).items()}
    systems = {}
    for name, ensemble in ensembles.items():
        systems[name] = evaluate(ensemble, recordings, tier=args.tier)
        print((f"{name}\n" if len(ensembles) > 1 else "") + scores_table(systems[name]))
    if (note := simulated_note(_simulated(systems))) is not None:
        print(note)
    for mouse_id, reason in left_out.items():
        print(f"mouse {mouse_id} was left out: {reason}")
    if args.report is not None:
        weights = {name: ensemble.weights_hashes for name, ensemble in ensembles.items()}
        about = {"commit": source_commit(), "weights": weights, "data": data_hashes(recordings)}
        paths = write_report(args.report, systems, left_out=left_out, about=about)
        print(f"written: {', '.join(str(path) for path in paths)}")
    return 0


def _ensembles(paths: list[Path], *, each: bool) -> dict[str, Ensemble]:
    if not each:
        return {paths[0].name: load_ensemble(paths)}
    names = [path.name for path in paths]
    if len(set(names)) != len(names):
        raise ConfigError("two systems have the same name", got=names, expected="folders of different names")
    return {name: load_ensemble([path]) for name, path in zip(names, paths, strict=True)}
