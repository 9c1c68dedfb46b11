"""What a run's output tells its user: what suits a small recording, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from training.config import CCTConfig, ViTConfig
from training.data.batches import steps_per_epoch
from training.data.recordings import Recording
from training.errors import ScoringError
from training.tables import counted
from training.trainer.run_spec import RunSpec

__all__ = ["for_small_recordings", "next_commands"]

# The paper's recordings have about 4,500 training trials: 280 updates of 16 trials.
SMALL = 150  # updates in an epoch
# Of docs/demo.sh and the studies of two-cores scale, which train on 500 to 1,500 trials.
SUITS_SMALL = {"learning_rate": 0.006, "warmup": 300, "beta2": 0.99}


def for_small_recordings(spec: RunSpec) -> str | None:
    """A suggestion, if the run trains a transformer on few trials with the paper's optimiser; it changes nothing."""
    steps = steps_per_epoch(spec.recordings, spec.training.batch_size)
    of_paper = type(spec.training)()
    chosen = any(getattr(spec.training, name) != getattr(of_paper, name) for name in SUITS_SMALL)
    if steps >= SMALL or chosen or spec.cores or not isinstance(spec.model.core, ViTConfig | CCTConfig):
        return None
    options = " ".join(f"training.{name}={value:g}" for name, value in SUITS_SMALL.items())
    return (
        f"small recording: {counted(steps, 'update')} an epoch, where the paper has about 280. Its learning rate and "
        f"no warm-up are used, as nothing else was asked for. The demo's small model learns more from so few with "
        f"--set {options}"
    )


def next_commands(run: Path, given: Sequence[str], opened: Sequence[Recording]) -> list[str]:
    """The commands that score a finished run and export it.

    Args:
        given: the options that say which recordings, as the user gave them.
        opened: these recordings.
    """
    tier = [] if any(_can_be_scored(recording) for recording in opened) else ["--tier", "validation"]
    report = f"{run}-scores"
    bundle = str(Path("exported_models") / run.name)
    return [
        shlex.join(["python", "-m", "training", "evaluate", str(run), *given, *tier, "--report", report]),
        shlex.join(["python", "-m", "training", "export", str(run), *([] if tier else given), "--output", bundle]),
    ]


def _can_be_scored(recording: Recording) -> bool:
    try:
        recording.scorable("test")
    except ScoringError:
        return False
    return True
