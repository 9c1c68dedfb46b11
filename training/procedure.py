"""How a member is trained, in words; the defaults are the paper's (section 4.2 and Table A.2)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["TrainingConfig"]


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
    monitor: Literal["correlation", "loss"] = Field(
        default="correlation", description="what of the validation trials lowers the learning rate and stops"
    )
    patience: int = Field(default=10, ge=0, description="epochs without a better validation score before a reduction")
    factor: float = Field(default=0.3, gt=0, lt=1, description="of the learning rate at a reduction")
    max_reductions: int = Field(default=2, ge=0, description="reductions without a better score before the end")
    readout_start: Literal["auto", "random", "regression"] = Field(
        default="auto",
        description="auto: where the core is frozen and its maps fit into memory, a regression on them; else at random",
    )
    scale_loss: bool = Field(default=True, description="by sqrt(training trials / batch), per mouse")
    save_minutes: float = Field(default=10, gt=0, description="a kill costs at most so much, also within an epoch")
