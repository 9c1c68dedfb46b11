"""`python -m training sweep`: searches for better hyperparameters (paper, Tables A.2 and A.3) with Optuna.

TPE proposes options, Hyperband stops bad trials early, and any number of processes share one storage.

sweep.journal     the storage, unless --storage names a database
trials/NAME/      a trial's training, as `train` writes a member; NAME is a hash of its options, so a retry resumes it
best.yaml         the best model so far, for `train --config`
sweep.md, .json   the best trials, and how important each option is

A killed process leaves its trial marked as running in the storage. With the journal, every process holds a lock in the
folder of its trial, which the operating system releases when the process dies. The other processes then mark the trial
as failed and queue it again. Machines that share a database may have no common folder: there Optuna's heartbeat does
the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from training.arguments import add_device, add_options, add_output, add_recordings
from training.config import PRESETS, ModelConfig, parse_options, parse_training, with_options
from training.data.mouse import by_mouse, data_hashes, open_recordings
from training.data.recordings import Recording
from training.errors import CheckpointError, ConfigError, DivergenceError
from training.files import as_json, locked, write_files
from training.ray_pool import RayPool, add_ray
from training.studies.sweep_space import OPTIONS, SPACE, Choice, Range
from training.tables import markdown_table, number
from training.trainer.hardware import Hardware
from training.trainer.loop import train_member
from training.trainer.members import gpus_of
from training.trainer.run_spec import RunSpec
from training.trainer.state import LOG, read_log

__all__ = ["add_arguments", "run", "search"]

JOURNAL = "sweep.journal"
TRIALS = "trials"
LOCK = "lock"
LOCKED = "locked"  # the attribute of a trial whose process has had the lock: its own number, as retries copy attributes
RETRIES = 3  # of a trial whose process died
HEARTBEAT = 60  # seconds; a trial in a database without a heartbeat for twice as long counts as dead


@dataclass(frozen=True)
class Sweep:
    """What is searched: everything that is the same in all trials.

    Attributes:
        fixed: options of model and training that are not searched.
    """

    system: str
    space: Mapping[str, Range | Choice]
    fixed: Mapping[str, Any]
    recordings: Mapping[str, Recording]
    folder: Path
    seed: int
    hardware: Hardware

    def spec(self, values: Mapping[str, Any]) -> RunSpec:
        """The training of a trial with these values of the searched options."""
        return RunSpec(
            model=self.model(values),
            training=parse_training(self.training(values)),
            recordings=self.recordings,
            seed=self.seed,
            hardware=self.hardware,
        )

    def model(self, values: Mapping[str, Any]) -> ModelConfig:
        options = {name: value for name, value in {**self.fixed, **values}.items() if not _of_training(name)}
        return with_options(PRESETS[self.system], options)

    def training(self, values: Mapping[str, Any]) -> dict[str, Any]:
        given = {**self.fixed, **values}
        return {name.removeprefix("training."): value for name, value in given.items() if _of_training(name)}

    def name(self, values: Mapping[str, Any]) -> str:
        """The name of the trial's folder; equal values give equal names."""
        content = {"system": self.system, "seed": self.seed, **self.fixed, **values}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def trial_folder(self, values: Mapping[str, Any]) -> Path:
        return self.folder / TRIALS / self.name(values)


def _of_training(name: str) -> bool:
    return name.startswith("training.")


def search(sweep: Sweep, storage: BaseStorage, *, name: str, trials: int) -> optuna.Study:
    """Runs trials until the study has this number of completed or pruned ones, those of other processes included."""
    max_epochs = parse_training(sweep.training({})).max_epochs
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(constant_liar=True),  # counts the trials that are running
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=max_epochs, reduction_factor=3),
    )
    check_same(study, sweep)
    retry_dead(study, sweep)

    def enough() -> bool:
        return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))) >= trials

    def after(study: optuna.Study, trial: FrozenTrial) -> None:
        held.close()
        retry_dead(study, sweep)
        if enough():
            study.stop()

    if not enough():
        with ExitStack() as held:  # the lock of the trial, until its state is in the storage
            study.optimize(lambda trial: _run_trial(trial, sweep, held), callbacks=[after])
    return study


def _search_on_cluster(address: str, sweep: Sweep, storage: str | None, name: str, trials: int) -> None:
    """Searches with as many processes as the cluster has room for; they share the storage, as processes do here."""
    with RayPool(address, gpus=gpus_of(sweep.hardware)) as pool:
        searches = [
            pool.submit(_search_there, sweep, storage, name, trials) for _ in range(max(1, min(pool.slots, trials)))
        ]
        for one in searches:
            one.result()


def _search_there(sweep: Sweep, storage: str | None, name: str, trials: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    opened = open_storage(storage, sweep.folder)
    try:
        search(sweep, opened, name=name, trials=trials)
    finally:
        close(opened)


def check_same(study: optuna.Study, sweep: Sweep) -> None:
    """Checks that the study in the storage is this sweep.

    Raises:
        ConfigError: the storage has a study of this name with other recordings or options.
    """
    wanted = {
        "system": sweep.system,
        "seed": sweep.seed,
        "fixed": dict(sweep.fixed),
        "data": data_hashes(sweep.recordings.values()),
    }
    found = study.user_attrs.get("sweep")
    if found is None:
        study.set_user_attr("sweep", as_json(wanted))
    elif different := [key for key, value in as_json(wanted).items() if found.get(key) != value]:
        raise ConfigError(
            f"the storage holds another sweep with the name {study.study_name!r}: {' and '.join(different)} differ",
            hint="Give the same options to resume it, or another --name.",
        )


def _run_trial(trial: optuna.Trial, sweep: Sweep, held: ExitStack) -> float:
    """Trains one trial; returns its best validation score. `held` keeps the lock of its folder."""
    values = {name: range_.suggest(trial, name) for name, range_ in sweep.space.items()}
    folder = sweep.trial_folder(values)

    def report(epoch: int, score: float) -> None:
        trial.report(score, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {epoch}")

    held.enter_context(locked(folder / LOCK, wait=True))
    trial.set_user_attr(LOCKED, trial.number)
    for row in read_log(folder / LOG):  # the epochs of a process that died in this trial
        trial.report(float(row["validation"]), int(row["epoch"]))
    try:
        return train_member(sweep.spec(values), folder, label=f"trial {trial.number}", on_epoch=report)
    except KeyboardInterrupt:
        _queue_again(trial.study, trial)
        raise
    except DivergenceError as error:
        trial.set_user_attr("diverged", str(error))
        raise optuna.TrialPruned(str(error)) from error


def retry_dead(study: optuna.Study, sweep: Sweep) -> None:
    """Marks running trials whose process died as failed, and queues each again, at most `RETRIES` times."""
    if os.name != "posix":
        return  # without locks nothing tells a dead process from a running one
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get(LOCKED) != trial.number:
            continue  # about to start
        lock = sweep.trial_folder(trial.params) / LOCK
        if not lock.exists():
            continue  # on another machine
        try:
            with locked(lock):
                # With the lock, check again: meanwhile the trial may have ended, or another process may have failed it.
                if study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:
                    continue
                study.tell(trial.number, state=TrialState.FAIL)
                queued = _queue_again(study, trial)
        except CheckpointError:
            continue  # its process holds the lock, so it is alive
        print(f"trial {trial.number}: its process died; {'queued again' if queued else 'no retries left'}")


def _queue_again(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> bool:
    """Queues a trial again, unless it has no retries left; returns whether it did."""
    retry = int(trial.user_attrs.get("retry", 0)) + 1
    if retry <= RETRIES:
        study.enqueue_trial(trial.params, user_attrs={"retry": retry, "retry_of": trial.number})
    return retry <= RETRIES


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The journal in the sweep's folder, or any database that Optuna supports.

    Raises:
        ConfigError: the database cannot be opened.
    """
    if url is None:
        folder.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # about heartbeats
            return RDBStorage(
                url,
                heartbeat_interval=HEARTBEAT,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
            )
    except Exception as error:  # drivers of databases raise errors of their own
        raise ConfigError(f"--storage cannot be opened: {error}", expected="such as sqlite:///sweep.db") from error


def close(storage: BaseStorage) -> None:
    """Closes the connections to a database."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def write_best(sweep: Sweep, study: optuna.Study) -> str | None:
    """Writes best.yaml, sweep.md and sweep.json; returns the text of sweep.md, or None if no trial is complete."""
    ended = [trial for trial in study.trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    if not ended:
        return None
    ended.sort(key=lambda trial: -(trial.value or 0))
    best = ended[0]
    training = {**sweep.training(sweep.fixed), **sweep.training(best.params)}
    command = "python -m training train --config best.yaml --recordings ... --output ..."
    if training:
        command += " --set " + " ".join(f"training.{name}={value}" for name, value in training.items())
    importances, correlations = importances_of(study), correlations_of(ended)
    names = list(sweep.space)
    rows = [[str(t.number), f"{t.value:.4f}", *(_shown(t.params[name]) for name in names)] for t in ended[:10]]
    states = {state.name.lower(): sum(t.state == state for t in study.trials) for state in TrialState}
    parts = [
        markdown_table(["trial", "validation", *names], rows),
        _importance_table(importances, correlations) if importances else "Importances need more complete trials.",
        "Trials: " + ", ".join(f"{n} {state}" for state, n in states.items() if n) + ".",
        f"The best, {best.value:.4f} on validation trials: {command}",
    ]
    config = yaml.safe_dump(sweep.model(best.params).model_dump(mode="json"), sort_keys=False)
    text = "\n\n".join(parts)
    content = {"best": best.params, "validation": best.value, "importances": importances}
    content |= {"correlations": correlations, "trials": states}
    best_yaml = f"# {command}\n{config}"
    write_files(sweep.folder, {"best.yaml": best_yaml, "sweep.md": text + "\n", "sweep.json": content})
    return text


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _importance_table(importances: Mapping[str, float], correlations: Mapping[str, float]) -> str:
    """As Table A.3. The words of one option have a row each, with the importance of the option."""
    rows = [
        [name, f"{importance:.3f}", number(correlation)]
        for option, importance in importances.items()
        for name, correlation in correlations.items()
        if name.partition("=")[0] == option
    ]
    return markdown_table(["option", "importance", "correlation"], rows)


def correlations_of(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Option -> correlation of its values with the validation score, over complete trials; NaN if all are equal.

    For an option with words, OPTION=WORD -> correlation of the score with whether the option is this word.
    """
    scores = np.array([trial.value for trial in trials], dtype=np.float64)
    columns: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(name for trial in trials for name in trial.params):
        values = [trial.params.get(name) for trial in trials]
        if isinstance(values[0], str):
            words = trials[0].distributions[name].choices  # type: ignore[attr-defined]
            columns |= {f"{name}={word}": np.array([value == word for value in values], float) for word in words}
        else:
            columns[name] = np.array(values, dtype=np.float64)
    return {name: _correlation(values, scores) for name, values in columns.items()}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


def importances_of(study: optuna.Study) -> dict[str, float]:
    """Option -> importance (PED-ANOVA); they sum to 1. Empty with too few trials."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Optuna warns if there are too few: all would be equal
            return dict(optuna.importance.get_param_importances(study))
    except (ValueError, RuntimeError, UserWarning):
        return {}


EPILOG = (
    """options that are searched, unless --set fixes them:
"""
    + "\n".join(f"  {name:<24}{range_.described()}" for name, range_ in OPTIONS.items())
    + """

examples:
  python -m training sweep --recordings data/sensorium --output runs/sweep --trials 100 --device cuda
  python -m training sweep --recordings data --output runs/sweep --ray auto --storage postgresql+psycopg://lab/db

To share the work, run the same command in several terminals: processes with the same --output (or the same --storage
and --name) are one sweep, and --trials counts the trials of all of them. To resume, run the same command again.
"""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_recordings(parser)
    add_output(parser, "folder of the sweep")
    parser.add_argument("--trials", type=int, default=50, help="number of trials, over all processes (default: 50)")
    parser.add_argument("--model", choices=sorted(SPACE), default="v1t", help="system of Table 1 (default: v1t)")
    add_options(parser, "options that are fixed instead of searched")
    parser.add_argument("--storage", metavar="URL", help="database for Optuna (default: a journal in --output)")
    parser.add_argument("--name", default="sweep", help="name of the study in the storage (default: sweep)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every training (default: 0)")
    add_ray(parser, "trials")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    if args.trials < 1:
        raise ConfigError("a sweep needs at least one trial", got=args.trials)
    model, training = parse_options(args.set)
    fixed = {**model, **{f"training.{name}": value for name, value in training.items()}}
    sweep = Sweep(
        system=args.model,
        space={name: range_ for name, range_ in SPACE[args.model].items() if name not in fixed},
        fixed=fixed,
        recordings=by_mouse(open_recordings(args.recordings, nan_trials=args.nan_trials)),
        folder=args.output,
        seed=args.seed,
        hardware=Hardware(device=args.device),
    )
    sweep.model({})  # refuses contradicting options before any work
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # epochs are printed anyway
    storage = open_storage(args.storage, args.output)
    try:
        if args.ray is not None:
            _search_on_cluster(args.ray, sweep, args.storage, args.name, args.trials)
        study = search(sweep, storage, name=args.name, trials=args.trials)
        print(write_best(sweep, study) or "All trials were pruned. Give more --trials or training.max_epochs.")
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished trials are kept in {args.output}; run the same command again to resume.")
        return 130
    finally:
        close(storage)
    return 0
