"""`train --dry-run`: measures a few updates and estimates the memory and the time of a run. Nothing is kept."""

from __future__ import annotations

import sys
import time

import psutil
import torch

from training.data.batches import epoch_batches, read_batch, steps_per_epoch
from training.tables import counted
from training.trainer.loop import start_member
from training.trainer.run_spec import RunSpec
from training.trainer.update import Update

__all__ = ["describe_run"]

_MEASURED = 3  # updates; the first one warms up


def describe_run(spec: RunSpec) -> str:
    """Parameters, memory and time of a run, as text. Nothing is written."""
    training, recordings, hardware = spec.training, spec.recordings, spec.hardware
    fabric = hardware.model_copy(update={"devices": 1}).fabric()
    state = start_member(spec, fabric)
    twin = state.twin
    update = Update(twin, training, recordings, fabric, compiled=torch.compile(twin.core) if hardware.compile else None)
    steps = steps_per_epoch(recordings, training.batch_size)
    seconds = []
    batches = epoch_batches(recordings, batch_size=training.batch_size, seed=spec.seed, epoch=1)
    for trials, _ in zip(batches, range(_MEASURED), strict=False):
        started = time.perf_counter()
        state.optimizer.zero_grad()
        update.gradients(trials)
        fabric.strategy.precision.optimizer_step(state.optimizer)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        seconds.append(time.perf_counter() - started)
    step = min(seconds) / hardware.devices
    validation = _validation_seconds(update)
    epoch = steps * step + validation
    readouts = ", ".join(f"{mouse_id} {_count(twin.readout(mouse_id)):,}" for mouse_id in recordings)
    n_validation = sum(len(recording.tier("validation")) for recording in recordings.values())
    trained = sum(parameter.numel() for parameter in twin.parameters() if parameter.requires_grad)
    lines = [
        f"parameters   core {_count(twin.core):,}; readouts {readouts}; trained {trained:,}",
        f"epoch        {counted(steps, 'update')} of {counted(training.batch_size, 'trial')} per mouse, "
        f"{counted(len(recordings), 'mouse', 'mice')}; {counted(n_validation, 'trial')} to validate",
        f"memory       {_memory(fabric.device) / 2**30:.2f} GiB at the peak, on {fabric.device} in "
        f"{hardware.precision}, with micro-batches of {training.micro_batch or training.batch_size}",
        f"update       {_readable(step)}, {training.batch_size * len(recordings) / step:.1f} trials/s",
        f"epoch        {_readable(epoch)}, of which {_readable(validation)} to validate",
        f"whole run    at most {_readable(epoch * training.max_epochs * spec.members)}: "
        f"{counted(training.max_epochs, 'epoch')}, {counted(spec.members, 'member')}; "
        "early stopping usually ends it sooner",
    ]
    if spec.freeze_core:
        lines.append("frozen core  measured without stored feature maps: where they fit into memory, it is much faster")
    return "\n".join(lines)


def _validation_seconds(update: Update) -> float:
    """Estimated from one batch of every mouse."""
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
    """Peak memory in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # only on POSIX

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _readable(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"
