"""A student beside its ensemble of five at the published size: the time of an image, and the operations.

    python tests/perf/bench_distillation.py [--teacher DIR] [--student DIR] [--neurons 8000]

The teacher is five members of the paper's configuration (Table A.2); the student is what `python -m training distill`
fits to a budget of 20x. Both have random weights, which take as long as trained ones. One process runs both engines in
turns, with one thread and eight images a call. Prints medians of the times, whole and by stage, and ratios. Nothing is
asserted. The export takes some minutes; --teacher and --student keep the bundles. Do not use the machine for anything
else while this runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout

from bench_engine import build

from server.bundle.manifest import MANIFEST
from server.inference.engine import Engine
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.ensemble import Ensemble
from training.distillation.budget import cost, fit_budget
from training.export import export_bundle
from training.export.bundle import BundleOptions
from training.models import Twin

MEMBERS, BUDGET = 5, 20
BATCH, ROUNDS = 8, 7


def student_of(teacher: Ensemble) -> Twin:
    """The student as it is before training: with random weights, and receptive fields all over the feature map."""
    config = fit_budget(teacher, BUDGET, family=None, options={}).config
    torch.manual_seed(MEMBERS)
    twin = Twin(config, list(teacher.mice.values())).eval().requires_grad_(False)
    for mouse_id in teacher.mice:
        readout = twin.readout(mouse_id)
        readout.features.normal_(0, 0.1)
        readout.free_mu.uniform_(-1, 1)
    return twin


def export(twins: list[Twin], folder: Path) -> None:
    """Writes the bundle unless it exists."""
    if not (folder / MANIFEST).exists():
        export_bundle(
            Ensemble([Checkpoint(twin=twin) for twin in twins]), folder, options=BundleOptions(gradients=False)
        )


def bench(folders: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Median seconds an image of each bundle and each of its stages, and of the whole call as `all`."""
    rng = np.random.default_rng(0)
    engines = {
        name: Engine.load(folder, provider="cpu", threads=1, max_batch=BATCH) for name, folder in folders.items()
    }
    seconds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in engines}
    for turn in range(ROUNDS + 1):
        for name, engine in engines.items():
            mouse = engine.manifest.mice["A"]
            shapes = mouse.image_shape, (len(mouse.behavior),), (len(mouse.pupil_center),)
            inputs = [rng.standard_normal((BATCH, *shape)).astype(np.float32) for shape in shapes]
            start = time.perf_counter()
            engine.predict("A", *inputs)
            took = time.perf_counter() - start
            if turn:  # the first warms up
                for stage, value in {"all": took, **engine.stages.seconds}.items():
                    seconds[name][stage].append(value / BATCH)
    return {
        name: {stage: statistics.median(values) for stage, values in stages.items()} for name, stages in seconds.items()
    }


def report(seconds: dict[str, dict[str, float]], n_neurons: int, fewer: float) -> None:
    teacher, student = seconds.values()
    print(f"one thread, batch {BATCH}, {n_neurons} neurons, medians of {ROUNDS} rounds\n")
    print("| ms an image | ensemble | student | times faster | times fewer operations |")
    print("|--|--:|--:|--:|--:|")
    for stage, value in teacher.items():
        own = student[stage]
        operations = f"{fewer:.1f}" if stage == "all" else ""
        print(f"| {stage} | {value * 1e3:.2f} | {own * 1e3:.2f} | {value / own:.1f} | {operations} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (("teacher", "ensemble's"), ("student", "student's")):
        parser.add_argument(
            f"--{name}", type=Path, help=f"folder of the {what} bundle, which is exported there unless it exists"
        )
    parser.add_argument("--neurons", type=int, default=8000, help="of the mouse, also in DIR (default: %(default)s)")
    args = parser.parse_args()
    members = [build(args.neurons, 1, seed=seed) for seed in range(MEMBERS)]
    student = student_of(Ensemble([Checkpoint(twin=twin) for twin in members]))
    with tempfile.TemporaryDirectory() as temporary:
        folders = {
            "ensemble": args.teacher or Path(temporary) / "five",
            "student": args.student or Path(temporary) / "student",
        }
        export(members, folders["ensemble"])
        export([student], folders["student"])
        report(bench(folders), args.neurons, cost(members) / cost([student]))


if __name__ == "__main__":
    main()
