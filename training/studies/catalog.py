"""The paper's studies as data: what varies, where the paper shows it, and what it found.

A study is a list of variants, and each variant is trained once per seed. `training.studies.plan` turns variants into
trainings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.config import TrainingConfig
from training.data.layout import SENSORIUM_BEHAVIOR

__all__ = ["CEILING", "SCALES", "STUDIES", "TRIALS", "Scale", "Study", "Variant"]

# all: one twin of all mice. own: a twin for each mouse. others: for each mouse, a twin of all other mice.
# source: one twin of the mice given with --source.
TrainedOn = Literal["all", "own", "others", "source"]

Start = Literal["random", "trials", "regression"]

CEILING = "noise ceiling"  # label of the last line of every study of simulated mice
TRIALS = "training trials"


@dataclass(frozen=True)
class Variant:
    """One line of a study, or one point of a line.

    Attributes:
        label: its name in table and figure.
        system: a name in `training.config.PRESETS`.
        options: options of the model, such as {"cropper.crop": 0.8}.
        x: its position on the figure's axis, if the study has one.
        trials: number of training trials of each mouse, drawn for each seed; None for all.
        core: label of the variant whose core is taken and frozen.
        start: how readouts start (`training.readout_start`): at random as in the paper, where the training trials say
            that neurons look, or, on a frozen core, from a regression.
        steps: share of the scale's epochs, rounded down.
        training: options of training, such as {"update_after": "each_mouse"}.
        without: names of behaviour or "pupil_center", held at their means in training and in the score, so that the
            twin cannot use them.
        shown: False for variants that are trained only for their core.
    """

    label: str
    system: str = "v1t"
    options: Mapping[str, Any] = field(default_factory=dict)
    x: float | None = None
    trials: int | None = None
    mice: TrainedOn = "all"
    core: str | None = None
    start: Start = "random"
    steps: float = 1.0
    training: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    shown: bool = True


@dataclass(frozen=True)
class Study:
    """One of the paper's studies.

    Attributes:
        question: what it answers, in one line.
        where: the paper's table or figure.
        paper: what the paper found, or asked.
        ensembles: labels of the variants whose seeds also form an ensemble; the retinotopy of the last is analysed.
        against: label of the line of which all others are given as a share. In a study with labels such as
            "CNN: joint", lines of one system are compared with that system's: `training.studies.comparisons.reference`.
        relative: labels of more lines, of which the relative differences are given.
        tests: pairs of labels that are compared with tests, at every place of the axis.
        axis: name of the figure's x axis, if it has one.
            With `TRIALS`, variants with more trials than the recordings have are left out.
        simulated: "mice" or "trials" -> number of them to simulate, if the study needs more than the scale has.
        members: for a study of distillation, the number of members of each seed's ensemble.
    """

    question: str
    where: str
    paper: str
    variants: tuple[Variant, ...]
    ensembles: tuple[str, ...] = ()
    against: str = CEILING
    relative: tuple[str, ...] = ()
    tests: tuple[tuple[str, str], ...] = ()
    axis: str | None = None
    simulated: Mapping[str, int] = field(default_factory=dict)
    members: int | None = None


GRAY = {"cropper.grayscale": True}  # Dataset F has two channels, Dataset S one
WITH_GAZE = {"cropper.shifter": "pupil_center"}
WITHOUT_BEHAVIOR = {"behavior": "none", "shifter": False}
SYSTEMS = (("CNN", "cnn"), ("ViT", "vit"), ("V1T", "v1t"))
SYSTEM_PAIRS = (("V1T", "CNN"), ("V1T", "ViT"), ("ViT", "CNN"))

_POSITIONS: tuple[tuple[str, Start], ...] = ((", from the trials", "trials"), (", at random", "random"))
_CNN_AND_V1T = (("CNN", "cnn"), ("V1T", "v1t"))
# of the inputs, as recordings name them -> in words
_LEFT_OUT = (
    *((channel.name, channel.name.replace("_", " ")) for channel in SENSORIUM_BEHAVIOR),
    ("pupil_center", "gaze"),
)
_STARTS: tuple[tuple[str, Start], ...] = (("transfer", "random"), ("transfer, regression first", "regression"))

STUDIES: dict[str, Study] = {
    "comparison": Study(
        question="which system predicts best, and how far it is from the noise ceiling",
        where="Table 1",
        paper="V1T above ViT above CNN above LN; V1T more than 12.7 % above earlier convolutional models.",
        variants=(
            Variant("CNN, no behaviour", "cnn", options=WITHOUT_BEHAVIOR),
            Variant("ViT, no behaviour", options=WITHOUT_BEHAVIOR),
            Variant("LN", "ln"),
            Variant("CNN", "cnn"),
            Variant("ViT", "vit"),
            Variant("V1T", "v1t"),
        ),
        ensembles=("CNN", "ViT", "V1T"),
        relative=("CNN", "ViT"),
        tests=SYSTEM_PAIRS,
    ),
    "sample-efficiency": Study(
        question="how many trials each system needs",
        where="Fig. 2",
        paper="V1T, ViT and CNN with 500 to about 4,500 training trials of each mouse, and two-sided t-tests.",
        variants=tuple(
            Variant(label, system, trials=trials)
            for label, system in SYSTEMS
            for trials in (500, 1000, 1500, 2500, 3500, None)
        ),
        relative=("CNN",),
        tests=SYSTEM_PAIRS,
        axis=TRIALS,
        simulated={"trials": 4500},
    ),
    "readout-start": Study(
        question="whether readouts should start where the training trials say that neurons look",
        where="Fig. 2",
        paper="V1T and CNN with 500 to about 4,500 training trials of each mouse, from random positions.",
        variants=tuple(
            Variant(label + words, system, trials=trials, start=start)
            for label, system in SYSTEMS
            for words, start in _POSITIONS
            for trials in (500, 1500, None)
        ),
        tests=(
            *((f"{label}, from the trials", f"{label}, at random") for label, _ in SYSTEMS),
            ("V1T, from the trials", "CNN, from the trials"),
        ),
        axis=TRIALS,
        simulated={"trials": 4500},
    ),
    "transfer": Study(
        question="whether a frozen core works for a mouse that it was not trained on, leaving out one mouse at a time",
        where="Table A.8",
        paper="a frozen core of the other mice against a twin trained on the mouse directly.",
        variants=tuple(
            variant
            for name, system in _CNN_AND_V1T
            for variant in (
                Variant(f"{name}: core of the others", system, mice="others", shown=False),
                Variant(f"{name}: joint", system, mice="all"),
                Variant(f"{name}: direct", system, mice="own"),
                *(
                    Variant(
                        f"{name}: {label}{steps}",
                        system,
                        mice="own",
                        core=f"{name}: core of the others",
                        start=start,
                        steps=share,
                    )
                    for label, start in _STARTS
                    for steps, share in (("", 1.0), (", a tenth of the steps", 0.1))
                ),
            )
        ),
        against="joint",
        relative=("direct",),
        simulated={"mice": 4},
    ),
    "cross-dataset": Study(
        question="whether a core that was trained on Dataset F, in grey, works for Dataset S",
        where="Table A.9",
        paper="a frozen core of the grey Dataset F against twins trained on Dataset S directly.",
        variants=tuple(
            variant
            for name, system in _CNN_AND_V1T
            for variant in (
                Variant(f"{name}: core of the source", system, options=GRAY, mice="source", shown=False),
                Variant(f"{name}: direct", system, options=GRAY),
                *(
                    Variant(f"{name}: {label}", system, options=GRAY, core=f"{name}: core of the source", start=start)
                    for label, start in _STARTS
                ),
            )
        ),
        against="direct",
    ),
    "center-crop": Study(
        question="how much of the image helps, and whether a crop should follow the gaze",
        where="section 5 and Table A.5",
        paper="alpha 0.8 compared with the whole image.",
        variants=tuple(
            Variant(f"{name}, {words}", system, options={"cropper.crop": alpha, **options}, x=alpha)
            for name, system in _CNN_AND_V1T
            for words, options, alphas in (
                ("fixed crop", {}, (1.0, 0.9, 0.8, 0.7, 0.6)),
                ("follows the gaze", WITH_GAZE, (0.9, 0.8, 0.7, 0.6)),
            )
            for alpha in alphas
        ),
        axis="crop (alpha)",
    ),
    "tokenizers": Study(
        question="which tokenizer and which attention predict best",
        where="Table A.4",
        paper="two kinds of attention with each of four tokenizers.",
        variants=tuple(
            Variant(
                f"{tokenizer.replace('_', ' ')}, {attention} attention",
                options={"core.tokenizer": tokenizer, "core.attention": attention},
            )
            for attention in ("softmax", "locality")
            for tokenizer in ("sliding_window", "convolution", "shifted_patches", "normalized_patches")
        ),
        relative=("sliding window, softmax attention",),
    ),
    "patches": Study(
        question="how large patches should be, and how far apart",
        where="section 5",
        paper="patch size 8 with stride 1 in Table A.2, so that patches overlap.",
        variants=tuple(
            Variant(f"patches of {size}", options={"core.patch_size": size, "core.patch_stride": stride}, x=stride)
            for size in (4, 8, 16)
            for stride in (1, 2, 4, 8)
            if stride <= size
        ),
        axis="patch stride",
    ),
    "behavior": Study(
        question="how much behaviour helps, and where it should enter",
        where="Table 1 and A.2",
        paper="V1T (a B-MLP before each block) above ViT (behaviour as channels); shared or fewer B-MLPs ablate it.",
        variants=(
            Variant("no behaviour, no gaze", options={"behavior": "none", "shifter": False}),
            Variant("no behaviour", options={"behavior": "none"}),
            Variant("channels (ViT)", "vit"),
            Variant("B-MLP, first block", options={"b_mlp.blocks": "first"}),
            Variant("B-MLP, tied", options={"b_mlp.blocks": "tied"}),
            Variant("B-MLP, no pupil centre", options={"b_mlp.inputs": "behavior"}),
            Variant("B-MLP, per mouse", options={"b_mlp.mice": "per_mouse"}),
            *(Variant(f"V1T without {words}", without=(name,)) for name, words in _LEFT_OUT),
            Variant("B-MLP (V1T)"),
        ),
        relative=("B-MLP (V1T)",),
    ),
    "updates": Study(
        question="whether the core should be updated once for all mice, or after each mouse's batch",
        where="section 4.2",
        paper="one update of the core with the gradients of all mice's batches, summed.",
        variants=tuple(
            Variant(f"{label}, {words}", system, training=options)
            for label, system in _CNN_AND_V1T
            for words, options in (
                ("one update for all mice", {}),
                ("an update after each mouse", {"update_after": "each_mouse"}),
            )
        ),
        tests=tuple(
            (f"{label}, an update after each mouse", f"{label}, one update for all mice") for label, _ in _CNN_AND_V1T
        ),
    ),
    "distillation": Study(
        question="whether a student with a twentieth of an ensemble's operations answers like it",
        where="not in the paper",
        paper="an ensemble of five is its best system, and five times as slow.",
        variants=(Variant("V1T"),),
        against="ensemble",
        members=5,
    ),
}


@dataclass(frozen=True)
class Scale:
    """The size of models, trainings and simulated mice.

    Attributes:
        transformer, convolution: options of the models of either kind.
        transfer: start of the readouts -> training options, for readouts on a frozen core.
        mice, neurons, trials: numbers of them to simulate if no recordings are given.
        generated: images that a student's teacher is shown for each mouse, beside the recording's.
        student: training options of students.
        same_updates: if the number of trials differs from `trials`, change the number of epochs and keep the number of
            updates. For scales whose trainings end while they still improve: more trials would mean more updates.
    """

    what: str
    transformer: Mapping[str, Any]
    convolution: Mapping[str, Any]
    training: TrainingConfig
    transfer: Mapping[Start, Mapping[str, Any]]
    mice: int
    neurons: int
    trials: int
    generated: int
    student: Mapping[str, Any]
    same_updates: bool = False


SCALES: dict[str, Scale] = {
    # Runs of about 1,100 updates need a higher learning rate than the paper's, with warm-up, and a faster second moment
    # of AdamW (0.99 instead of 0.9999). Smaller models need less regularisation.
    "two-cores": Scale(
        what="patches of 12 every 4 pixels, 2 blocks of 2 heads, 48 wide; two layers of 16 channels; 12 epochs",
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
        convolution={"core.channels": 16, "core.n_layers": 2, "readout.l1": 0.05},
        training=TrainingConfig(learning_rate=0.006, warmup=150, beta2=0.99, max_epochs=12, patience=1),
        transfer={"random": {"warmup": 50}, "regression": {"warmup": 0, "learning_rate": 0.002}},
        mice=2,
        neurons=150,
        trials=1500,
        generated=30_000,
        student={"max_epochs": 15, "learning_rate": 0.02},
        same_updates=True,
    ),
    "paper": Scale(
        what="the models and the training of Table A.2; needs a GPU",
        transformer={},
        convolution={},
        training=TrainingConfig(),
        transfer={},
        mice=5,
        neurons=8000,
        trials=4500,
        generated=40_000,
        student={},
    ),
}
