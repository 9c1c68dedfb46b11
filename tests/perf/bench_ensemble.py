"""An ensemble of five members at the published size: its loading time, and its memory at batch 8.

    python tests/perf/bench_ensemble.py [--threads 2] [--neurons 8000] [--bundle DIR]

Builds five members of the paper's configuration (Table A.2) with random weights, exports them, and loads and runs the
bundle in a process of its own, without torch. Prints the measurements and their bounds. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout

from bench_engine import build

from server.bundle.manifest import MANIFEST
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.ensemble import Ensemble
from training.export import export_bundle
from training.export.bundle import BundleOptions

# Runs in a process of its own.
PREDICT = """
import sys, time
import numpy as np
from server.inference.benchmark import peak_mb, resident_mb
from server.inference.engine import Engine
before, start = resident_mb(), time.perf_counter()
engine = Engine.load(sys.argv[1], provider="cpu", threads=int(sys.argv[2]), max_batch=8)
loaded = time.perf_counter() - start
rng = np.random.default_rng(0)
inputs = [rng.standard_normal((8, *shape)) for shape in ((1, 144, 256), (3,), (2,))]
seconds = []
for _ in range(4):
    start = time.perf_counter()
    engine.predict("A", *inputs)
    seconds.append(time.perf_counter() - start)
print(f"loaded and verified in {loaded:.2f} s (bound 3)")
print(f"{min(seconds) / 8 * 1e3:.0f} ms an image at batch 8, for all members")
print(f"resident {resident_mb():.0f} MB, {peak_mb():.0f} MB at most (bound 1000), {before:.0f} MB before loading")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of onnxruntime (default: %(default)s)")
    parser.add_argument("--neurons", type=int, default=8000, help="neurons of the mouse (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="folder of the bundle, which is exported there unless it exists")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.bundle or Path(temporary) / "five"
        if not (folder / MANIFEST).exists():
            members = [Checkpoint(twin=build(args.neurons, 1, seed=seed)) for seed in range(5)]
            export_bundle(Ensemble(members), folder, options=BundleOptions(gradients=False))
        command = [sys.executable, "-c", PREDICT, str(folder.resolve()), str(args.threads)]
        subprocess.run(command, cwd=Path(__file__).resolve().parents[2], check=True)


if __name__ == "__main__":
    main()
