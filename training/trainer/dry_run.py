"""`train --dry-run`: measures a few updates and estimates the memory and the time of a run. Nothing is kept."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace

import psutil
import torch

from training.config import ViTConfig, with_options
from training.data.batches import epoch_batches, read_batch, steps_per_epoch
from training.tables import counted
from training.trainer.loop import start_member
from training.trainer.run_spec import RunSpec
from training.trainer.update import Update

__all__ = ["describe_run"]

_MEASURED = 3  # updates; the first one warms up
WORTH_SHORTENING = 600.0  # seconds
FEW_EPOCHS = 30


def describe_run(spec: RunSpec) -> str:
    """Parameters, memory and time of a run, and what would make it shorter, as text. Nothing is written."""
    training, recordings, hardware = spec.training, spec.recordings, spec.hardware
    found = _measure(spec)
    twin, steps, step = found.update.twin, found.steps, found.step
    device = found.update.fabric.device
    readouts = ", ".join(f"{mouse_id} {_count(twin.readout(mouse_id)):,}" for mouse_id in recordings)
    n_validation = sum(len(recording.tier("validation")) for recording in recordings.values())
    trained = sum(parameter.numel() for parameter in twin.parameters() if parameter.requires_grad)
    lines = [
        f"parameters   core {_count(twin.core):,}; readouts {readouts}; trained {trained:,}",
        f"epoch        {counted(steps, 'update')} of {counted(training.batch_size, 'trial')} per mouse, "
        f"{counted(len(recordings), 'mouse', 'mice')}; {counted(n_validation, 'trial')} to validate",
        f"memory       {_memory(device) / 2**30:.2f} GiB at the peak, on {device} in "
        f"{hardware.precision}, with micro-batches of {training.micro_batch or training.batch_size}",
        f"update       {_readable(step)}, {training.batch_size * len(recordings) / step:.1f} trials/s",
        f"epoch        {_readable(found.epoch)}, of which {_readable(found.validation)} to validate",
        f"whole run    at most {_readable(found.run)}: "
        f"{counted(training.max_epochs, 'epoch')}, {counted(spec.members, 'member')}; "
        "early stopping usually ends it sooner",
    ]
    if spec.freeze_core:
        lines.append("frozen core  measured without stored feature maps: where they fit into memory, it is much faster")
    if found.run > WORTH_SHORTENING:
        shorter = {
            f"--set training.max_epochs={FEW_EPOCHS}": found.run * FEW_EPOCHS / training.max_epochs,
            "--members 1": found.run / spec.members,
            **{words: _measure(other, updates=2).run for words, other in _faster(spec).items()},
        }
        lines += [
            f"shorter      at most {_readable(seconds)} with {words}"
            for words, seconds in sorted(shorter.items(), key=lambda one: one[1])
            if seconds < 0.9 * found.run
        ]
    return "\n".join(lines)


def _faster(spec: RunSpec) -> dict[str, RunSpec]:
    """What may make the updates of a run faster: what to type -> the run that it is then."""
    others = {}
    core, hardware = spec.model.core, spec.hardware
    if isinstance(core, ViTConfig) and not spec.cores:
        for stride in (2, 4):
            if core.patch_stride < stride <= core.patch_size:
                smaller = with_options(spec.model, {"core.patch_stride": stride})
                others[f"--set core.patch_stride={stride}"] = replace(spec, model=smaller)
    if hardware.precision == "fp32":
        others["--precision bf16"] = replace(spec, hardware=hardware.model_copy(update={"precision": "bf16"}))
    if hardware.resolved().type == "cpu" and torch.cuda.is_available():
        others["--device cuda"] = replace(spec, hardware=hardware.model_copy(update={"device": "cuda"}))
    return others


@dataclass(frozen=True)
class _Measured:
    """Seconds of one update, of the validation, of an epoch and of the whole run; updates in an epoch."""

    update: Update
    steps: int
    step: float
    validation: float
    epoch: float
    run: float


def _measure(spec: RunSpec, *, updates: int = _MEASURED) -> _Measured:
    training, recordings, hardware = spec.training, spec.recordings, spec.hardware
    fabric = hardware.model_copy(update={"devices": 1}).fabric()
    state = start_member(spec, fabric)
    twin = state.twin
    update = Update(twin, training, recordings, fabric, compiled=torch.compile(twin.core) if hardware.compile else None)
    seconds = []
    batches = epoch_batches(recordings, batch_size=training.batch_size, seed=spec.seed, epoch=1)
    for trials, _ in zip(batches, range(updates), strict=False):
        started = time.perf_counter()
        state.optimizer.zero_grad()
        update.gradients(trials)
        fabric.strategy.precision.optimizer_step(state.optimizer)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        seconds.append(time.perf_counter() - started)
    steps, step = steps_per_epoch(recordings, training.batch_size), min(seconds) / hardware.devices
    validation = _validation_seconds(update)
    epoch = steps * step + validation
    return _Measured(update, steps, step, validation, epoch, epoch * training.max_epochs * spec.members)


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
