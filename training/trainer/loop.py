"""Trains one member (paper, section 4.2): all mice in every update, early stopping, resumable at any moment."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from training.checkpoints.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    library_versions,
    now,
    save_checkpoint,
    source_commit,
)
from training.config import ModelConfig, TrainingConfig
from training.data.batches import epoch_batches, read_ahead, read_batch, steps_per_epoch
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.errors import DivergenceError
from training.metrics import single_trial_correlation
from training.models import Twin
from training.trainer.early_stopping import Plateau
from training.trainer.hardware import Hardware
from training.trainer.loss import poisson_loss
from training.trainer.readout_init import fit_first_readouts
from training.trainer.state import Logs, RunState
from training.trainer.transfer import FeatureMaps, take_core
from training.trainer.update import Update, compiled_core

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["check_trials", "predict_tier", "start_member", "train_member", "validate"]

_VERDICTS = {"reduce": "  -> learning rate reduced, best weights restored", "stop": "  -> no better, done"}


def train_member(
    config: ModelConfig,
    training: TrainingConfig,
    recordings: Mapping[str, Recording],
    folder: Path,
    *,
    seed: int,
    device: torch.device | None = None,
    hardware: Hardware | None = None,
    fabric: Fabric | None = None,
    core: Checkpoint | None = None,
    freeze_core: bool = False,
    tensorboard: bool = False,
    label: str = "member",
    on_epoch: Callable[[int, float], None] | None = None,
) -> float:
    """Trains one member in a folder, or goes on where it was; returns the best validation score.

    Args:
        device, hardware: where; the hardware says it all, the device says what is not the default.
        fabric: the hardware's, where it was launched on several devices; else it is made here.
        core: its weights are those that the core starts with; frozen, they stay so, and the rest is trained.
        tensorboard: log there, too.
        on_epoch: told each epoch and its validation score once they are kept; what it raises ends the training.

    The folder ends with `checkpoint/` (the best weights), `log.csv` and `state.pt`. A kill at any moment costs at most
    the epoch that was running, or `training.save_minutes`; what follows is what an unbroken run would have done.

    Raises:
        DivergenceError: the loss became NaN or infinite; the last good weights are kept and the batch is named.
        CheckpointError: the folder cannot be written, or its state cannot be read.
    """
    hardware = hardware or Hardware(device=str(device or "cpu"))
    fabric = fabric or hardware.fabric()
    check_trials(recordings, training)
    folder.mkdir(parents=True, exist_ok=True)
    state = start_member(config, training, recordings, fabric, seed=seed, core=core, freeze_core=freeze_core)
    state.load(folder)
    if state.finished:
        return state.plateau.best
    twin = state.twin
    maps = FeatureMaps.of(twin, recordings, tiers=("train", "validation"))
    compiled = compiled_core(twin) if hardware.compile else None
    update = Update(twin, training, recordings, fabric, maps=maps, compiled=compiled)
    provenance = _provenance(training, hardware, recordings, seed, core, freeze_core)
    fresh = state.epoch == state.step == 0 and fabric.is_global_zero  # one decides: memory may differ where others run
    if fabric.broadcast(fresh and fit_first_readouts(twin, maps, recordings, training)):
        twin.load_state_dict(fabric.broadcast(twin.state_dict()))
        score = fabric.broadcast(validate(update) if fabric.is_global_zero else 0.0)
        verdict = _judge(state, training, score, epoch=0)
        if fabric.is_global_zero:
            if verdict == "improved":
                _save_best(folder / CHECKPOINT, state, provenance)
            tqdm.write(f"{label} readouts fitted by regression  validation {score:.4f}")
    logs = Logs(folder, epochs=state.epoch, tensorboard=tensorboard and fabric.is_global_zero)
    try:
        while not state.finished:
            epoch, started = state.epoch + 1, time.perf_counter()
            loss, waited = _train_epoch(update, state, folder, seed=seed, label=f"{label} epoch {epoch}")
            score = fabric.broadcast(validate(update) if fabric.is_global_zero else 0.0)
            rate = state.optimizer.param_groups[0]["lr"]
            verdict = _judge(state, training, score, epoch=epoch)
            seconds = time.perf_counter() - started
            row = {"epoch": epoch, "loss": loss, "validation": score, "learning_rate": rate, "seconds": seconds}
            if fabric.is_global_zero:
                if verdict == "improved":
                    _save_best(folder / CHECKPOINT, state, provenance)
                logs.add({**row, "waited": waited})
                state.save(folder)
                left = (training.max_epochs - epoch) * seconds
                tqdm.write(
                    f"{label} epoch {epoch:3d}/{training.max_epochs}  loss {loss:10.1f}  validation {score:.4f} "
                    f"(best {state.plateau.best:.4f})  lr {rate:.1e}  {seconds:.1f} s, at most {_duration(left)} left"
                    + _VERDICTS.get(verdict, "")
                )
            if on_epoch is not None:
                on_epoch(epoch, score)
    finally:
        logs.close()
    return state.plateau.best


def check_trials(recordings: Mapping[str, Recording], training: TrainingConfig) -> None:
    """Refuses a mouse that cannot be trained or validated on, before any work.

    Raises:
        RecordingError: too few training trials.
        ScoringError: no validation trials.
    """
    steps_per_epoch(recordings, training.batch_size)
    for recording in recordings.values():
        recording.scorable("validation")


def start_member(
    config: ModelConfig,
    training: TrainingConfig,
    recordings: Mapping[str, Recording],
    fabric: Fabric,
    *,
    seed: int,
    core: Checkpoint | None = None,
    freeze_core: bool = False,
) -> RunState:
    """A member before its first update."""
    torch.manual_seed(seed)
    twin = Twin(config, [Mouse.from_recording(recording) for recording in recordings.values()])
    if core is not None:
        take_core(twin, core)
    if freeze_core:
        twin.freeze_core()
    twin.to(fabric.device)
    trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=training.learning_rate, betas=(training.beta1, training.beta2), weight_decay=0.0
    )
    return RunState(twin, optimizer, Plateau(training.patience, training.max_reductions), fabric)


def _train_epoch(update: Update, state: RunState, folder: Path, *, seed: int, label: str) -> tuple[float, float]:
    """One epoch, or what is left of it; returns the mean loss of an update, and the seconds spent waiting for data."""
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
            if due and state.step < steps and update.fabric.world_size == 1:  # each process has masks of its own
                state.save(folder)
                saved = time.monotonic()
    loss, state.step, state.loss = state.loss / steps, 0, 0.0
    return loss, waited


def _step(
    update: Update, state: RunState, trials: Mapping[str, np.ndarray], batch: Any, *, epoch: int, steps: int
) -> float:
    training, optimizer = update.training, state.optimizer
    updates = (epoch - 1) * steps + state.step
    if updates < training.warmup:
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * (updates + 1) / training.warmup
    optimizer.zero_grad()
    loss = update.gradients(trials, batch)
    if not np.isfinite(loss):
        raise DivergenceError(
            f"the loss is {loss} at epoch {epoch}, update {state.step + 1}; the last good weights are kept",
            got={mouse_id: indices.tolist() for mouse_id, indices in trials.items()},
            hint="Look at those trials, or lower the learning rate.",
        )
    update.fabric.strategy.precision.optimizer_step(optimizer)
    return loss


def _judge(state: RunState, training: TrainingConfig, score: float, *, epoch: int) -> str:
    """Counts the epoch with this score, 0 being the start, and does what the plateau says."""
    state.epoch = epoch
    verdict = state.plateau.update(score, state.epoch)
    if verdict == "improved":
        state.best = copy.deepcopy({key: value.cpu() for key, value in state.twin.state_dict().items()})
    elif verdict == "reduce" and state.best:
        state.twin.load_state_dict(state.best)
        for group in state.optimizer.param_groups:
            group["lr"] *= training.factor
    state.finished = verdict == "stop" or state.epoch >= training.max_epochs
    return verdict


def predict_tier(
    twin: torch.nn.Module,
    recording: Recording,
    indices: np.ndarray,
    *,
    batch_size: int = 32,
    progress: str | None = None,
) -> np.ndarray:
    """Standardised predictions (T, N) for trials of a recording, by a twin or an ensemble."""
    device = next(twin.parameters()).device
    twin.eval()
    predictions = []
    with torch.inference_mode():
        for part in tqdm(
            _parts(indices, batch_size), desc=progress, unit="batch", leave=False, disable=None if progress else True
        ):
            image, behavior, pupil_center, _ = read_batch(recording, part, device)
            predictions.append(twin(recording.mouse_id, image, behavior, pupil_center).cpu().numpy())
    return np.concatenate(predictions)


def validate(update: Update, *, batch_size: int = 32) -> float:
    """The score that training watches, higher is better: a mean over mice, on the validation trials.

    Single-trial correlation, a mean over neurons; or the negative Poisson loss of a trial, summed over neurons.
    """
    update.twin.eval()
    scores = []
    for recording in update.recordings.values():
        indices = recording.scorable("validation").indices
        with torch.no_grad():
            predictions = torch.cat(
                [
                    update.predict(recording.mouse_id, part, *read_batch(recording, part, torch.device("cpu"))[:3])
                    for part in _parts(indices, batch_size)
                ]
            ).cpu()
        responses = recording.responses(indices)
        if update.training.monitor == "loss":
            standardized = torch.from_numpy(responses / recording.response_std)
            scores.append(-float(poisson_loss(predictions, standardized)) / len(indices))
        else:
            scores.append(float(np.nanmean(single_trial_correlation(responses, predictions.numpy()))))
    return float(np.mean(scores))


def _parts(indices: np.ndarray, size: int) -> Sequence[np.ndarray]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _provenance(
    training: TrainingConfig,
    hardware: Hardware,
    recordings: Mapping[str, Recording],
    seed: int,
    core: Checkpoint | None,
    frozen: bool,
) -> dict[str, Any]:
    origin = None
    if core is not None:
        origin = {
            "weights": core.weights_hash,
            "frozen": frozen,
            "mice": list(core.mice),
            "provenance": core.provenance,
        }
    return {
        "source": "trained",
        "seed": seed,
        "commit": source_commit(),
        "versions": library_versions(),
        "data_hashes": {mouse_id: recording.data_hash for mouse_id, recording in recordings.items()},
        "training": training.model_dump(mode="json"),
        "hardware": hardware.model_dump(mode="json"),
        **({} if origin is None else {"core": origin}),
    }


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
