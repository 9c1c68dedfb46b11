"""The members of a run, each in its folder: one after another, side by side, or each over several devices."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training.checkpoints.checkpoint import Checkpoint
from training.config import ModelConfig, TrainingConfig
from training.data.recordings import Recording
from training.errors import CheckpointError
from training.trainer.hardware import Hardware, leave_together
from training.trainer.loop import train_member

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Member", "end_with", "train_members"]

LOCK = ".lock"


@dataclass(frozen=True)
class Member:
    """All that the training of one member needs; goes to other processes whole."""

    config: ModelConfig
    training: TrainingConfig
    recordings: Mapping[str, Recording]
    folder: Path
    seed: int
    label: str
    hardware: Hardware
    core: Checkpoint | None = None
    freeze_core: bool = False
    tensorboard: bool = False

    def train(self, fabric: Fabric | None = None) -> float:
        """Trains it, or goes on with it; returns its validation score."""
        return train_member(
            self.config,
            self.training,
            self.recordings,
            self.folder,
            seed=self.seed,
            hardware=self.hardware,
            fabric=fabric,
            core=self.core,
            freeze_core=self.freeze_core,
            tensorboard=self.tensorboard,
            label=self.label,
        )


def train_members(members: Sequence[Member], *, parallel: int = 1) -> list[float]:
    """Trains members, as many at once as asked for; the same weights either way. Returns their validation scores.

    On GPUs each takes the next one, on a CPU its share of the cores.
    """
    if parallel == 1 or len(members) == 1:
        return [_train(member) for member in members]
    threads = max(1, torch.get_num_threads() // parallel)
    placed = [_placed(member, i) for i, member in enumerate(members)]
    with ProcessPoolExecutor(
        parallel, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(), threads)
    ) as pool:
        return list(pool.map(_train, placed))


def _train(member: Member) -> float:
    with _locked(member.folder):
        if member.hardware.devices == 1:
            return member.train()
        launch: Any = member.hardware.fabric().launch
        # Pickled here: Lightning would look for modules in everything that it is given.
        score: float = launch(_train_share, pickle.dumps(member), os.getpid())
        return score


def _train_share(fabric: Fabric, member: bytes, parent: int) -> float:
    end_with(parent)
    mine: Member = pickle.loads(member)
    score = mine.train(fabric)
    leave_together(fabric)
    return score


def _placed(member: Member, i: int) -> Member:
    if torch.device(member.hardware.resolved()) != torch.device("cuda"):
        return member
    device = f"cuda:{i % torch.cuda.device_count()}"
    return replace(member, hardware=member.hardware.model_copy(update={"device": device}))


def _start_worker(parent: int, threads: int) -> None:
    end_with(parent)
    torch.set_num_threads(threads)


def end_with(parent: int) -> None:
    """To be called in a worker: if its parent is killed, it must not go on writing into the run's folder."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, name="watch parent", daemon=True).start()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes must not train in one folder. The lock ends with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(
                    f"another process trains in {folder}", hint="Wait for it, or give another --output."
                ) from None
        yield
