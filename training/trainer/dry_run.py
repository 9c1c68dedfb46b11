"""`train --dry-run`: parameters, memory and time of a run, from updates that are measured and thrown away."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import psutil
import torch

from training.checkpoints.checkpoint import Checkpoint
from training.config import ModelConfig, TrainingConfig
from training.data.batches import epoch_batches, read_batch, steps_per_epoch
from training.data.recordings import Recording
from training.trainer.hardware import Hardware
from training.trainer.loop import start_member
from training.trainer.update import Update, compiled_core

__all__ = ["describe_run"]

_MEASURED = 3  # updates, the first of which warms up


def describe_run(
    config: ModelConfig,
    training: TrainingConfig,
    recordings: Mapping[str, Recording],
    hardware: Hardware,
    *,
    members: int = 1,
    seed: int = 0,
    core: Checkpoint | None = None,
    freeze_core: bool = False,
) -> str:
    """What a run would need, as text. Nothing is written."""
    fabric = hardware.model_copy(update={"devices": 1}).fabric()
    state = start_member(config, training, recordings, fabric, seed=seed, core=core, freeze_core=freeze_core)
    twin = state.twin
    compiled = compiled_core(twin) if hardware.compile else None
    update = Update(twin, training, recordings, fabric, compiled=compiled)
    steps = steps_per_epoch(recordings, training.batch_size)
    seconds = []
    batches = epoch_batches(recordings, batch_size=training.batch_size, seed=seed, epoch=1)
    for trials, _ in zip(batches, range(_MEASURED), strict=False):
        started = time.perf_counter()
        state.optimizer.zero_grad()
        update.gradients(trials)
        fabric.strategy.precision.optimizer_step(state.optimizer)
        _wait(fabric.device)
        seconds.append(time.perf_counter() - started)
    step = min(seconds) / hardware.devices
    validation = _validation_seconds(update)
    epoch = steps * step + validation
    own = {mouse_id: _count(twin.readout(mouse_id)) for mouse_id in recordings}
    trained = sum(parameter.numel() for parameter in twin.parameters() if parameter.requires_grad)
    lines = [
        f"parameters   core {_count(twin.core):,}; readouts "
        + ", ".join(f"{mouse_id} {n:,}" for mouse_id, n in own.items())
        + f"; trained {trained:,}",
        f"epoch        {steps} updates of {training.batch_size} trials of each of {len(recordings)} mice, "
        f"{sum(len(r.tier('validation')) for r in recordings.values())} trials to validate",
        f"memory       {_memory(fabric.device) / 2**30:.2f} GiB at the peak, on {fabric.device} in "
        f"{hardware.precision}, with micro-batches of {training.micro_batch or training.batch_size}",
        f"update       {_readable(step)}, {training.batch_size * len(recordings) / step:.1f} trials/s",
        f"epoch        {_readable(epoch)}, of which {_readable(validation)} to validate",
        f"whole run    at most {_readable(epoch * training.max_epochs * members)}: {training.max_epochs} epochs, "
        f"{members} member{'s' if members > 1 else ''}; early stopping mostly ends it sooner",
    ]
    if freeze_core:
        lines.append("frozen core  measured without keeping its maps: where they fit into memory it is much faster")
    return "\n".join(lines)


def _validation_seconds(update: Update) -> float:
    """From one batch of every mouse."""
    update.twin.eval()
    total = 0.0
    for mouse_id, recording in update.recordings.items():
        indices = recording.scorable("validation").indices
        some = indices[:32]
        started = time.perf_counter()
        with torch.no_grad():
            update.predict(mouse_id, some, *read_batch(recording, some, torch.device("cpu"))[:3]).cpu()
        total += (time.perf_counter() - started) * len(indices) / len(some)
    return total


def _memory(device: torch.device) -> int:
    """Bytes at the peak: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # POSIX has it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _readable(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"
