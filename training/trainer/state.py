"""What a member saves while it is trained: the state that it resumes from, and its logs."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training.checkpoints.checkpoint import check_shapes
from training.errors import CheckpointError, ConfigError, DivergenceError
from training.files import write_atomically, writing
from training.models import Twin
from training.trainer.early_stopping import Plateau

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["LOG", "Logs", "RunState", "read_log"]

STATE = "state.pt"
LOG = "log.csv"
TENSORBOARD = "tensorboard"


@dataclass
class RunState:
    """Everything that a resumed run needs. The order of trials and the random masks follow from seed and epoch.

    Attributes:
        step: the number of updates of the current epoch that are done already.
        loss: their summed loss.
        random: the state of torch's generators, within an epoch.
    """

    twin: Twin
    optimizer: torch.optim.Optimizer
    plateau: Plateau
    fabric: Fabric
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    finished: bool = False
    random: torch.Tensor | None = None

    def save(self, folder: Path) -> None:
        """Replaces the saved state atomically: a kill leaves either the old state or the new one.

        Raises:
            CheckpointError: the state cannot be written; the old one is kept.
            DivergenceError: a weight is not finite; the old state is kept.
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
        _write(folder / STATE, content.getvalue())

    def load(self, folder: Path) -> None:
        """Restores the saved state, if there is one.

        Raises:
            CheckpointError: there is a state, but it cannot be read.
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
            if state["best"]:  # none before the end of the first epoch
                check_shapes(self.twin, state["best"], "its best weights")
            self.best, self.epoch, self.finished = state["best"], _count(state["epoch"]), bool(state["finished"])
            self.step, self.loss, self.random = _count(state["step"]), float(state["loss"]), state["random"]
        except Exception as error:  # torch and the optimizer may raise anything for a file that they did not write
            raise CheckpointError(
                f"{path} cannot be resumed from: {str(error).splitlines()[0] if str(error) else error!r}",
                hint="Delete the member's folder to train it from the start.",
            ) from error

    def seed_epoch(self, seed: int) -> None:
        """Seeds torch for the next epoch, differently on each device; restores the generators within an epoch."""
        rank = self.fabric.global_rank
        torch.manual_seed(seed * 1_000_003 + self.epoch + 1 + rank * 1_000_000_007)
        if self.step and self.random is not None:
            _restore(self.fabric, self.random)


def _count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} is not a count")
    return number


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
    """A row per epoch, in `log.csv` and, on request, in TensorBoard."""

    def __init__(self, folder: Path, *, epochs: int, tensorboard: bool = False) -> None:
        self._path = folder / LOG
        # A row that was written just before a kill is written again.
        self._rows = [row for row in read_log(self._path) if int(row["epoch"]) <= epochs]
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError(
                    f"TensorBoard cannot be imported: {error}", hint="`pip install tensorboard` installs it."
                ) from error
            # Repeated epochs replace those that were logged before the kill.
            self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=epochs + 1)

    def add(self, row: dict[str, Any]) -> None:
        """Logs the numbers of one epoch, including "epoch"."""
        self._rows.append(row)
        content = io.StringIO()
        writer = csv.DictWriter(content, fieldnames=list(row), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self._rows)
        _write(self._path, content.getvalue().encode())
        if self._writer is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, float(value), int(row["epoch"]))
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a `log.csv`; empty if there is none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _write(path: Path, content: bytes) -> None:
    with writing(path, hint="The last good state is kept. Free some space and run the same command again."):
        write_atomically(path, content)
