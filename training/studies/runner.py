"""Trains and scores the runs of a study, in any order of interruptions.

runs/NAME/        a run folder as `python -m training train` makes it; the same study goes on at its last epoch
runs/NAME/scores.json   written when its scores are known: mouse -> score
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from training.checkpoints.checkpoint import load_checkpoint
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.data.batches import steps_per_epoch
from training.data.recordings import Recording
from training.errors import CheckpointError, DivergenceError
from training.evaluation.evaluate import evaluate
from training.files import write_atomically
from training.metrics import correlation_to_average, fev_feve, mean_feve, single_trial_correlation
from training.simulation.simulate import TRUTH
from training.studies.plan import Run
from training.tables import as_json
from training.trainer.members import end_with
from training.trainer.run import device_named, train_ensemble

__all__ = ["UPDATES", "RunScores", "Scores", "checkpoint_of", "ensemble_of", "perfect_scores", "run_all", "score"]

RUNS = "runs"
RUN_SCORES = "scores.json"
UPDATES = "updates"  # up to the best weights; kept beside a mouse's scores

# mouse_id -> score -> mean over neurons
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class RunScores:
    """What one training came to; a run whose loss diverged has the reason instead of scores.

    Attributes:
        known: since an earlier call; nothing was trained for it in this one.
    """

    run: Run
    scores: Scores
    failed: str | None = None
    known: bool = False


def run_all(
    runs: Sequence[Run], recordings: Mapping[str, Recording], folder: Path, *, device: str = "cpu", workers: int = 1
) -> Iterator[RunScores]:
    """Trains and scores what is not yet, and yields every run when it is done; what is known already comes first, cores
    come before those that take them.

    Args:
        workers: trainings side by side, each in a process of its own with its share of the CPU's threads.
    """
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    unique = [next((run for run in same if run.variant.shown), same[0]) for same in by_name.values()]
    known = [result for run in unique if (result := _known(run, folder)) is not None]
    names = {result.run.name for result in known}
    left = [run for run in unique if run.name not in names]
    with tqdm(total=len(unique), desc="study", unit="run", disable=None) as bar:
        trained = _one_by_one(left, recordings, folder, device)
        if workers > 1:
            trained = _side_by_side(left, names, recordings, folder, device, workers)
        for result in itertools.chain(known, trained):
            bar.update()
            yield from (replace(result, run=run) for run in by_name[result.run.name])


def _one_by_one(
    runs: Iterable[Run], recordings: Mapping[str, Recording], folder: Path, device: str
) -> Iterator[RunScores]:
    for run in runs:
        yield _done(run, recordings, folder, device)


def _side_by_side(
    runs: Sequence[Run],
    finished: set[str],
    recordings: Mapping[str, Recording],
    folder: Path,
    device: str,
    workers: int,
) -> Iterator[RunScores]:
    """Runs whose core is among the finished, or finishes meanwhile."""
    left, finished = list(runs), set(finished)
    executor = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(), workers)
    )
    going: dict[Future[RunScores], Run] = {}
    try:
        while left or going:
            while len(going) < workers and (ready := _first_ready(left, finished)) is not None:
                left.remove(ready)
                going[executor.submit(_done, ready, dict(recordings), folder, device)] = ready
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                finished.add(going.pop(future).name)
                yield future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _first_ready(runs: Sequence[Run], finished: set[str]) -> Run | None:
    return next((run for run in runs if run.core is None or run.core.name in finished), None)


def _start_worker(parent: int, workers: int) -> None:
    end_with(parent)
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would write over each other
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def _known(run: Run, folder: Path) -> RunScores | None:
    """Scores of a run that was trained before."""
    path = folder / RUNS / run.name / RUN_SCORES
    return RunScores(run, json.loads(path.read_text(encoding="utf-8")), known=True) if path.exists() else None


def _done(run: Run, recordings: Mapping[str, Recording], folder: Path, device: str) -> RunScores:
    """Scores of a run, trained for."""
    tqdm.write(f"{run.label}: {folder / RUNS / run.name}")
    own = [recordings[mouse_id] for mouse_id in run.mice]
    if run.variant.trials is not None:
        own = [recording.with_train_trials(run.variant.trials, seed=run.seed) for recording in own]
    try:
        (checkpoint,) = train_ensemble(
            run.model,
            run.training,
            own,
            folder / RUNS / run.name,
            seed=run.seed,
            device=device_named(device),
            cores=[] if run.core is None else [load_checkpoint(checkpoint_of(run.core, folder))],
            freeze_core=run.core is not None,
        )
    except DivergenceError as error:
        return RunScores(run, {}, failed=str(error))
    if not run.variant.shown:
        return RunScores(run, {})
    ensemble = load_ensemble([checkpoint]).to(device_named(device))
    scores = score(ensemble, [recordings[mouse_id] for mouse_id in run.mice])
    steps = steps_per_epoch({recording.mouse_id: recording for recording in own}, run.training.batch_size)
    for mouse in scores.values():
        mouse[UPDATES] = float(ensemble.members[0].provenance["epoch"] * steps)
    write_atomically(folder / RUNS / run.name / RUN_SCORES, json.dumps(as_json(scores), indent=2).encode())
    return RunScores(run, scores)


def score(ensemble: Ensemble, recordings: Sequence[Recording]) -> Scores:
    """On the test trials, as `python -m training evaluate` does."""
    return {mouse_id: dict(mouse.summary) for mouse_id, mouse in evaluate(ensemble, recordings).items()}


def checkpoint_of(run: Run, folder: Path) -> Path:
    """Where a run's trained weights lie.

    Raises:
        CheckpointError: it is not trained.
    """
    checkpoint = folder / RUNS / run.name / "member-0" / "checkpoint"
    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint} is not trained")
    return checkpoint


def ensemble_of(runs: Sequence[Run], folder: Path, device: str) -> Ensemble:
    """The ensemble of some runs of the same mice."""
    return load_ensemble([checkpoint_of(run, folder) for run in runs]).to(device_named(device))


def perfect_scores(recording: Recording) -> dict[str, float] | None:
    """What a perfect model would score: the true expected responses of a simulated mouse. None for a real one."""
    path = recording.path / TRUTH
    if not recording.simulated or not path.is_file():
        return None
    trials = recording.scorable("test")
    with np.load(path, allow_pickle=False) as truth:
        expected = truth["expected_responses"][trials.indices]
    responses = recording.responses(trials.indices)
    fev, feve = fev_feve(responses, expected, trials.image_ids)
    values: dict[str, Any] = {
        "single_trial_correlation": np.mean(single_trial_correlation(responses, expected)),
        "correlation_to_average": np.mean(correlation_to_average(responses, expected, trials.image_ids)),
        "feve": mean_feve(fev, feve),
    }
    return {name: float(value) for name, value in values.items()}
