"""Activations of the B-MLPs (paper, Figure A.1): what behaviour adds to every token, per block and mouse.

A B-MLP ends in a tanh, so behaviour can hardly change an activation near -1 or 1. The paper shows the distribution of
each unit's mean over trials; the figure also shows that of all single activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from training.checkpoints.ensemble import Ensemble
from training.data.batches import batches_of
from training.data.recordings import Recording
from training.errors import ConfigError, RecordingError
from training.figures import COLORS, COLUMN, PAGE, styled
from training.models import Twin
from training.models.transformer import Transformer

__all__ = ["BlockActivations", "b_mlp_activations", "draw"]

BATCH = 64
SATURATED = 0.9  # beyond it the slope of tanh is below 0.2
BINS = np.linspace(-1, 1, 61)


@dataclass(frozen=True, eq=False)
class BlockActivations:
    """What one B-MLP adds before its block.

    Attributes:
        block: such as "1"; "1-4" if all blocks share one B-MLP.
        activations: (T, M D) float32, over trials and the units of all members.
    """

    mouse_id: str
    block: str
    activations: np.ndarray

    @property
    def unit_means(self) -> np.ndarray:
        """(M D,) each unit's mean over trials."""
        return self.activations.mean(0, dtype=np.float64)

    def row(self) -> dict[str, Any]:
        """A row of the table."""
        return {
            "mouse": self.mouse_id,
            "block": self.block,
            "trials": len(self.activations),
            "units": self.activations.shape[1],
            "mean": float(self.unit_means.mean()),
            "sd_over_units": float(self.unit_means.std()),
            "sd_over_trials": float(self.activations.std(0, dtype=np.float64).mean()),
            "saturated_share": float((np.abs(self.activations) > SATURATED).mean()),
        }


def b_mlp_activations(ensemble: Ensemble, recording: Recording) -> list[BlockActivations]:
    """The activations of every B-MLP over all trials of a recording.

    Raises:
        ConfigError: a member has no B-MLP, or members have B-MLPs in different blocks.
        RecordingError: the recording lacks an input of the B-MLP.
    """
    blocks = _blocks(ensemble)
    recorded = {"behavior": recording.has_behavior, "pupil_center": recording.has_pupil_center}
    for name in ensemble.uses():
        if not recorded.get(name, True):
            raise RecordingError(f"mouse {recording.mouse_id!r} has no {name}, which the twin's B-MLP needs")
    parts: list[list[np.ndarray]] = [[] for _ in blocks]
    device = next(ensemble.parameters()).device
    ensemble.eval()
    with torch.no_grad():
        every = np.arange(recording.n_trials)
        progress = f"mouse {recording.mouse_id}"
        for _, (*inputs, _) in batches_of(recording, every, device, size=BATCH, progress=progress):
            members = []
            for member in ensemble.members:
                image, behavior, _ = member.twin.stem(recording.mouse_id, *inputs)
                index = member.twin.mouse_index(recording.mouse_id, image)
                transformer = _transformer(member.twin)
                latents = [transformer.behavior_latent(i, behavior, index) for i in range(len(blocks))]
                members.append([latent[:, 0] for latent in latents if latent is not None])  # each (B, D)
            for part, of_members in zip(parts, zip(*members, strict=True), strict=True):
                part.append(torch.cat(of_members, dim=1).cpu().numpy())  # (B, M D)
    return [
        BlockActivations(recording.mouse_id, block, np.concatenate(part))
        for block, part in zip(blocks, parts, strict=True)
    ]


def _transformer(twin: Twin) -> Transformer:
    transformer = getattr(twin.core, "transformer", None)
    if not isinstance(transformer, Transformer) or transformer.behavior_mlps is None:
        raise ConfigError(
            "the twin has no B-MLP",
            got=f"core {twin.config.core.kind}, behavior {twin.config.behavior}",
            expected="behavior b_mlp",
        )
    return transformer


def _blocks(ensemble: Ensemble) -> list[str]:
    """The block of every B-MLP, as in `BlockActivations.block`."""
    names = []
    for member in ensemble.members:
        transformer = _transformer(member.twin)
        assert transformer.behavior_mlps is not None
        n_blocks, n_mlps = len(transformer.blocks), len(transformer.behavior_mlps)
        tied = transformer.tied and n_blocks > 1
        names.append([f"1-{n_blocks}"] if tied else [str(i + 1) for i in range(n_mlps)])
    if any(other != names[0] for other in names):
        raise ConfigError("members have B-MLPs in different blocks", got=names, hint="Analyse the members one by one.")
    return names[0]


def draw(results: Sequence[Sequence[BlockActivations]]) -> Figure:
    """Densities over [-1, 1], with a column per mouse and a row per block."""
    rows = len(results[0])
    with styled():
        figure = Figure(figsize=(COLUMN if len(results) == 1 else PAGE, max(1.8, 0.9 * rows + 0.8)))
        grid = figure.subplots(rows, len(results), squeeze=False, sharex=True)
        for column, blocks in enumerate(results):
            for row, result in enumerate(blocks):
                axes = grid[row, column]
                color = COLORS[row % len(COLORS)]
                axes.hist(result.activations.ravel(), BINS, density=True, color=color, alpha=0.45)
                axes.hist(result.unit_means, BINS, density=True, histtype="step", color="0.15", linewidth=0.8)
                axes.set(xlim=(-1, 1), yticks=[])
                axes.spines["left"].set_visible(False)
                if row == 0:
                    axes.set_title(f"mouse {result.mouse_id}")
                if column == 0:
                    axes.set_ylabel(f"block {result.block}")
            grid[-1, column].set_xlabel("activation (after tanh)")
        handles = [
            Patch(color="0.6", label="all trials and units"),
            Line2D([], [], color="0.15", linewidth=0.8, label="units, mean over trials"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2 if len(results) > 1 else 1)
        figure.supylabel("density, own scales", fontsize="medium")
    return figure
