"""Trains and scores the runs of a study, and resumes what was interrupted.

runs/NAME/              a run folder, as `python -m training train` makes it
runs/NAME/scores.json   mouse_id -> score -> mean over neurons; written when the run is scored
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from training.checkpoints.checkpoint import CHECKPOINT, load_checkpoint
from training.checkpoints.ensemble import MEMBERS, Ensemble, load_ensemble
from training.data.batches import steps_per_epoch
from training.data.mouse import by_mouse
from training.data.recordings import Recording
from training.errors import CheckpointError, DivergenceError
from training.evaluation.evaluate import evaluate
from training.files import write_files
from training.ray_pool import RayPool
from training.studies.plan import Run
from training.trainer.hardware import Hardware
from training.trainer.members import gpus_of, member_folder, worker_pool
from training.trainer.run import SCORES as VALIDATION
from training.trainer.run import train_ensemble
from training.trainer.run_spec import RunSpec

__all__ = ["UPDATES", "RunScores", "Scores", "best_by_validation", "checkpoint_of", "ensemble_of", "run_all", "score"]

RUNS = "runs"
RUN_SCORES = "scores.json"
UPDATES = "updates"  # the number of updates up to the best weights; saved with a mouse's scores

# mouse_id -> score -> mean over neurons
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class RunScores:
    """The result of one training.

    Attributes:
        failed: why there are no scores: the loss diverged.
        known: the scores are from an earlier call; nothing was trained in this one.
    """

    run: Run
    scores: Scores
    failed: str | None = None
    known: bool = False


def run_all(
    runs: Sequence[Run],
    recordings: Mapping[str, Recording],
    folder: Path,
    *,
    hardware: Hardware | None = None,
    workers: int = 1,
    ray: str | None = None,
) -> Iterator[RunScores]:
    """Trains and scores runs, and yields each when it is done.

    Runs whose scores are known come first, and runs whose core is transferred come before those that take it.

    Args:
        workers: the number of trainings at the same time, each in its own process with its share of the CPU's threads.
        ray: the address of a Ray cluster that trains them, as many at the same time as it has room for.
    """
    hardware = hardware or Hardware()
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    unique = [next((run for run in same if run.variant.shown), same[0]) for same in by_name.values()]
    known = [result for run in unique if (result := _known(run, folder)) is not None]
    names = {result.run.name for result in known}
    left = [run for run in unique if run.name not in names]
    with tqdm(total=len(unique), desc="study", unit="run", disable=None) as bar:
        if workers > 1 or ray is not None:
            trained = _train_in_parallel(left, names, recordings, folder, hardware, workers, ray)
        else:
            trained = (_train(run, recordings, folder, hardware) for run in left)
        for result in itertools.chain(known, trained):
            bar.update()
            yield from (replace(result, run=run) for run in by_name[result.run.name])


def _train_in_parallel(
    runs: Sequence[Run],
    finished: set[str],
    recordings: Mapping[str, Recording],
    folder: Path,
    hardware: Hardware,
    workers: int,
    ray: str | None,
) -> Iterator[RunScores]:
    """Starts a run as soon as the run whose core it takes is finished."""
    left, finished = list(runs), set(finished)
    executor: Executor
    if ray is None:
        executor = worker_pool(workers, threads=max(1, (os.cpu_count() or 1) // workers))
    else:
        executor, workers = RayPool(ray, gpus=gpus_of(hardware)), len(left)  # Ray starts those that it has room for
    running: dict[Future[RunScores], Run] = {}
    try:
        while left or running:
            while len(running) < workers and (ready := _first_ready(left, finished)) is not None:
                left.remove(ready)
                running[executor.submit(_train, ready, dict(recordings), folder, hardware)] = ready
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                finished.add(running.pop(future).name)
                yield future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _first_ready(runs: Sequence[Run], finished: set[str]) -> Run | None:
    return next((run for run in runs if run.core is None or run.core.name in finished), None)


def _known(run: Run, folder: Path) -> RunScores | None:
    """The scores of a run that is finished already."""
    path = folder / RUNS / run.name / RUN_SCORES
    return RunScores(run, json.loads(path.read_text(encoding="utf-8")), known=True) if path.exists() else None


def _train(run: Run, recordings: Mapping[str, Recording], folder: Path, hardware: Hardware) -> RunScores:
    """Trains and scores a run."""
    tqdm.write(f"{run.label}: {folder / RUNS / run.name}")
    own = [recordings[mouse_id] for mouse_id in run.mice]
    own = [recording.without(run.variant.without) if run.variant.without else recording for recording in own]
    scored = own
    if run.variant.trials is not None:
        own = [recording.with_train_trials(run.variant.trials, seed=run.seed) for recording in own]
    spec = RunSpec(
        model=run.model,
        training=run.training,
        recordings=by_mouse(own),
        seed=run.seed,
        cores=[] if run.core is None else [load_checkpoint(checkpoint_of(run.core, folder))],
        freeze_core=run.core is not None,
        hardware=hardware,
    )
    try:
        (checkpoint,) = train_ensemble(spec, folder / RUNS / run.name)
    except DivergenceError as error:
        return RunScores(run, {}, failed=str(error))
    if not run.variant.shown:
        return RunScores(run, {})
    ensemble = load_ensemble([checkpoint]).to(hardware.resolved())
    scores = score(ensemble, scored)
    steps = steps_per_epoch(spec.recordings, run.training.batch_size)
    if run.training.update_after == "each_mouse":
        steps *= len(own)
    for mouse in scores.values():
        mouse[UPDATES] = float(ensemble.members[0].provenance["epoch"] * steps)
    write_files(folder / RUNS / run.name, {RUN_SCORES: scores})
    return RunScores(run, scores)


def score(ensemble: Ensemble, recordings: Sequence[Recording]) -> Scores:
    """Scores on the test trials, as `python -m training evaluate` computes them."""
    return {mouse_id: dict(mouse.summary) for mouse_id, mouse in evaluate(ensemble, recordings).items()}


def checkpoint_of(run: Run, folder: Path) -> Path:
    """The checkpoint of a run.

    Raises:
        CheckpointError: the run is not trained.
    """
    checkpoint = member_folder(folder / RUNS / run.name, 0) / CHECKPOINT
    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint} does not exist: the run is not trained")
    return checkpoint


def best_by_validation(runs: Sequence[Run], folder: Path, n: int) -> list[Run]:
    """The n runs with the best validation score, in the given order; all of them if there are no more than n."""

    def validation(run: Run) -> float:
        return float(json.loads((folder / RUNS / run.name / MEMBERS).read_text(encoding="utf-8"))[VALIDATION][0])

    best = sorted(runs, key=validation, reverse=True)[:n]
    return [run for run in runs if run in best]


def ensemble_of(runs: Sequence[Run], folder: Path) -> Ensemble:
    """The ensemble of several runs of the same mice."""
    return load_ensemble([checkpoint_of(run, folder) for run in runs])
