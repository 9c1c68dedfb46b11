"""What a run keeps while it goes on: the state it resumes from, and its logs."""

from __future__ import annotations

import csv
import io
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training.errors import CheckpointError, ConfigError, DivergenceError
from training.files import write_atomically
from training.models import Twin
from training.trainer.early_stopping import Plateau

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["LOG", "Logs", "RunState"]

STATE = "state.pt"
LOG = "log.csv"
TENSORBOARD = "tensorboard"


@dataclass
class RunState:
    """All that a resumed run needs; the order of trials follows from seed and epoch, so do the drawn masks."""

    twin: Twin
    optimizer: torch.optim.Optimizer
    plateau: Plateau
    fabric: Fabric
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0  # updates of the next epoch that are done already, and their summed loss
    loss: float = 0.0
    finished: bool = False
    random: torch.Tensor | None = None  # torch's generators, within an epoch

    def save(self, folder: Path) -> None:
        """Replaces the state in one step: a kill at any moment leaves the old one or the new one.

        Raises:
            CheckpointError: it cannot be written; the old one is kept.
            DivergenceError: a weight is not finite; the old one is kept.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.twin.parameters()):
            raise DivergenceError(
                f"weights became NaN or infinite after update {self.step} of epoch {self.epoch + 1}; "
                "the last good weights are kept",
                hint="Lower the learning rate.",
            )
        content = io.BytesIO()
        torch.save(
            {
                "twin": self.twin.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "plateau": self.plateau.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "best": self.best,
                "epoch": self.epoch,
                "step": self.step,
                "loss": self.loss,
                "finished": self.finished,
                "random": _generators(self.fabric) if self.step else None,
            },
            content,
        )
        write(folder / STATE, content.getvalue())

    def load(self, folder: Path) -> None:
        """Takes over what is there, if anything is.

        Raises:
            CheckpointError: there is a state, and it cannot be read.
        """
        path = folder / STATE
        if not path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            self.twin.load_state_dict(state["twin"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.plateau.load_state_dict(state["plateau"])
            if state["precision"] and self.fabric.strategy.precision.state_dict():  # the scaler of fp16
                self.fabric.strategy.precision.load_state_dict(state["precision"])
            self.best, self.epoch, self.finished = state["best"], state["epoch"], state["finished"]
            self.step, self.loss, self.random = state["step"], state["loss"], state["random"]
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} cannot be resumed from: {str(error).splitlines()[0] if str(error) else error!r}",
                hint="Delete the member's folder to start it again.",
            ) from error

    def seed_epoch(self, seed: int) -> None:
        """Before an epoch: its own masks, another device's being others; within one, where it was broken off."""
        rank = self.fabric.global_rank
        torch.manual_seed(seed * 1_000_003 + self.epoch + 1 + rank * 1_000_000_007)
        if self.step and self.random is not None:
            _restore(self.fabric, self.random)


def _generators(fabric: Fabric) -> torch.Tensor:
    cpu = torch.get_rng_state()
    if fabric.device.type != "cuda":
        return cpu
    return torch.cat([cpu, torch.cuda.get_rng_state(fabric.device)])


def _restore(fabric: Fabric, state: torch.Tensor) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if fabric.device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:], fabric.device)


class Logs:
    """A row per epoch: `log.csv` and, where it is asked for, TensorBoard's events."""

    def __init__(self, folder: Path, *, epochs: int, tensorboard: bool = False) -> None:
        self._path = folder / LOG
        self._rows = _read(self._path, epochs)
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError("TensorBoard is not installed", hint="pip install tensorboard") from error
            # Epochs that are made again replace those that were logged before the kill.
            self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=epochs + 1)

    def add(self, row: dict[str, Any]) -> None:
        """One epoch's numbers, "epoch" among them."""
        self._rows.append(row)
        content = io.StringIO()
        writer = csv.DictWriter(content, fieldnames=list(row), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self._rows)
        write(self._path, content.getvalue().encode())
        if self._writer is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, float(value), int(row["epoch"]))
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _read(path: Path, epochs: int) -> list[dict[str, Any]]:
    """The log up to the epoch that is resumed from: a row written just before a kill is made again."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if int(row["epoch"]) <= epochs]


def write(path: Path, content: bytes) -> None:
    """Writes a whole file or leaves what was there.

    Raises:
        CheckpointError: such as a full disk.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}",
            hint="The last good state is kept; make room and run it again.",
        ) from error
