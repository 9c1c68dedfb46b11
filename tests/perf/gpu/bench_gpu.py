"""An ensemble of five members at the published size on an NVIDIA GPU: speed, share of the ceiling, and error of fp16.

    python tests/perf/gpu/bench_gpu.py [--members 5] [--neurons 8000] [--batches 1 8 32 128] [--bundle DIR]

Needs torch with CUDA, for the ceiling, and onnxruntime-gpu (`make install RUNTIME=gpu`). Builds members of the paper's
configuration (Table A.2) with random weights, exports them with cores in float16, and times the engine by batch size in
float32 and in float16, in interleaved rounds. Prints the rate of torch's fastest float16 matrix product (the ceiling),
the share of it that the engine reaches, and the error of float16 relative to float32. Nothing is asserted.
`--provider cpu` tries the script without a GPU; the times then mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # run from a checkout
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_engine import build, report_error

from server.bundle.manifest import MANIFEST
from server.inference.benchmark import Case, core_gflop, measure
from server.inference.engine import Engine
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.ensemble import Ensemble
from training.export import export_bundle
from training.export.bundle import BundleOptions


def matmul_tflops() -> float:
    """The highest rate of a float16 matrix product in torch on the GPU, in TFLOP/s."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    best = 0.0
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        best = max(best, 2 * 8192**3 / (time.perf_counter() - start) / 1e12)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=5, help="members of the ensemble (default: %(default)s)")
    parser.add_argument("--neurons", type=int, default=8000, help="neurons of the mouse (default: %(default)s)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 8, 32, 128], help="batch sizes (default: 1 8 32 128)"
    )
    parser.add_argument("--rounds", type=int, default=10, help="runs of each case (default: %(default)s)")
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda", help="(default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="folder of the bundle, which is exported there unless it exists")
    args = parser.parse_args()
    if args.provider == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device; run this on a machine with an NVIDIA GPU, or try it with --provider cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.bundle or Path(temporary) / "published"
        if not (folder / MANIFEST).exists():
            members = [Checkpoint(twin=build(args.neurons, 1, seed=seed)) for seed in range(args.members)]
            export_bundle(Ensemble(members), folder, options=BundleOptions(gradients=False, half=True))
        bench(folder, args)


def bench(folder: Path, args: argparse.Namespace) -> None:
    engines = {
        precision: Engine.load(folder, provider=args.provider, precision=precision, max_batch=max(args.batches))
        for precision in ("fp32", "fp16")
    }
    engine = engines["fp32"]
    rng = np.random.default_rng(0)
    batches = {
        size: [rng.standard_normal((size, *shape)).astype(np.float32) for shape in ((1, 144, 256), (3,), (2,))]
        for size in args.batches
    }
    cases = [
        Case(f"{precision}, batch {size}", partial(one.predict, "A", *batches[size]), size)
        for size in args.batches
        for precision, one in engines.items()
    ]
    times = measure(cases, rounds=args.rounds)
    work = core_gflop(engine.manifest.configs[0], engine.cores[0].n_tokens)
    assert work is not None
    ceiling = matmul_tflops() if args.provider == "cuda" else float("nan")
    device = torch.cuda.get_device_name() if args.provider == "cuda" else "CPU"
    members, neurons = engine.manifest.members, engine.manifest.mice["A"].n_neurons
    print(f"{device}, {engine.provider}; {members} members, {neurons} neurons")
    print(f"best matrix product in float16: {ceiling:.0f} TFLOP/s; {work:.1f} GFLOP an image and member")
    for case in cases:
        rate = case.images / times[case.name]
        share = rate * work * engine.manifest.members / 1e3 / ceiling
        print(f"  {case.name:<20}{times[case.name] * 1e3:>10.2f} ms{rate:>10.1f} images/s{share:>8.1%} of the ceiling")
    largest = batches[max(args.batches)]
    report_error("fp16", engines["fp16"].predict("A", *largest), engine.predict("A", *largest))
    if args.provider == "cuda":
        used = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader"]
        print("GPU memory in use:", subprocess.run(used, capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
