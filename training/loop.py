"""Trains one member (paper, section 4.2): all mice in every update, early stopping, resumable at every epoch."""

from __future__ import annotations

import copy
import csv
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from training.batches import epoch_batches, read_batch, steps_per_epoch
from training.checkpoint import Checkpoint, library_versions, now, save_checkpoint, source_commit, write_atomically
from training.config import ModelConfig
from training.errors import CheckpointError, DivergenceError
from training.loss import poisson_loss
from training.metrics import single_trial_correlation
from training.models import Twin
from training.mouse import Mouse
from training.plateau import Plateau
from training.recordings import Recording
from training.transfer import FeatureMaps, take_core

__all__ = ["TrainingConfig", "predict_tier", "train_member"]

STATE = "state.pt"
LOG = "log.csv"
CHECKPOINT = "checkpoint"
_VERDICTS = {"reduce": "  -> learning rate reduced, best weights restored", "stop": "  -> no better, done"}


class TrainingConfig(BaseModel):
    """How a member is trained; the defaults are the paper's (section 4.2 and Table A.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=16, ge=1, description="trials of each mouse in one update")
    micro_batch: int | None = Field(default=None, ge=1, description="trials in memory at once; the update is the same")
    learning_rate: float = Field(default=0.0016, gt=0)
    warmup: int = Field(
        default=0, ge=0, description="updates over which the learning rate rises from 0; keeps readout positions inside"
    )
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.9999, ge=0, lt=1)
    max_epochs: int = Field(default=200, ge=1)
    patience: int = Field(default=10, ge=0, description="epochs without a better validation score before a reduction")
    factor: float = Field(default=0.3, gt=0, lt=1, description="of the learning rate at a reduction")
    max_reductions: int = Field(default=2, ge=0, description="reductions without a better score before the end")
    scale_loss: bool = Field(default=True, description="by sqrt(training trials / batch), per mouse")


@dataclass
class _State:
    """All that a resumed run needs; the order of trials and the dropout masks follow from seed and epoch."""

    twin: Twin
    optimizer: torch.optim.Optimizer
    plateau: Plateau
    best: dict[str, torch.Tensor]
    epoch: int = 0
    finished: bool = False

    def save(self, path: Path) -> None:
        content = io.BytesIO()
        torch.save(
            {
                "twin": self.twin.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "plateau": self.plateau.state_dict(),
                "best": self.best,
                "epoch": self.epoch,
                "finished": self.finished,
            },
            content,
        )
        try:
            write_atomically(path, content.getvalue())
        except OSError as error:
            raise CheckpointError(
                f"cannot write {path}: {error.strerror}",
                hint="The last good state is kept; make room and run it again.",
            ) from error

    def load(self, path: Path) -> None:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            self.twin.load_state_dict(state["twin"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.plateau.load_state_dict(state["plateau"])
            self.best, self.epoch, self.finished = state["best"], state["epoch"], state["finished"]
        except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
            raise CheckpointError(
                f"{path} cannot be resumed from: {error}", hint="Delete the run's folder to start again."
            ) from error


def train_member(
    config: ModelConfig,
    training: TrainingConfig,
    recordings: Mapping[str, Recording],
    folder: Path,
    *,
    seed: int,
    device: torch.device | None = None,
    core: Checkpoint | None = None,
    freeze_core: bool = False,
    label: str = "member",
    on_epoch: Callable[[int, float], None] | None = None,
) -> float:
    """Trains one member in a folder, or goes on where it was; returns the best validation correlation.

    `on_epoch` is told each epoch and its validation score once they are kept; what it raises ends the training.

    With `core` the core's weights start as that checkpoint's; frozen, they stay so, and the rest is trained.
    The folder ends with `checkpoint/` (the best weights), `log.csv` and `state.pt`. A kill at any moment costs at most
    the epoch that was running.

    Raises:
        DivergenceError: the loss became NaN or infinite; the last good weights are kept and the batch is named.
        CheckpointError: the folder cannot be written, or its state cannot be read.
    """
    device = device or torch.device("cpu")
    folder.mkdir(parents=True, exist_ok=True)
    mice = [Mouse.from_recording(recording) for recording in recordings.values()]
    torch.manual_seed(seed)
    twin = Twin(config, mice).to(device)
    if core is not None:
        take_core(twin, core)
    if freeze_core:
        twin.freeze_core()
    trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=training.learning_rate, betas=(training.beta1, training.beta2), weight_decay=0.0
    )
    state = _State(twin, optimizer, Plateau(training.patience, training.max_reductions), best={})
    if (folder / STATE).exists():
        state.load(folder / STATE)
    rows = _read_log(folder / LOG, state.epoch)
    origin = None if core is None else _origin(core, freeze_core)
    maps = None if state.finished else FeatureMaps.of(twin, recordings, tiers=("train", "validation"))
    steps = steps_per_epoch(recordings, training.batch_size)
    while not state.finished:
        epoch = state.epoch + 1
        started = time.perf_counter()
        torch.manual_seed(seed * 1_000_003 + epoch)
        loss = _train_epoch(twin, optimizer, training, recordings, seed, epoch, f"{label} epoch {epoch}", steps, maps)
        score = validate(twin, recordings, device, maps)
        rate = optimizer.param_groups[0]["lr"]
        verdict = state.plateau.update(score, epoch)
        if verdict == "improved":
            state.best = copy.deepcopy({key: value.cpu() for key, value in twin.state_dict().items()})
        elif verdict == "reduce":
            twin.load_state_dict(state.best)
            for group in optimizer.param_groups:
                group["lr"] *= training.factor
        state.epoch = epoch
        state.finished = verdict == "stop" or epoch >= training.max_epochs
        seconds = time.perf_counter() - started
        rows.append({"epoch": epoch, "loss": loss, "validation": score, "learning_rate": rate, "seconds": seconds})
        if verdict == "improved":
            _save_best(folder, state, mice, config, training, seed, recordings, origin)
        _write_log(folder / LOG, rows)
        state.save(folder / STATE)
        left = (training.max_epochs - epoch) * seconds
        tqdm.write(
            f"{label} epoch {epoch:3d}/{training.max_epochs}  loss {loss:10.1f}  validation {score:.4f} "
            f"(best {state.plateau.best:.4f})  lr {rate:.1e}  {seconds:.1f} s, at most {_duration(left)} left"
            + _VERDICTS.get(verdict, "")
        )
        if on_epoch is not None:
            on_epoch(epoch, score)
    return state.plateau.best


def _train_epoch(
    twin: Twin,
    optimizer: torch.optim.Optimizer,
    training: TrainingConfig,
    recordings: Mapping[str, Recording],
    seed: int,
    epoch: int,
    label: str,
    steps: int,
    maps: FeatureMaps | None = None,
) -> float:
    """One epoch; returns the mean loss of an update."""
    twin.train()
    device = next(twin.parameters()).device
    total = 0.0
    batches = epoch_batches(recordings, batch_size=training.batch_size, seed=seed, epoch=epoch)
    for step, trials in enumerate(tqdm(batches, desc=label, total=steps, unit="update", leave=False, disable=None)):
        updates = (epoch - 1) * steps + step
        if updates < training.warmup:
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * (updates + 1) / training.warmup
        optimizer.zero_grad()
        loss = torch.zeros((), device=device)
        for mouse_id, indices in trials.items():
            loss += _accumulate(twin, training, recordings[mouse_id], mouse_id, indices, device, maps)
        if not torch.isfinite(loss):
            raise DivergenceError(
                f"the loss is {loss.item()} at epoch {epoch}, update {step + 1}; the last good weights are kept",
                got={mouse_id: indices.tolist() for mouse_id, indices in trials.items()},
                hint="Look at those trials, or lower the learning rate.",
            )
        optimizer.step()
        total += loss.item()
    return total / steps


def _accumulate(
    twin: Twin,
    training: TrainingConfig,
    recording: Recording,
    mouse_id: str,
    indices: np.ndarray,
    device: torch.device,
    maps: FeatureMaps | None = None,
) -> torch.Tensor:
    """Adds the gradients of one mouse's batch, in micro-batches; returns its loss.

    The L1 terms are added once per mouse and update, as the reference does: the core's for every mouse.
    """
    n_trials = len(recording.tier("train")) if training.scale_loss else None
    size = training.micro_batch or len(indices)
    loss = torch.zeros((), device=device)
    for start in range(0, len(indices), size):
        part = indices[start : start + size]
        image, behavior, pupil_center, response = read_batch(recording, part, device)
        if maps is None:
            predictions = twin(mouse_id, image, behavior, pupil_center)
        else:
            predictions = maps.predict(twin, mouse_id, part, pupil_center)
        poisson = poisson_loss(predictions, response, n_trials=n_trials, batch_size=len(indices))
        poisson.backward()
        loss += poisson.detach()
    penalty = twin.regularizer(mouse_id)
    penalty.backward()
    return loss + penalty.detach()


def predict_tier(
    twin: torch.nn.Module,
    recording: Recording,
    indices: np.ndarray,
    *,
    batch_size: int = 32,
    progress: str | None = None,
    maps: FeatureMaps | None = None,
) -> np.ndarray:
    """Standardised predictions (T, N) for trials of a recording, by a twin or an ensemble."""
    device = next(twin.parameters()).device
    twin.eval()
    predictions = []
    with torch.inference_mode():
        starts = range(0, len(indices), batch_size)
        for start in tqdm(starts, desc=progress, unit="batch", leave=False, disable=None if progress else True):
            part = indices[start : start + batch_size]
            image, behavior, pupil_center, _ = read_batch(recording, part, device)
            if maps is None:
                predicted = twin(recording.mouse_id, image, behavior, pupil_center)
            else:
                assert isinstance(twin, Twin)
                predicted = maps.predict(twin, recording.mouse_id, part, pupil_center)
            predictions.append(predicted.cpu().numpy())
    return np.concatenate(predictions)


def validate(
    twin: Twin, recordings: Mapping[str, Recording], device: torch.device, maps: FeatureMaps | None = None
) -> float:
    """Single-trial correlation on the validation trials: mean over neurons, then over mice."""
    scores = []
    for recording in recordings.values():
        indices = recording.scorable("validation").indices
        predictions = predict_tier(twin, recording, indices, maps=maps)
        scores.append(np.nanmean(single_trial_correlation(recording.responses(indices), predictions)))
    return float(np.mean(scores))


def _save_best(
    folder: Path,
    state: _State,
    mice: list[Mouse],
    config: ModelConfig,
    training: TrainingConfig,
    seed: int,
    recordings: Mapping[str, Recording],
    origin: dict[str, Any] | None,
) -> None:
    best = Twin(config, mice)
    best.load_state_dict(state.best)
    provenance = {
        "source": "trained",
        "created": now(),
        "seed": seed,
        "commit": source_commit(),
        "versions": library_versions(),
        "data_hashes": {mouse_id: recording.data_hash for mouse_id, recording in recordings.items()},
        "training": training.model_dump(mode="json"),
        "epoch": state.plateau.best_epoch,
        "validation_single_trial_correlation": state.plateau.best,
    }
    if origin is not None:
        provenance["core"] = origin
    save_checkpoint(folder / CHECKPOINT, Checkpoint(twin=best, provenance=provenance))


def _origin(core: Checkpoint, frozen: bool) -> dict[str, Any]:
    """Where the core came from, for provenance."""
    return {"weights": core.weights_hash, "frozen": frozen, "mice": list(core.mice), "provenance": core.provenance}


def _read_log(path: Path, epochs: int) -> list[dict[str, Any]]:
    """The log up to the epoch that is resumed from: a row written just before a kill is made again."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if int(row["epoch"]) <= epochs]


def _write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    content = io.StringIO()
    writer = csv.DictWriter(content, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, content.getvalue().encode())


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
