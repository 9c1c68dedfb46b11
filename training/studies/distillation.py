"""The study of distillation: an ensemble, its student, and a model of the student's size trained on responses alone."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.checkpoints.checkpoint import CHECKPOINT
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.config import ViTConfig, parse_training
from training.data.mouse import data_hashes
from training.data.recordings import Recording
from training.distillation.agreement import agreement_of, summarize, summary_table
from training.distillation.answers import asked
from training.distillation.distill import TRAINING, Distillation, distill
from training.export.bundle import BundleOptions, export_bundle
from training.export.parity import open_engine, random_inputs
from training.studies.catalog import Scale, Study, Variant
from training.studies.lines import Line
from training.studies.plan import Run, plan
from training.studies.runner import RUNS, RunScores, Scores, ensemble_of, run_all, score
from training.tables import counted, markdown_table, mean_and_sd
from training.trainer.hardware import Hardware
from training.trainer.members import member_folder

__all__ = ["LINES", "study_distillation"]

BUDGET = 20.0
LINES = ("ensemble", "student", "its size, from responses")
ROUNDS, IMAGES = 51, 32  # of the measured times
SIZE = ("patch_size", "patch_stride", "n_blocks", "n_heads", "dim", "mlp_dim")


@dataclass(frozen=True)
class _Seed:
    """The results of one seed: test scores by line, how far two lines agree with the ensemble, and ms per image."""

    scores: dict[str, Scores]
    agreement: dict[str, dict[str, dict[str, float]]]
    milliseconds: dict[str, float]
    speedup: float


def study_distillation(
    study: Study,
    scale: Scale,
    recordings: Mapping[str, Recording],
    folder: Path,
    *,
    seeds: int,
    options: Mapping[str, Any],
    training: Mapping[str, Any],
    hardware: Hardware,
    workers: int,
    ray: str | None = None,
) -> tuple[list[Line], list[str]]:
    """Trains ensembles and students; returns the lines of the table, without the ceiling, and what follows it."""

    def train(variants: tuple[Variant, ...], n: int) -> list[RunScores]:
        runs = plan(
            Study(study.question, study.where, study.paper, variants),
            scale,
            data_hashes(recordings.values()),
            seeds=n,
            n_trials=min(len(recording.tier("train")) for recording in recordings.values()),
            options=options,
            training=training,
        )
        order = {run.name: i for i, run in enumerate(runs)}
        found = run_all(runs, recordings, folder, hardware=hardware, workers=workers, ray=ray)
        return sorted(found, key=lambda result: order[result.run.name])

    assert study.members is not None
    members = [result.run for result in train(study.variants, study.members * seeds)]
    found = []
    for seed in range(seeds):
        teacher = ensemble_of(members[seed * study.members : (seed + 1) * study.members], folder)
        what = Distillation(
            teacher=teacher,
            recordings=recordings,
            budget=BUDGET,
            generated=scale.generated,
            training=parse_training({**TRAINING, **scale.student, **training}),
            seed=seed,
            hardware=hardware,
        )
        place = folder / RUNS / f"student-seed{seed}-{_digest(what)}"
        summaries = distill(what, place)
        student = load_ensemble([member_folder(place, 0) / CHECKPOINT]).to(hardware.resolved())
        core = student.members[0].config.core
        assert isinstance(core, ViTConfig)
        size = {f"core.{name}": getattr(core, name) for name in SIZE}
        alone = train((Variant(LINES[2], options=size, start="trials"),), seeds)[seed]
        found.append(_compare(what, place, student, summaries, alone.run, folder))
    lines = [Line(label, None, tuple(seed.scores[label] for seed in found)) for label in LINES]
    return lines, _notes(study, found)


def _digest(what: Distillation) -> str:
    content = [what.teacher.weights_hashes, what.generated, what.training.model_dump_json(exclude_defaults=True)]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:10]


def _compare(
    what: Distillation,
    place: Path,
    student: Ensemble,
    summaries: dict[str, dict[str, float]],
    alone: Run,
    folder: Path,
) -> _Seed:
    questions, recordings = what.questions(), list(what.recordings.values())
    systems = dict(zip(LINES, (what.teacher, student, ensemble_of([alone], folder)), strict=True))
    agreement = {LINES[1]: summaries, LINES[2]: {}}
    for mouse_id, one in questions.items():
        answers = asked(what.teacher, one, place)
        neurons = agreement_of(systems[LINES[2]], what.teacher, one, answers, what.recordings[mouse_id])
        agreement[LINES[2]][mouse_id] = summarize(neurons)
    return _Seed(
        scores={label: score(system, recordings) for label, system in systems.items()},
        agreement=agreement,
        milliseconds=_milliseconds({label: systems[label] for label in LINES[:2]}),
        speedup=float(student.members[0].provenance["distillation"]["speedup"]),
    )


def _milliseconds(systems: Mapping[str, Ensemble]) -> dict[str, float]:
    """Milliseconds per image of exported systems in onnxruntime: medians over rounds in which all take their turn."""
    with tempfile.TemporaryDirectory() as folder:
        engines = {}
        for i, (label, system) in enumerate(systems.items()):
            place = Path(folder) / f"bundle{i}"
            manifest = export_bundle(system.to("cpu"), place, options=BundleOptions(gradients=False))
            engines[label] = open_engine(place, manifest, max_batch=IMAGES, threads=1)
        mouse = next(iter(next(iter(systems.values())).mice.values()))
        inputs = random_inputs(mouse, IMAGES, np.random.default_rng(0))
        seconds: dict[str, list[float]] = {label: [] for label in engines}
        for _ in range(ROUNDS):
            for label, engine in engines.items():
                started = time.perf_counter()
                engine.predict(mouse.mouse_id, *inputs)
                seconds[label].append(time.perf_counter() - started)
    return {label: 1e3 * statistics.median(times) / IMAGES for label, times in seconds.items()}


def _notes(study: Study, found: list[_Seed]) -> list[str]:
    rows = []
    for i, seed in enumerate(found):
        teacher, student = (seed.milliseconds[label] for label in LINES[:2])
        rows.append([str(i), f"{teacher:.3f}", f"{student:.3f}", f"{teacher / student:.1f}", f"{seed.speedup:.1f}"])
    header = ["seed", "ensemble [ms]", "student [ms]", "times faster", "times fewer operations"]
    agreement = {}
    for label in LINES[1:]:
        every = [one for seed in found for one in seed.agreement[label].values()]
        agreement[label] = {name: mean_and_sd([one.get(name, np.nan) for one in every])[0] for name in every[0]}
    return [
        f"An ensemble has {counted(study.members or 1, 'member')}; seeds share none. The model of the student's size "
        "is trained like a member, but its readouts start where the training trials say that neurons look.",
        f"Time per image, exported, in onnxruntime with one thread, {IMAGES} images at once:",
        markdown_table(header, rows),
        "Agreement with the ensemble on images that no model was trained on, mean over mice and seeds. Centres and "
        "orientations are over neurons with a split-half reliability of 0.5 or more:",
        summary_table(agreement),
    ]
