"""The devices and the precision that a member is trained with, through Lightning Fabric."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from training.errors import ConfigError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Hardware", "device_named", "leave_together"]

Precision = Literal["fp32", "bf16", "fp16"]
_FABRIC: dict[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


class Hardware(BaseModel):
    """What a run computes on. It is not part of a run's identity: another machine may resume the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(default="cpu", description="cpu, cuda, cuda:N, or auto: a GPU if there is one")
    devices: int = Field(default=1, ge=1, description="processes that share each update, one per device")
    precision: Precision = Field(default="fp32", description="of the core; the rest is always float32")
    compile: bool = Field(default=False, description="compile the core with torch.compile")
    deterministic: bool = Field(default=False, description="refuse operations that are not repeatable bit for bit")

    def resolved(self) -> torch.device:
        """The device.

        Raises:
            ConfigError: the device is not available, or does not support the precision.
        """
        device = device_named(self.device)
        if device.type == "cpu" and self.precision == "fp16":
            raise ConfigError("fp16 needs a GPU", got=f"--precision fp16 on {device}", expected="bf16 or fp32")
        if self.devices > 1 and device.index is not None:
            raise ConfigError(
                "several devices need --device cuda, without an index", got=f"{device} and {self.devices}"
            )
        if device.type == "cuda" and self.devices > torch.cuda.device_count():
            raise ConfigError("not enough GPUs", got=self.devices, expected=torch.cuda.device_count())
        return device

    def fabric(self) -> Fabric:
        """A Fabric for this hardware; with several devices it has to be launched."""
        device = self.resolved()
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # On a GPU some gradients, such as grid_sample's, have no deterministic form: torch warns about them.
            torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
            torch.backends.cudnn.benchmark = False
        from lightning_fabric import Fabric  # slow to import, and only training needs it

        one: list[int] | int = 1 if device.type == "cpu" else [device.index or 0]
        return Fabric(
            accelerator=device.type,
            devices=one if self.devices == 1 else self.devices,
            strategy="ddp_spawn" if self.devices > 1 else "auto",
            precision=_FABRIC[self.precision],
        )


def leave_together(fabric: Fabric) -> None:
    """Ends a group of processes together: one that exits while others still communicate with it may abort them."""
    fabric.barrier()
    torch.distributed.destroy_process_group()


def device_named(name: str) -> torch.device:
    """The device that a `--device` option names.

    Raises:
        ConfigError: the device does not exist or is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("no such device", got=name, expected="cpu, cuda, cuda:N or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is available", got=name, hint="Use --device cpu, or install torch for CUDA.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError("no such GPU", got=name, expected=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device
