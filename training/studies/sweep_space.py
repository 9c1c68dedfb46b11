"""What a sweep searches: the options of Table A.2, and their ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import optuna

from training.config import PRESETS, CNNConfig, ViTConfig

__all__ = ["OPTIONS", "SPACE", "Choice", "Range"]


@dataclass(frozen=True)
class Range:
    """The range of values of one option."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def suggest(self, trial: optuna.Trial, name: str) -> float | int:
        if self.integer:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def described(self) -> str:
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """The words that one option may be."""

    words: tuple[str, ...]

    def suggest(self, trial: optuna.Trial, name: str) -> str:
        return str(trial.suggest_categorical(name, self.words))

    def described(self) -> str:
        return ", ".join(self.words)


# The 18 options of Table A.2. Ranges contain the published values, which are in the comments.
_SHARED: dict[str, Range | Choice] = {
    "readout.hidden": Range(8, 128, log=True, integer=True),  # 30
    "readout.hidden_layers": Range(1, 4, integer=True),  # 1
    "readout.bias": Choice(("zero", "mean", "mean_over_std")),  # zero
    "readout.l1": Range(1e-4, 1, log=True),  # 0.0076
    "training.learning_rate": Range(1e-4, 1e-2, log=True),  # 0.0016
    "training.batch_size": Range(4, 64, log=True, integer=True),  # 16
}
_TRANSFORMER: dict[str, Range | Choice] = {
    "core.tokenizer": Choice(get_args(ViTConfig.model_fields["tokenizer"].annotation)),  # sliding_window
    "core.attention": Choice(get_args(ViTConfig.model_fields["attention"].annotation)),  # softmax
    "core.stochastic_depth": Range(0, 0.5),  # 0
    "core.patch_size": Range(4, 16, integer=True),  # 8
    "core.patch_stride": Range(1, 4, integer=True),  # 1
    "core.n_blocks": Range(1, 8, integer=True),  # 4
    "core.n_heads": Range(1, 12, integer=True),  # 4
    "core.dim": Range(16, 256, integer=True),  # 155
    "core.mlp_dim": Range(32, 1024, integer=True),  # 488
    "core.patch_dropout": Range(0, 0.5),  # 0.0229
    "core.block_dropout": Range(0, 0.5),  # 0.2544
    "core.l1": Range(0, 1),  # 0.5379
}
_CONVOLUTION: dict[str, Range | Choice] = {
    "core.n_layers": Range(2, 6, integer=True),  # 4
    "core.channels": Range(16, 128, integer=True),  # 64
    "core.dropout": Range(0, 0.5),  # 0
    "core.laplace": Range(0.1, 100, log=True),  # 6.3831
}
SPACE: dict[str, dict[str, Range | Choice]] = {
    system: {**(_CONVOLUTION if isinstance(config.core, CNNConfig) else _TRANSFORMER), **_SHARED}
    for system, config in PRESETS.items()
    if system != "cct"  # its width must split over the heads twice, which ranges cannot express
}

# All of them, for the help.
OPTIONS = _TRANSFORMER | _CONVOLUTION | _SHARED
