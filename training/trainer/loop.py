"""Trains one member (paper, section 4.2): batches of all mice in every step, early stopping, resumable after a kill."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from training.checkpoints.checkpoint import CHECKPOINT, Checkpoint, now, save_checkpoint
from training.config import TrainingConfig
from training.data.batches import batches_of, epoch_batches, read_ahead, steps_per_epoch
from training.data.recordings import Recording
from training.errors import DivergenceError
from training.metrics import single_trial_correlation
from training.models import Twin
from training.trainer.early_stopping import Plateau
from training.trainer.loss import poisson_loss
from training.trainer.readout_start.start import start_readouts
from training.trainer.run_spec import RunSpec
from training.trainer.state import Logs, RunState
from training.trainer.transfer import FeatureMaps, take_core
from training.trainer.update import Update

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["check_trials", "epochs_left", "predict_trials", "start_member", "train_member", "validate"]

_VERDICTS = {"reduce": "  -> learning rate reduced, best weights restored", "stop": "  -> no improvement, stopped"}


def train_member(
    spec: RunSpec,
    folder: Path,
    *,
    member: int = 0,
    fabric: Fabric | None = None,
    label: str | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> float:
    """Trains one member of a run, or resumes it; returns its best validation score.

    The folder ends with `checkpoint/` (the best weights), `log.csv` and `state.pt`. A kill costs at most the epoch that
    was running, or `training.save_minutes`. The resumed run gives the same weights as an uninterrupted one.

    Args:
        fabric: an already launched Fabric, for several devices; otherwise one is made from `spec.hardware`.
        label: the member's name in progress lines.
        on_epoch: called with each epoch and its validation score after they are saved; an exception ends the training.

    Raises:
        DivergenceError: the loss became NaN or infinite; the message names the batch. The last good weights are kept.
        CheckpointError: the folder cannot be written, or its state cannot be read.
    """
    training, recordings = spec.training, spec.recordings
    label = label or f"member {member + 1}/{spec.members}"
    fabric = fabric or spec.hardware.fabric()
    check_trials(spec)
    folder.mkdir(parents=True, exist_ok=True)
    state = start_member(spec, fabric, member)
    state.load(folder)
    if state.finished:
        return state.plateau.best
    twin = state.twin
    maps = FeatureMaps.of(twin, recordings, tiers=("train", "validation"))
    compiled = torch.compile(twin.core) if spec.hardware.compile else None
    update = Update(twin, training, recordings, fabric, maps=maps, compiled=compiled)
    provenance = spec.provenance(member)
    # One process decides for all: the others may have less free memory, and so no maps.
    fresh = state.epoch == state.step == 0 and fabric.is_global_zero
    start = "random"
    if fresh and spec.start is not None:
        spec.start(twin)
    elif fresh:
        start = start_readouts(twin, maps, recordings, training, folder, label=label)
    start = fabric.broadcast(start)
    if start != "random":
        twin.load_state_dict(fabric.broadcast(twin.state_dict()))
    if start == "regression":
        score = fabric.broadcast(validate(update) if fabric.is_global_zero else 0.0)
        verdict = _end_epoch(state, training, score, epoch=0)
        if fabric.is_global_zero:
            if verdict == "improved":
                _save_best(folder / CHECKPOINT, state, provenance)
            tqdm.write(f"{label} readouts fitted by regression  validation {score:.4f}")
    logs = Logs(folder, epochs=state.epoch, tensorboard=spec.tensorboard and fabric.is_global_zero)
    with closing(logs):
        while not state.finished:
            epoch, started = state.epoch + 1, time.perf_counter()
            loss, waited = _train_epoch(update, state, folder, seed=spec.seed + member, label=f"{label} epoch {epoch}")
            score = fabric.broadcast(validate(update) if fabric.is_global_zero else 0.0)
            rate = state.optimizer.param_groups[0]["lr"]
            verdict = _end_epoch(state, training, score, epoch=epoch)
            seconds = time.perf_counter() - started
            row = {"epoch": epoch, "loss": loss, "validation": score, "learning_rate": rate, "seconds": seconds}
            if fabric.is_global_zero:
                if verdict == "improved":
                    _save_best(folder / CHECKPOINT, state, provenance)
                logs.add({**row, "waited": waited})
                state.save(folder)
                left = _duration(seconds * epochs_left(spec, member, epoch))
                whose = f" for all {spec.members} members" if spec.members > 1 else ""
                tqdm.write(
                    f"{label} epoch {epoch:3d}/{training.max_epochs}  loss {loss:10.1f}  validation {score:.4f} "
                    f"(best {state.plateau.best:.4f})  lr {rate:.1e}  {seconds:.1f} s, at most {left} left{whose}"
                    + _VERDICTS.get(verdict, "")
                )
            if on_epoch is not None:
                on_epoch(epoch, score)
    return state.plateau.best


def epochs_left(spec: RunSpec, member: int, epoch: int) -> int:
    """Epochs, at most, after this one of this member until all members of the run are trained.

    Members that are trained at the same time count once.
    """
    rounds = -(-spec.members // spec.parallel) - 1 - member // spec.parallel
    return spec.training.max_epochs * (1 + rounds) - epoch


def check_trials(spec: RunSpec) -> None:
    """Checks, before any work, that every mouse has trials to train and to validate on.

    Raises:
        RecordingError: too few training trials.
        ScoringError: no validation trials.
    """
    steps_per_epoch(spec.recordings, spec.training.batch_size)
    for recording in spec.recordings.values():
        recording.scorable("validation")


def start_member(spec: RunSpec, fabric: Fabric, member: int = 0) -> RunState:
    """A member before its first update."""
    training = spec.training
    torch.manual_seed(spec.seed + member)
    twin = spec.twin()
    if (core := spec.core(member)) is not None:
        take_core(twin, core)
    if spec.freeze_core:
        twin.freeze_core()
    twin.to(fabric.device)
    trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=training.learning_rate, betas=(training.beta1, training.beta2), weight_decay=0.0
    )
    return RunState(twin, optimizer, Plateau(training.patience, training.max_reductions), fabric)


def _train_epoch(update: Update, state: RunState, folder: Path, *, seed: int, label: str) -> tuple[float, float]:
    """Trains one epoch, or the rest of it; returns the mean loss per update and the seconds spent waiting for data."""
    training, epoch = update.training, state.epoch + 1
    steps = steps_per_epoch(update.recordings, training.batch_size)
    state.seed_epoch(seed)
    state.twin.train()
    orders = epoch_batches(update.recordings, batch_size=training.batch_size, seed=seed, epoch=epoch)
    batches = read_ahead((trials, update.read(trials)) for trials in itertools.islice(orders, state.step, None))
    waited, saved = 0.0, time.monotonic()
    bar = tqdm(desc=label, total=steps, initial=state.step, unit="update", leave=False, disable=None)
    with bar, closing(batches):
        while state.step < steps:
            started = time.perf_counter()
            trials, batch = next(batches)
            waited += time.perf_counter() - started
            state.loss += _step(update, state, trials, batch, epoch=epoch, steps=steps)
            state.step += 1
            bar.update()
            due = time.monotonic() - saved > 60 * training.save_minutes
            if due and state.step < steps and update.fabric.world_size == 1:  # processes draw different masks
                state.save(folder)
                saved = time.monotonic()
    loss, state.step, state.loss = state.loss / steps, 0, 0.0
    return loss, waited


def _step(
    update: Update, state: RunState, trials: Mapping[str, np.ndarray], batch: Any, *, epoch: int, steps: int
) -> float:
    training, optimizer = update.training, state.optimizer
    updates = (epoch - 1) * steps + state.step
    if updates < training.warmup or training.schedule == "cosine":
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * _share_of_rate(training, updates, training.max_epochs * steps)
    each = [{mouse_id: indices} for mouse_id, indices in trials.items()]
    total = 0.0
    for together in [trials] if training.update_after == "all_mice" else each:
        optimizer.zero_grad()
        loss = update.gradients(together, batch)
        if not np.isfinite(loss):
            raise DivergenceError(
                f"the loss is {loss} at epoch {epoch}, update {state.step + 1}; the last good weights are kept",
                got={mouse_id: indices.tolist() for mouse_id, indices in together.items()},
                hint="Check these trials, or lower the learning rate.",
            )
        update.fabric.strategy.precision.optimizer_step(optimizer)
        total += loss
    return total


def _share_of_rate(training: TrainingConfig, updates: int, total: int) -> float:
    """The share of the learning rate after this many updates: it rises linearly, then may fall along a cosine."""
    rising = min(1.0, (updates + 1) / training.warmup) if training.warmup else 1.0
    return rising * (0.5 + 0.5 * math.cos(math.pi * updates / total)) if training.schedule == "cosine" else rising


def _end_epoch(state: RunState, training: TrainingConfig, score: float, *, epoch: int) -> str:
    """Updates state and early stopping with an epoch's score; epoch 0 is the state before the first update."""
    state.epoch = epoch
    verdict = state.plateau.update(score, state.epoch)
    if verdict == "improved":
        state.best = copy.deepcopy({key: value.cpu() for key, value in state.twin.state_dict().items()})
    elif verdict == "reduce" and state.best and training.schedule == "plateau":
        state.twin.load_state_dict(state.best)
        for group in state.optimizer.param_groups:
            group["lr"] *= training.factor
    state.finished = verdict == "stop" or state.epoch >= training.max_epochs
    return verdict


def predict_trials(
    twin: torch.nn.Module, recording: Recording, indices: np.ndarray, *, progress: str | None = None
) -> np.ndarray:
    """Standardised predictions (T, N) of a twin or an ensemble, for trials of a recording by file number."""
    device = next(twin.parameters()).device
    twin.eval()
    with torch.inference_mode():
        predictions = [
            twin(recording.mouse_id, *inputs).cpu().numpy()
            for _, (*inputs, _) in batches_of(recording, indices, device, progress=progress)
        ]
    return np.concatenate(predictions)


def validate(update: Update) -> float:
    """The validation score that early stopping watches (higher is better), as a mean over mice.

    The mean single-trial correlation of a mouse's neurons, or its negative Poisson loss per trial, summed over neurons.
    """
    update.twin.eval()
    scores = []
    for recording in update.recordings.values():
        indices = recording.scorable("validation").indices
        with torch.no_grad():
            batches = batches_of(recording, indices, torch.device("cpu"))
            predictions = torch.cat(
                [update.predict(recording.mouse_id, part, *inputs) for part, (*inputs, _) in batches]
            ).cpu()
        responses = recording.responses(indices)
        if update.training.monitor == "loss":
            standardized = torch.from_numpy(responses / recording.response_std)
            scores.append(-float(poisson_loss(predictions, standardized)) / len(indices))
        else:
            scores.append(float(np.nanmean(single_trial_correlation(responses, predictions.numpy()))))
    return float(np.mean(scores))


def _save_best(path: Path, state: RunState, provenance: dict[str, Any]) -> None:
    best = Twin(state.twin.config, list(state.twin.mice.values()))
    best.load_state_dict(state.best)
    best_score = state.plateau.best
    about: dict[str, Any] = {"created": now(), "epoch": state.plateau.best_epoch}
    if provenance["training"]["monitor"] == "loss":
        about["validation_loss"] = -best_score
    else:
        about["validation_single_trial_correlation"] = best_score
    save_checkpoint(path, Checkpoint(twin=best, provenance={**provenance, **about}))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
