"""Activations of the B-MLPs (paper, Figure A.1): what behaviour adds to every token, block by block, mouse by mouse.

A B-MLP ends in a tanh, so an activation near -1 or 1 is one that behaviour no longer moves. The paper's distribution is
that of each unit's mean over trials; beside it stands that of all single activations.
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
from tqdm import tqdm

from training.checkpoints.ensemble import Ensemble
from training.data.batches import read_batch
from training.data.recordings import Recording
from training.errors import ConfigError, RecordingError
from training.figures import COLORS, styled
from training.models import Twin
from training.models.transformer import Transformer

__all__ = ["BlockActivations", "b_mlp_activations", "draw"]

BATCH = 64
SATURATED = 0.9  # the slope of tanh there is below a fifth
BINS = np.linspace(-1, 1, 61)


@dataclass(frozen=True, eq=False)
class BlockActivations:
    """What one B-MLP adds before its block.

    Attributes:
        block: such as "1"; "1-4" where one B-MLP serves all blocks.
        activations: (T, M D) float32 over trials and over the units of all members.
    """

    mouse_id: str
    block: str
    activations: np.ndarray

    @property
    def unit_means(self) -> np.ndarray:
        """(M D,) each unit's mean over trials."""
        means: np.ndarray = self.activations.mean(0, dtype=np.float64)
        return means

    def row(self) -> dict[str, Any]:
        """What the table and the JSON say."""
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
        ConfigError: a member has no B-MLP, or members have them in other blocks.
        RecordingError: the recording lacks what the B-MLP is given.
    """
    blocks = _blocks(ensemble)
    missing = {"behavior": recording.has_behavior, "pupil_center": recording.has_pupil_center}
    for name, there in missing.items():
        if not there and name in ensemble.uses():
            raise RecordingError(f"mouse {recording.mouse_id!r} has no {name}, which the twin's B-MLP is given")
    parts: list[list[np.ndarray]] = [[] for _ in blocks]
    device = next(ensemble.parameters()).device
    ensemble.eval()
    with torch.no_grad():
        starts = range(0, recording.n_trials, BATCH)
        for start in tqdm(starts, desc=f"mouse {recording.mouse_id}", unit="batch", leave=False, disable=None):
            indices = np.arange(start, min(start + BATCH, recording.n_trials))
            image, behavior, pupil_center, _ = read_batch(recording, indices, device)
            members = []
            for member in ensemble.members:
                _, inputs, _ = member.twin.stem(recording.mouse_id, image, behavior, pupil_center)
                index = member.twin.mouse_index(recording.mouse_id, image)
                transformer = _transformer(member.twin)
                latents = [transformer.behavior_latent(i, inputs, index) for i in range(len(blocks))]
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
    """The blocks that a B-MLP stands before, one name per B-MLP."""
    names = []
    for member in ensemble.members:
        transformer = _transformer(member.twin)
        assert transformer.behavior_mlps is not None
        n_blocks, n_mlps = len(transformer.blocks), len(transformer.behavior_mlps)
        tied = transformer.tied and n_blocks > 1
        names.append([f"1-{n_blocks}"] if tied else [str(i + 1) for i in range(n_mlps)])
    if any(other != names[0] for other in names):
        raise ConfigError("members have their B-MLPs before other blocks", got=names, hint="Give members one by one.")
    return names[0]


def draw(results: Sequence[Sequence[BlockActivations]]) -> Figure:
    """A column per mouse, a row per block, densities over [-1, 1]."""
    rows = len(results[0])
    with styled():
        figure = Figure(figsize=(2.7 * len(results) + 0.4, 1.15 * rows + 1.1), layout="constrained")
        grid = figure.subplots(rows, len(results), squeeze=False, sharex=True)
        for column, blocks in enumerate(results):
            for row, result in enumerate(blocks):
                axes = grid[row, column]
                color = COLORS[row % len(COLORS)]
                axes.hist(result.activations.ravel(), BINS, density=True, color=color, alpha=0.45)
                axes.hist(result.unit_means, BINS, density=True, histtype="step", color="0.15", linewidth=1.1)
                axes.set(xlim=(-1, 1), yticks=[])
                axes.spines[["top", "right", "left"]].set_visible(False)
                if row == 0:
                    axes.set_title(f"mouse {result.mouse_id}")
                if column == 0:
                    axes.set_ylabel(f"block {result.block}")
            grid[-1, column].set_xlabel("activation (after tanh)")
        handles = [
            Patch(color="0.6", label="all trials and units"),
            Line2D([], [], color="0.15", linewidth=1.1, label="units, mean over trials"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2 if len(results) > 1 else 1)
        figure.supylabel("density, each to its own scale", fontsize=9)
    return figure
