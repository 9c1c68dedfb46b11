"""`RunSpec`: what a run trains, on which recordings, and on which hardware."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.checkpoints.checkpoint import Checkpoint, library_versions, source_commit
from training.config import ModelConfig, TrainingConfig
from training.data.mouse import Mouse, data_hashes
from training.data.recordings import Recording
from training.errors import ConfigError
from training.models import Twin
from training.trainer.hardware import Hardware

__all__ = ["RunSpec"]


# Options that older runs do not name, with their values there: so these can still be resumed.
NEW_OPTIONS = {"schedule": "plateau", "norm_momentum": 0.9, "update_after": "all_mice"}


def _without(options: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in values or values[name] != value}


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run of one or more members, which share everything but their seed and the core that they start from.

    Attributes:
        recordings: mouse_id -> recording, in the order of the twin's mice.
        seed: of the first member; member i has `seed` + i.
        members: the number of members.
        keep: the number of members that are kept, the best by validation score; None keeps all.
        cores: checkpoints whose cores the members start from, in turn; without any, cores start at random.
        freeze_core: train everything but the core.
        parallel: the number of members that are trained at the same time.
        tensorboard: log to TensorBoard as well.
        mice: the twin's mice, in the order of `recordings`; by default as these say.
        start: sets a new member's weights before its first update.
        about: more that makes the run this one, and that its checkpoints say, such as a student's teacher.

    Raises:
        ConfigError: two of these contradict each other.
    """

    model: ModelConfig
    training: TrainingConfig
    recordings: Mapping[str, Recording]
    seed: int = 0
    members: int = 1
    keep: int | None = None
    cores: Sequence[Checkpoint] = ()
    freeze_core: bool = False
    hardware: Hardware = field(default_factory=Hardware)
    parallel: int = 1
    tensorboard: bool = False
    mice: Sequence[Mouse] | None = None
    start: Callable[[Twin], None] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ConfigError("an ensemble needs at least one member", got=self.members)
        if self.keep is not None and not 1 <= self.keep <= self.members:
            raise ConfigError("cannot keep that many members", got=self.keep, expected=f"1 to {self.members}")
        if self.freeze_core and not self.cores:
            raise ConfigError("there is no core to freeze", hint="Give a checkpoint: --core CHECKPOINT --freeze-core.")

    def twin(self) -> Twin:
        """A twin of this run's mice, with new weights."""
        recorded = (Mouse.from_recording(recording) for recording in self.recordings.values())
        return Twin(self.model, list(recorded if self.mice is None else self.mice))

    def core(self, member: int) -> Checkpoint | None:
        """The checkpoint whose core a member starts from."""
        return self.cores[member % len(self.cores)] if self.cores else None

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run, as `run.json` holds it. Another machine may resume a run."""
        config = self.model.model_dump(mode="json")
        cores = {"weights": [core.weights_hash for core in self.cores], "frozen": self.freeze_core}
        return {
            "config": {**config, "core": _without(config["core"], NEW_OPTIONS)},
            "training": _without(self.training.model_dump(mode="json"), NEW_OPTIONS),
            "data_hashes": data_hashes(self.recordings.values()),
            "seed": self.seed,
            "core": cores if self.cores else None,
            **self.about,
        }

    def provenance(self, member: int) -> dict[str, Any]:
        """What a member's checkpoint says about how it was trained."""
        core = self.core(member)
        origin = core and {
            "weights": core.weights_hash,
            "frozen": self.freeze_core,
            "mice": list(core.mice),
            "provenance": core.provenance,
        }
        return {
            "source": "trained",
            "seed": self.seed + member,
            "commit": source_commit(),
            "versions": library_versions(),
            "data_hashes": data_hashes(self.recordings.values()),
            "training": self.training.model_dump(mode="json"),
            "hardware": self.hardware.model_dump(mode="json"),
            **({"core": origin} if origin else {}),
            **self.about,
        }
