"""The student's architecture: the largest of a family whose floating-point operations fit a budget."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from training.checkpoints.describe import count_gflop
from training.checkpoints.ensemble import Ensemble
from training.config import BehaviorMLPConfig, CNNConfig, ModelConfig, ViTConfig, with_options
from training.data.mouse import Mouse
from training.errors import ConfigError
from training.models import Twin

__all__ = ["Family", "Student", "cost", "fit_budget", "parse_budget"]

Family = Literal["vit", "cnn"]

# With about a twentieth of the operations of an ensemble whose tokens are 4 px apart, students agreed with it after 600
# updates, on natural images, by 0.978 (tokens 4 px apart, 48 wide), 0.960 (5 px, 64 wide), 0.950 (6 px, 64 wide) and
# 0.955 (3 px, 24 wide): tokens as close as the teacher's are worth more than width, unless little of it is left.
WIDTHS = (4 / 3, 7 / 6, 1, 5 / 6, 2 / 3, 1 / 2, 1 / 3)  # of the student, relative to the teacher's
NARROW = 1 / 2  # below this share of the teacher's width, tokens further apart come first
# A neuron's receptive field is larger than a patch of 12 px. Of the image's height; there are fewer patches of 14 px.
PATCH = 14 / 36


@dataclass(frozen=True)
class Student:
    """An architecture, and the teacher's operations per image divided by its own."""

    config: ModelConfig
    speedup: float


def parse_budget(text: str) -> float:
    """`20x`, or 20: how many times fewer operations than the teacher.

    Raises:
        ConfigError: it is not a number above 1.
    """
    try:
        budget = float(text.strip().removesuffix("x"))
    except ValueError:
        budget = float("nan")
    if not 1 <= budget < float("inf"):
        raise ConfigError("--budget is how many times faster than the teacher", got=text, expected="such as 20x")
    return budget


def cost(twins: Sequence[Twin]) -> float:
    """GFLOP of one image, for all of these: cores, and readouts of a mouse on average."""
    total = 0.0
    for twin in twins:
        parts = count_gflop(twin)
        total += parts["core"] + float(np.mean([value for name, value in parts.items() if name != "core"]))
    return total


def fit_budget(teacher: Ensemble, budget: float, *, family: Family | None, options: Mapping[str, Any]) -> Student:
    """The best architecture within the budget.

    Args:
        family: by default "vit" for teachers with a transformer, otherwise "cnn".
        options: of the student's model, which nothing else overrides, such as `{"core.n_blocks": 1}`.

    Raises:
        ConfigError: no candidate fits, or an option does not exist.
    """
    mice = list(teacher.mice.values())
    if options.get("readout.position", "free") != "free":
        raise ConfigError("a student's readouts have free positions, which start at the teacher's", got="network")
    allowed = cost([member.twin for member in teacher.members]) / budget
    smallest = float("inf")
    for candidate in _candidates(teacher, family, options):
        own = cost([_outline(candidate, mice)])
        if own <= allowed:
            return Student(candidate, allowed * budget / own)
        smallest = min(smallest, own)
    raise ConfigError(
        "no student is small enough",
        got=f"--budget {budget:g}x",
        expected=f"at most {allowed * budget / smallest:.3g}x with these options",
        hint="Make the student's layers narrower, such as --set core.dim=32 core.mlp_dim=32, or ask for less.",
    )


def _outline(config: ModelConfig, mice: Sequence[Mouse]) -> Twin:
    return Twin(config, mice).eval()


def _candidates(teacher: Ensemble, family: Family | None, options: Mapping[str, Any]) -> Iterator[ModelConfig]:
    """Architectures from the best to the smallest; options that are given are the same in all."""
    first = teacher.members[0].config
    family = family or ("cnn" if isinstance(first.core, CNNConfig) else "vit")
    base = _base(first, family)
    seen: list[ModelConfig] = []
    height = teacher.members[0].twin.cropper.output_shape[1]
    assert isinstance(base.core, ViTConfig | CNNConfig)
    for changes in _vit_sizes(base.core, height) if isinstance(base.core, ViTConfig) else _cnn_sizes(base.core):
        sized = with_options(base, {f"core.{name}": value for name, value in changes.items()})
        candidate = with_options(sized, dict(options))
        if candidate not in seen:
            seen.append(candidate)
            yield candidate


def _base(teacher: ModelConfig, family: Family) -> ModelConfig:
    """The teacher's model with a core of this family. Nothing is regularised: answers are as many as one asks for.

    Positions are free: they start at the teacher's, and each can move by itself.
    """
    core: dict[str, Any]
    if family == "vit":
        own = teacher.core if isinstance(teacher.core, ViTConfig) else ViTConfig()
        core = {**own.model_dump(), "l1": 0.0, "patch_dropout": 0.0, "block_dropout": 0.0, "stochastic_depth": 0.0}
        behavior = "none" if teacher.behavior == "none" else "b_mlp"
    else:
        cnn = teacher.core if isinstance(teacher.core, CNNConfig) else CNNConfig()
        core = {**cnn.model_dump(), "laplace": 0.0, "dropout": 0.0, "norm_momentum": 0.02}
        behavior = "none" if teacher.behavior == "none" else "channels"
    content = teacher.model_dump()
    content |= {"core": core, "behavior": behavior}
    content["readout"] |= {"position": "free", "l1": 0.0, "bias": "zero"}
    if behavior != "b_mlp":
        content["b_mlp"] = BehaviorMLPConfig()
    elif teacher.behavior != "b_mlp":
        content["b_mlp"] = BehaviorMLPConfig(inputs="behavior")
    return ModelConfig.model_validate(copy.deepcopy(content))


def _vit_sizes(core: ViTConfig, height: int) -> list[dict[str, int]]:
    """Patches, widths, strides and blocks of one head: small strides first, then wide ones, then more blocks."""
    patch = max(core.patch_size, round(PATCH * height))
    sizes = [
        {"dim": dim, "mlp_dim": dim, "n_heads": 1, "patch_size": patch, "patch_stride": stride, "n_blocks": blocks}
        for dim in (max(1, round(share * core.dim)) for share in WIDTHS)
        for stride in range(core.patch_stride, patch + 1)
        for blocks in range(core.n_blocks, 0, -1)
    ]
    narrow = NARROW * core.dim
    return sorted(sizes, key=lambda size: (size["dim"] < narrow, size["patch_stride"], -size["dim"]))


def _cnn_sizes(core: CNNConfig) -> list[dict[str, int]]:
    """Layers and channels, widest first, with at least two layers."""
    sizes = [
        {"n_layers": layers, "channels": channels}
        for layers in range(core.n_layers, min(core.n_layers, 2) - 1, -1)
        for channels in range(core.channels, 3, -4)
    ]
    return sorted(sizes, key=lambda one: -one["channels"] * (one["n_layers"] - 1))
