"""`python -m training distill`: trains a student on a teacher's answers, in a run like any other.

run.json                 what is distilled: teacher, budget, questions
questions/MOUSE/         the questions, and the teacher's answers
member-0/ members.json   the student, as `python -m training train` writes it
agreement/               how far the student agrees with the teacher: neurons.parquet, agreement.json

To resume an interrupted run, run the same command again.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from training.arguments import add_checkpoints, add_device, add_options, add_output, add_recordings
from training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.config import TrainingConfig, parse_options, parse_training
from training.data.mouse import by_mouse, open_recordings
from training.data.recordings import Recording
from training.distillation import agreement
from training.distillation.answers import answers_hash, ask, asked
from training.distillation.budget import Family, Student, fit_budget, parse_budget
from training.distillation.first_readout import first_readouts
from training.distillation.questions import Images, Questions, ask_about
from training.evaluation.evaluate import check_known
from training.files import locked
from training.tables import counted
from training.trainer.advice import next_commands
from training.trainer.hardware import Hardware
from training.trainer.members import LOCK
from training.trainer.run import claim, train_ensemble
from training.trainer.run_spec import RunSpec

__all__ = ["TRAINING", "Distillation", "add_arguments", "distill", "run"]

# The answers are free of noise and as many as one asks for: the student is trained to the end, without regularisation.
TRAINING: dict[str, Any] = {
    "batch_size": 32,
    "learning_rate": 0.01,
    "warmup": 100,
    "beta2": 0.99,
    "schedule": "cosine",
    "max_epochs": 40,
    "patience": 40,
}


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What is distilled, and how.

    Attributes:
        recordings: mouse_id -> recording, of some or none of the teacher's mice.
        budget: how many times fewer operations than the teacher.
        generated: number of images to draw for each mouse, beside the recording's.
        family, options: of the student's core, and of its model; see `fit_budget`.
    """

    teacher: Ensemble
    recordings: Mapping[str, Recording] = field(default_factory=dict)
    budget: float = 20.0
    images: Images = "both"
    generated: int = 20_000
    family: Family | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=lambda: parse_training(TRAINING))
    seed: int = 0
    hardware: Hardware = field(default_factory=Hardware)

    def questions(self) -> dict[str, Questions]:
        """mouse_id -> what the teacher is asked."""
        return {
            mouse_id: Questions(
                mouse,
                recording := self.recordings.get(mouse_id),
                ask_about(mouse, recording, self.images, self.generated),
                self.seed,
            )
            for mouse_id, mouse in self.teacher.mice.items()
        }

    def about(self, student: Student) -> dict[str, Any]:
        """What the student's checkpoint says about its origin."""
        stated = {
            name: "; ".join(
                dict.fromkeys(text for member in self.teacher.members if (text := member.provenance.get(name)))
            )
            for name in ("licence", "citation")
        }
        origin = {
            "teacher": self.teacher.weights_hashes,
            "budget": self.budget,
            "speedup": round(student.speedup, 2),
            "images": self.images,
            "generated": self.generated,
        }
        return {"source": "distilled", "distillation": origin, **{name: text for name, text in stated.items() if text}}


def distill(what: Distillation, folder: Path) -> dict[str, dict[str, float]]:
    """Asks the teacher, trains the student and measures their agreement, or resumes; returns the summaries.

    Raises:
        ConfigError: no student fits the budget, or the options contradict each other.
        CheckpointError: the folder holds another run, or cannot be written.
    """
    teacher = what.teacher.to(what.hardware.resolved())
    questions = what.questions()
    student = fit_budget(teacher, what.budget, family=what.family, options=what.options)
    about = what.about(student)
    hashes = {mouse_id: answers_hash(one, teacher) for mouse_id, one in questions.items()}
    spec = RunSpec(
        model=student.config,
        training=what.training,
        recordings={},
        seed=what.seed,
        hardware=what.hardware,
        mice=list(teacher.mice.values()),
        about=about,
    )
    claim(folder, {**spec.identity(), "data_hashes": hashes})
    with locked(folder / LOCK):
        for one in questions.values():
            ask(teacher, one, folder)
        answers = {mouse_id: asked(teacher, one, folder) for mouse_id, one in questions.items()}
        start = partial(first_readouts, teacher=teacher, recordings=answers, seed=what.seed)
        (checkpoint,) = train_ensemble(replace(spec, recordings=answers, start=start), folder)
        found = Ensemble([load_checkpoint(checkpoint)]).to(what.hardware.resolved())
        neurons = {
            mouse_id: agreement.agreement_of(found, teacher, one, answers[mouse_id], what.recordings.get(mouse_id))
            for mouse_id, one in questions.items()
        }
        summaries = agreement.write(folder, neurons, {m: mouse.neuron_ids for m, mouse in teacher.mice.items()})
        trained = load_checkpoint(checkpoint)
        provenance = copy.deepcopy(trained.provenance)
        provenance["distillation"]["agreement"] = summaries
        save_checkpoint(checkpoint, replace(trained, provenance=provenance))
    return summaries


EXAMPLES = """examples:
  python -m training distill runs/v1t --recordings data --output runs/v1t-small --budget 20x
  python -m training distill runs/v1t --recordings data --output runs/v1t-cnn --core cnn --generated 50000
  python -m training distill runs/imported --images generated --output runs/imported-small

The teacher (a run, an ensemble or a checkpoint) is shown the recording's images and generated ones: dead leaves,
crops, noise, gratings and Gabors, in resampled behaviour and gaze. Its answers are kept in RUN/questions. A student
that needs so many times fewer operations is trained on them. It is a run like any other: evaluate it, export it,
serve it. Trust it as far as the printed agreement goes; RUN/agreement/neurons.parquet has it for every neuron.

To resume an interrupted run, run the same command again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add_checkpoints(parser)
    add_output(parser, "folder of the student's run", metavar="RUN")
    add_recordings(parser, "recordings of the teacher's mice, or folders of them", required=False)
    budget = "how many times fewer operations than the teacher, all its members together (default: 20x)"
    parser.add_argument("--budget", default="20x", metavar="Nx", help=budget)
    images = "show the teacher its recording's images, generated ones, or both (default: both)"
    parser.add_argument("--images", choices=["both", "own", "generated"], default="both", help=images)
    generated = "number of generated images for each mouse (default: 20000)"
    parser.add_argument("--generated", type=int, default=20_000, metavar="N", help=generated)
    core = "kind of the student's core (default: the teacher's)"
    parser.add_argument("--core", choices=["vit", "cnn"], help=core)
    add_options(parser, "options of the student (core.patch_stride=4) or of its training (training.max_epochs=20)")
    parser.add_argument("--seed", type=int, default=0, help="of the student and of the questions")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    options, training = parse_options(args.set)
    teacher = load_ensemble(args.checkpoints)
    recordings = open_recordings(args.recordings, nan_trials=args.nan_trials)
    check_known(teacher, recordings)
    what = Distillation(
        teacher=teacher,
        recordings=by_mouse(recordings),
        budget=parse_budget(args.budget),
        images=args.images,
        generated=args.generated,
        family=args.core,
        options=options,
        training=parse_training({**TRAINING, **training}),
        seed=args.seed,
        hardware=Hardware(device=args.device),
    )
    student = fit_budget(teacher, what.budget, family=what.family, options=options)
    core = {name: value for name, value in student.config.core.model_dump().items() if name in _SHOWN}
    asked_for = sum(map(len, what.questions().values()))
    print(
        f"teacher: {counted(len(teacher.members), 'member')}; {asked_for:,} questions\n"
        f"student: {core}, {student.speedup:.1f} times fewer operations"
    )
    try:
        summaries = distill(what, args.output)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Answers and finished epochs are kept in {args.output}; run the same command to resume.")
        return 130
    print(agreement.summary_table(summaries))
    given = ["--recordings", *map(str, args.recordings)] if args.recordings else []
    given += ["--nan-trials", args.nan_trials] if args.nan_trials != "refuse" else []
    print("next:", *next_commands(args.output, given, recordings), sep="\n  ")
    return 0


_SHOWN = ("kind", "patch_size", "patch_stride", "n_blocks", "n_heads", "dim", "mlp_dim", "n_layers", "channels")
