"""The paper's studies, as data: what varies, where the paper shows it, what it found.

A study is a list of variants; each variant is trained once per seed. Nothing here runs anything:
`training.studies.plan` turns variants into trainings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.loop import TrainingConfig

__all__ = ["SCALES", "STUDIES", "Scale", "Study", "Variant"]

# all: one twin of all mice. own: a twin for each mouse alone. others: for each mouse, a twin of all the others.
# source: one twin of the recordings given as --source.
TrainedOn = Literal["all", "own", "others", "source"]


@dataclass(frozen=True)
class Variant:
    """One line (or one point of a line) of a study.

    Attributes:
        label: what table and figure call it.
        system: of `training.config.PRESETS`.
        options: of the model, such as {"cropper.crop": 0.8}.
        x: its place on the figure's axis, where the study has one.
        trials: training trials of each mouse; None: all.
        core: label of the variant whose core is taken and frozen.
        steps: share of the scale's epochs.
        shown: False for what is trained only for its core.
    """

    label: str
    system: str = "v1t"
    options: Mapping[str, Any] = field(default_factory=dict)
    x: float | None = None
    trials: int | None = None
    mice: TrainedOn = "all"
    core: str | None = None
    steps: float = 1.0
    shown: bool = True


@dataclass(frozen=True)
class Study:
    """One of the paper's studies.

    Attributes:
        question: what it answers, a line.
        where: the paper's table or figure.
        paper: what the paper found.
        ensemble: label of the variant whose seeds also make an ensemble.
        axis: name of the figure's x axis, where variants have a place on it.
    """

    question: str
    where: str
    paper: str
    variants: tuple[Variant, ...]
    ensemble: str | None = None
    axis: str | None = None


SYSTEMS = (Variant("LN", "ln"), Variant("CNN", "cnn"), Variant("ViT", "vit"), Variant("V1T", "v1t"))

STUDIES: dict[str, Study] = {
    "comparison": Study(
        question="which system predicts best, and how far it is from the noise ceiling",
        where="Table 1",
        paper="V1T above ViT above CNN above LN; an ensemble above any of its members.",
        variants=SYSTEMS,
        ensemble="V1T",
    ),
}


@dataclass(frozen=True)
class Scale:
    """How large models, trainings and simulated mice are.

    Attributes:
        transformer, convolution: options of the models of either kind.
        transfer: training options where only readouts are fitted to a frozen core.
        mice, neurons, trials: of what is simulated where no recordings are given.
    """

    what: str
    transformer: Mapping[str, Any]
    convolution: Mapping[str, Any]
    training: TrainingConfig
    transfer: Mapping[str, Any]
    mice: int
    neurons: int
    trials: int


SCALES: dict[str, Scale] = {
    # A run of some 1,100 updates wants a higher learning rate than the paper's, warmed up, and a shorter second moment
    # of AdamW (0.99, not 0.9999); smaller models want less regularisation.
    "two-cores": Scale(
        what="patches of 12 every 4 pixels, 2 blocks of 2 heads, 48 wide; convolutions of 16 channels; 12 epochs",
        transformer={
            "core.patch_size": 12,
            "core.patch_stride": 4,
            "core.n_blocks": 2,
            "core.n_heads": 2,
            "core.dim": 48,
            "core.mlp_dim": 96,
            "core.patch_dropout": 0.0,
            "core.block_dropout": 0.05,
            "core.l1": 0.01,
            "readout.l1": 0.05,
        },
        convolution={"core.channels": 16, "core.n_layers": 3, "readout.l1": 0.05},
        training=TrainingConfig(learning_rate=0.006, warmup=150, beta2=0.99, max_epochs=12, patience=1),
        transfer={"warmup": 50},
        mice=2,
        neurons=150,
        trials=1500,
    ),
    "paper": Scale(
        what="the models and the training of Table A.2; wants a GPU",
        transformer={},
        convolution={},
        training=TrainingConfig(),
        transfer={},
        mice=5,
        neurons=8000,
        trials=4500,
    ),
}
