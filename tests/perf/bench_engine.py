"""Compares the exported graphs with torch at the published size, as ratios of times in one run.

    python tests/perf/bench_engine.py [--threads 2] [--rounds 10] [--neurons 8000]

Builds the paper's configuration (Table A.2) with random weights and eight mice, exports it, and times these cases in
interleaved rounds:

- our torch model with materialised attention ("eager", as in the reference code) and with scaled_dot_product_attention;
- the engine by batch size, with few neurons, and with eight mice on one stimulus;
- gradients of torch and of the engine;
- the engine with OpenVINO in float32 and in bfloat16, if openvino is installed.

Prints medians, ratios, and the bounds of the ratios. Nothing is asserted. The export takes some minutes; --bundle keeps
the bundle. Do not use the machine for anything else while this runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout

from server.bundle.manifest import MANIFEST
from server.inference.benchmark import Case, core_gflop, matmul_gflops, measure, peak_mb, resident_mb
from server.inference.engine import Engine, Stimulus
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.ensemble import Ensemble
from training.config import ModelConfig
from training.data.mouse import Mouse
from training.export import export_bundle
from training.models import Twin
from training.models.attention import Attention

MICE = "ABCDEFGH"
FEW = 10


def build(n_neurons: int, n_mice: int, *, seed: int = 0) -> Twin:
    """The published configuration, with receptive fields all over the feature map, so that no part can be skipped."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    mice = [
        dataclasses.replace(
            Mouse.without_recording(mouse_id, (1, 144, 256), n_neurons),
            neuron_coordinates=rng.uniform(-1, 1, (n_neurons, 3)).astype(np.float32),
        )
        for mouse_id in MICE[:n_mice]
    ]
    twin = Twin(ModelConfig(), mice).eval().requires_grad_(False)
    for mouse in mice:
        readout = twin.readout(mouse.mouse_id)
        readout.features.normal_(0, 0.1)
        assert readout.position_network is not None
        for layer, std in ((readout.position_network[0], 2.0), (readout.position_network[2], 0.4)):
            layer.weight.normal_(0, std)
    return twin


def with_kernel(twin: Twin, kernel: Literal["fused", "eager"], call: Callable[[], object]) -> Callable[[], object]:
    attentions = [module for module in twin.modules() if isinstance(module, Attention)]

    def run() -> None:
        for attention in attentions:
            attention.kernel = kernel
        call()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of torch and of onnxruntime (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=10, help="runs of each case (default: %(default)s)")
    parser.add_argument("--neurons", type=int, default=8000, help="neurons per mouse (default: %(default)s)")
    parser.add_argument(
        "--mice", type=int, default=8, choices=range(2, 9), help="number of mice (default: %(default)s)"
    )
    parser.add_argument("--bundle", type=Path, help="folder of the bundle, which is exported there unless it exists")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    twin = build(args.neurons, args.mice)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.bundle or Path(temporary) / "published"
        if not (folder / MANIFEST).exists():
            export_bundle(Ensemble([Checkpoint(twin=twin)]), folder)
        bench(twin, folder, threads=args.threads, rounds=args.rounds)


def bench(twin: Twin, folder: Path, *, threads: int, rounds: int) -> None:
    gflops = matmul_gflops(threads, repeats=10)
    engine = Engine.load(folder, provider="cpu", threads=threads, max_batch=16)
    n_neurons, mice = engine.manifest.mice["A"].n_neurons, list(engine.manifest.mice)
    rng = np.random.default_rng(0)
    batches = {
        size: [rng.standard_normal((size, *s)).astype(np.float32) for s in ((1, 144, 256), (3,), (2,))]
        for size in (1, 4, 16)
    }
    one = batches[1]
    few = rng.permutation(n_neurons)[:FEW]
    weights = rng.standard_normal(n_neurons).astype(np.float32)

    def forward(size: int) -> Callable[[], object]:
        tensors = [torch.from_numpy(array) for array in batches[size]]
        return torch.inference_mode()(lambda: twin("A", *tensors))

    def backward() -> None:
        tensors = [torch.from_numpy(array).requires_grad_() for array in one]
        torch.autograd.grad((twin("A", *tensors) * torch.from_numpy(weights)).sum(), tensors)

    cases = []
    for size, arrays in batches.items():
        cases += [
            Case(f"torch eager, batch {size}", with_kernel(twin, "eager", forward(size)), size),
            Case(f"torch SDPA, batch {size}", with_kernel(twin, "fused", forward(size)), size),
            Case(f"engine, batch {size}", lambda arrays=arrays: engine.predict("A", *arrays), size),  # type: ignore[misc]
        ]
    everyone = [Stimulus(mouse_id, *one) for mouse_id in mice]
    cases += [
        Case(f"engine, {FEW} neurons", lambda: engine.predict("A", *one, few)),
        Case(f"engine, {len(mice)} mice", lambda: engine.predict_many(everyone)),
        Case("engine, gradient", lambda: engine.gradient("A", *one, weights)),
        Case(f"engine, gradient of {FEW}", lambda: engine.gradient("A", *one, weights[few], few)),
        Case("torch SDPA, gradient", with_kernel(twin, "fused", backward)),
        Case("torch eager, gradient", with_kernel(twin, "eager", backward)),
    ]
    others = {}
    if importlib.util.find_spec("openvino"):
        for precision in ("fp32", "bf16"):
            others[precision] = other = Engine.load(
                folder, provider="openvino", precision=precision, threads=threads, max_batch=16
            )
            cases += [
                Case(f"OpenVINO {precision}, batch {size}", partial(other.predict, "A", *batches[size]), size)
                for size in (1, 4)
            ]
    times = measure(cases, rounds=rounds)
    per_image = {case.name: times[case.name] / case.images for case in cases}
    gflop = core_gflop(twin.config.model_dump(mode="json"), engine.cores[0].n_tokens)
    assert gflop is not None

    print(f"{threads} threads, {n_neurons} neurons, {rounds} rounds; torch {torch.__version__}")
    print(f"best matrix product {gflops:.0f} GFLOP/s; {gflop:.1f} GFLOP an image, so {gflop / gflops * 1e3:.0f} ms")
    for name, seconds in per_image.items():
        print(f"  {name:<26}{seconds * 1e3:>9.1f} ms an image")
    print(f"memory of this process, with torch: {resident_mb():.0f} MB, {peak_mb():.0f} MB at most")
    base, eager = per_image["engine, batch 1"], per_image["torch eager, batch 1"]
    print("ratios                                       got   bound")
    for what, ratio, bound in (
        ("engine / torch eager, batch 1", base / eager, 0.26),
        ("engine / torch SDPA, batch 1", base / per_image["torch SDPA, batch 1"], 0.44),
        ("engine / time at the ceiling, batch 1", base / (gflop / gflops), 1.2),
        (f"{FEW} neurons / all", per_image[f"engine, {FEW} neurons"] / base, 0.8),
        (f"{len(mice)} mice / one, one stimulus", per_image[f"engine, {len(mice)} mice"] / base, 1.25),
        ("gradient / forward", per_image["engine, gradient"] / base, 4.0),
        *(
            (f"OpenVINO {precision} / torch eager, batch 1", per_image[f"OpenVINO {precision}, batch 1"] / eager, bound)
            for precision, bound in (("fp32", 0.26), ("bf16", 0.16))
            if precision in others
        ),
    ):
        print(f"  {what:<40}{ratio:>6.2f}{bound:>8.2f}")
    expected = engine.predict("A", *batches[16])
    for precision, other in others.items():
        report_error(f"OpenVINO {precision}", other.predict("A", *batches[16]), expected)


def report_error(name: str, got: np.ndarray, expected: np.ndarray) -> None:
    """The error of responses (B, N) against onnxruntime in float32, relative to each neuron's variation over images."""
    a, b = got - got.mean(0), expected - expected.mean(0)
    varies = b.std(0) > 0.01 * np.median(b.std(0))  # neurons with a receptive field outside the image do not
    correlation = (a * b).sum(0)[varies] / np.sqrt((a**2).sum(0) * (b**2).sum(0))[varies]
    relative = np.linalg.norm(got - expected, axis=0)[varies] / np.linalg.norm(b, axis=0)[varies]
    print(
        f"error of {name}, relative to a neuron's variation: median {np.median(relative):.1e}, "
        f"worst {relative.max():.1e}; correlation of the worst neuron {correlation.min():.5f}"
    )


if __name__ == "__main__":
    main()
