"""Exports what bench_gpu.py measures, on a machine that has the reference's data and needs no GPU.

    python tests/perf/gpu/prepare.py OUTPUT [--reference ../shared/reference] [--neurons 8000]

Writes a bundle of each case of the reference with its golden inputs and responses, and `published`, a bundle of the
paper's configuration (Table A.2) with one member, random weights, a core in float16 and gradients.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "perf")]

from bench_engine import build  # noqa: E402
from support.golden import CASES, load_golden  # noqa: E402

from training.checkpoints.checkpoint import Checkpoint  # noqa: E402
from training.checkpoints.ensemble import Combination, Ensemble  # noqa: E402
from training.export import export_bundle  # noqa: E402
from training.export.bundle import BundleOptions  # noqa: E402
from training.export.graphs import forward  # noqa: E402
from training.export.modules.folded import can_fold  # noqa: E402
from training.export.tracing.templates import Templates  # noqa: E402

MEMBERS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--reference", type=Path, default=ROOT.parent / "shared" / "reference")
    parser.add_argument("--neurons", type=int, default=8000, help="(default: %(default)s)")
    args = parser.parse_args()
    for case in CASES:
        folder = args.output / "golden" / case
        if folder.exists():
            continue
        golden = load_golden(args.reference, case)
        folds = all(can_fold(member.twin.core) for member in golden.ensemble.members)
        options = BundleOptions(licence="MIT", gradients=False, half=folds)
        export_bundle(golden.ensemble, folder, options=options)
        responses = {f"response_{mouse_id}": golden.expect("response", mouse_id) for mouse_id in golden.ensemble.mice}
        image, behavior, pupil_center = golden.inputs
        np.savez_compressed(
            folder / "golden.npz", image=image, behavior=behavior, pupil_center=pupil_center, **responses
        )
        print("exported", case, flush=True)
    twin = build(args.neurons, 1)
    ensemble = Ensemble([Checkpoint(twin=twin)])
    if not (args.output / "published").exists():
        export_bundle(ensemble, args.output / "published", options=BundleOptions(half=True))
    # The ensemble of some members of the same weights, which bench_gpu.py makes of these bundles.
    combination = Combination(weights=(1 / MEMBERS,) * MEMBERS, bias=0.0)
    Templates().write(forward.ensemble(combination), args.output / "ensemble.onnx")


if __name__ == "__main__":
    main()
