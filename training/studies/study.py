"""`python -m training study NAME`: one of the paper's studies, from recordings to table and figure, in one command."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.analyses.retinotopy import RELIABLE, retinotopy
from training.arguments import add_device, add_options, add_output, add_recordings
from training.checkpoints.ensemble import Ensemble
from training.config import parse_options
from training.data.mouse import by_mouse, data_hashes, open_recordings
from training.data.recordings import NanTrials, Recording
from training.errors import ConfigError, DivergenceError
from training.evaluation.evaluate import perfect_scores
from training.ray_pool import add_ray
from training.simulation.simulate import simulate
from training.studies.catalog import CEILING, SCALES, STUDIES, Scale, Study
from training.studies.distillation import study_distillation
from training.studies.lines import Line, lines_of
from training.studies.paper import PAGE, write_page
from training.studies.plan import Run, plan
from training.studies.results import SHOWN, results_table, write_results
from training.studies.runner import RunScores, best_by_validation, ensemble_of, run_all, score
from training.tables import caption, counted
from training.trainer.hardware import Hardware

__all__ = ["add_arguments", "run"]

ENSEMBLE_SIZE = 5  # the paper: the best 5 of 10 seeds by validation (Table 1)

EPILOG = (
    """studies:
"""
    + "\n".join(
        f"  {name:<19}{study.question} ({study.where})\n{'':<21}The paper: {study.paper}"
        for name, study in STUDIES.items()
    )
    + f"""
  {PAGE:<19}a page with every table and figure of the paper, filled from what is finished in --output

scales:
"""
    + "\n".join(f"  {name:<19}{scale.what}" for name, scale in SCALES.items())
    + """

examples:
  python -m training study comparison --output runs/comparison --seeds 3
  python -m training study comparison --output runs/table-1 --recordings data/sensorium --scale paper --device cuda
  python -m training study cross-dataset --output runs/f-to-s --recordings data/sensorium --source data/franke2022

To resume an interrupted study, run the same command again. Studies with the same --output share equal trainings.
`study paper --output DIR` trains nothing: it writes DIR/paper.md and DIR/paper.html.
"""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("study", choices=[*STUDIES, PAGE], metavar="STUDY", help="name of the study, see below")
    add_output(parser, "folder for runs, tables and figures")
    beside = "folder of the studies of another data set, to stand beside --output's in the page (paper)"
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help=beside)
    add_recordings(parser, "recordings, or folders of them (default: simulate them)", required=False)
    source = "recordings on which the transferred core is trained (cross-dataset)"
    parser.add_argument("--source", nargs="+", type=Path, metavar="DIR", help=source)
    parser.add_argument("--scale", choices=sorted(SCALES), default="two-cores", help="see below (default: two-cores)")
    parser.add_argument("--seeds", type=int, default=3, help="number of trainings of each variant (default: 3)")
    candidates = f"trainings of which the best {ENSEMBLE_SIZE} form an ensemble (comparison; paper: 10; default: SEEDS)"
    parser.add_argument("--candidates", type=int, default=0, metavar="N", help=candidates)
    trials = (
        "numbers of training trials to compare systems at, in place of the study's (sample-efficiency, readout-start)"
    )
    parser.add_argument("--trials", nargs="+", type=int, default=[], metavar="N", help=trials)
    add_options(parser, "options of every model or training")
    parser.add_argument("--workers", type=int, default=1, help="trainings at the same time (default: 1)")
    add_ray(parser, "trainings")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    if args.study == PAGE:
        return _page(args)
    if args.beside is not None:
        raise ConfigError(f"study {args.study} takes no --beside", hint=f"It is for the page: study {PAGE}.")
    if args.seeds < 1 or args.workers < 1:
        raise ConfigError("a study needs at least one seed and one worker", got=f"{args.seeds} and {args.workers}")
    if args.ray is not None and args.workers > 1:
        raise ConfigError("--workers is for one machine; with --ray the cluster has room or not", got=args.workers)
    if args.candidates and not STUDIES[args.study].ensembles:
        raise ConfigError(f"study {args.study} has no ensembles, so it takes no --candidates")
    study, scale, hardware = STUDIES[args.study], SCALES[args.scale], Hardware(device=args.device)
    options, training = parse_options(args.set)
    mice = _recordings(study, args.recordings, args.output, scale, args.nan_trials)
    source = _source(study, args.source, args.output, scale, args.nan_trials)
    if both := sorted(set(mice) & set(source)):
        raise ConfigError("a mouse is both in --recordings and in --source", got=both)
    recordings = {**mice, **source}
    written: dict[str, Any] = {
        "about": {"scale": args.scale, "data": data_hashes(recordings.values())},
        "caption": caption(
            f"study {args.study}, scale {args.scale}",
            {mouse_id: recording.n_neurons for mouse_id, recording in mice.items()},
            trials="test trials",
            simulated=[mouse_id for mouse_id, recording in recordings.items() if recording.simulated],
        ),
    }
    if study.members is not None:
        return _distillation(args, study, scale, mice, written)
    runs = plan(
        study,
        scale,
        data_hashes(mice.values()),
        seeds=args.seeds,
        candidates=args.candidates,
        n_trials=min(len(recording.tier("train")) for recording in mice.values()),
        trials=args.trials,
        source=data_hashes(source.values()),
        options=options,
        training=training,
    )
    if not all(run.mice for run in runs):
        raise ConfigError(f"study {args.study} needs at least two mice", got=list(mice))
    print(f"{args.study}: {counted(len(runs), 'training')}, in {args.output}")
    done: list[RunScores] = []
    try:
        for result in run_all(runs, recordings, args.output, hardware=hardware, workers=args.workers, ray=args.ray):
            done.append(result)
            if not result.known:
                write_results(args.output, args.study, study, _lines(done, runs, mice), notes=[], **written)
        lines, notes = _with_ensemble(study, done, _lines(done, runs, mice), mice, args.output, hardware)
        paths = write_results(args.output, args.study, study, lines, notes=notes, **written)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished trainings are kept in {args.output}; run the same command again to resume.")
        return 130
    if all(result.failed for result in done):
        raise DivergenceError("every training diverged", got=done[0].failed)
    print("\n\n".join(["", results_table(study, lines), *notes]))
    print(f"written: {', '.join(map(str, paths))}")
    return 0


def _distillation(
    args: argparse.Namespace, study: Study, scale: Scale, mice: Mapping[str, Recording], written: Mapping[str, Any]
) -> int:
    options, training = parse_options(args.set)
    try:
        lines, notes = study_distillation(
            study,
            scale,
            mice,
            args.output,
            seeds=args.seeds,
            options=options,
            training=training,
            hardware=Hardware(device=args.device),
            workers=args.workers,
            ray=args.ray,
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted. What is done is kept in {args.output}; run the same command again to resume.")
        return 130
    lines += _ceiling(mice)
    paths = write_results(args.output, args.study, study, lines, notes=notes, **written)
    print("\n\n".join(["", results_table(study, lines), *notes]))
    print(f"written: {', '.join(map(str, paths))}")
    return 0


def _page(args: argparse.Namespace) -> int:
    """Writes the page of the paper from what is finished; trains nothing."""
    recordings = " ".join(shlex.quote(str(path)) for path in args.recordings or ())
    options = f" --recordings {recordings}" if recordings else ""
    options += f" --scale {args.scale}" if args.scale != "two-cores" else ""
    options += f" --seeds {args.seeds}"
    folders = [args.output, *([] if args.beside is None else [args.beside])]
    if len({folder.resolve().name for folder in folders}) < len(folders):
        raise ConfigError("--output and --beside have the same name", got=folders[0].name)
    names = {folder.resolve().name: folder for folder in folders}
    paths = write_page(names, options=options, recordings=recordings or "RECORDINGS")
    print(f"written: {', '.join(map(str, paths))}")
    return 0


def _recordings(
    study: Study, paths: Sequence[Path] | None, output: Path, scale: Scale, nan_trials: NanTrials
) -> dict[str, Recording]:
    """The given recordings, by mouse; without any, simulated ones."""
    scale = replace(scale, **{name: max(number, getattr(scale, name)) for name, number in study.simulated.items()})
    paths = paths or [_simulated(output, scale, f"SIM{i}", 90_000 + i) for i in range(1, scale.mice + 1)]
    return by_mouse(open_recordings(paths, nan_trials=nan_trials))


def _source(
    study: Study, paths: Sequence[Path] | None, output: Path, scale: Scale, nan_trials: NanTrials
) -> dict[str, Recording]:
    """The recordings to train a transferred core on; without any, simulated ones with two channels as in Dataset F."""
    if all(variant.mice != "source" for variant in study.variants):
        if paths is not None:
            raise ConfigError("this study does not transfer a core: leave out --source")
        return {}
    paths = paths or [_simulated(output, scale, f"SIMF{i}", 91_000 + i, channels=2) for i in range(1, scale.mice + 1)]
    return by_mouse(open_recordings(paths, nan_trials=nan_trials))


def _simulated(output: Path, scale: Scale, mouse_id: str, animal: int, channels: int = 1) -> Path:
    """A simulated recording. Its images have the size that the models see, which saves disk space."""
    return simulate(
        output / f"recordings-{scale.trials}",
        mouse_id=mouse_id,
        data_key=f"{animal}-1-1",
        n_neurons=scale.neurons,
        n_train=scale.trials,
        image_shape=(channels, 36, 64),
    )


def _lines(done: Sequence[RunScores], runs: Sequence[Run], mice: Mapping[str, Recording]) -> list[Line]:
    """The lines of the table, for the runs that are done."""
    order = {id(run): i for i, run in enumerate(runs)}
    return [*lines_of(sorted(done, key=lambda result: order[id(result.run)])), *_ceiling(mice)]


def _ceiling(mice: Mapping[str, Recording]) -> list[Line]:
    """The line of the noise ceiling, if all mice are simulated."""
    known = {mouse: best for mouse, recording in mice.items() if (best := perfect_scores(recording)) is not None}
    perfect = {mouse: {name: best[name] for name in SHOWN} for mouse, best in known.items()}
    return [Line(CEILING, None, (perfect,))] if len(perfect) == len(mice) else []


def _with_ensemble(
    study: Study,
    done: Sequence[RunScores],
    lines: Sequence[Line],
    mice: Mapping[str, Recording],
    output: Path,
    hardware: Hardware,
) -> tuple[list[Line], list[str]]:
    """The lines together with the ensembles', and the notes below the table."""
    notes = []
    if any(line.label == CEILING for line in lines):
        notes.append(
            "The noise ceiling is the score of the simulation's own expected responses: no model can do better. FEVE "
            "can be above 1: it treats all variance between repeats as noise, but behaviour explains part of it."
        )
    lines, last = list(lines), None
    for label in study.ensembles:
        trained = [result.run for result in done if result.run.variant.label == label and not result.failed]
        if not trained:
            continue
        members = best_by_validation(trained, output, ENSEMBLE_SIZE)
        last = ensemble_of(members, output).to(hardware.resolved())
        if len(members) > 1:
            line = Line(f"{label} ensemble", None, (score(last, list(mice.values())),))
            at = next((i for i, other in enumerate(lines) if other.label == CEILING), len(lines))
            lines.insert(at, line)
            notes.append(
                f"The {label} ensemble: the best {len(members)} of {counted(len(trained), 'seed')} by validation."
            )
    return lines, notes if last is None else [*notes, *_retinotopy(last, mice)]


def _retinotopy(ensemble: Ensemble, mice: Mapping[str, Recording]) -> list[str]:
    """How well the readout positions of simulated mice agree with the truth, one sentence per mouse."""
    found = [retinotopy(ensemble, recording) for recording in mice.values()]
    return [
        f"Retinotopy, mouse {one.mouse_id}: readout positions correlate with the true receptive field centres at "
        f"{one.with_truth[0]:.3f} (x) and {one.with_truth[1]:.3f} (y), over the {int(one.reliable.sum())} of "
        f"{len(one.reliable)} neurons with a split-half reliability of {RELIABLE} or more."
        for one in found
        if one.with_truth is not None
    ]
