"""`python -m server bench`: how fast a bundle runs on this machine, beside how fast this machine can multiply."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime as ort

from server.inference.engine import Engine, Stimulus
from server.inference.one_node import MATMUL
from server.inference.processors import default_threads, usable_cores
from server.inference.sessions import Precision, Provider

__all__ = ["DESCRIPTION", "add_arguments", "core_gflop", "matmul_gflops", "measure", "positive", "run"]

DESCRIPTION = """Measures a bundle on this machine and prints:

  ceiling     the best rate of matrix products that onnxruntime reaches here, with the same threads
  time        per image, by batch size, and the share of the ceiling that it is (for ViT and V1T cores)
  savings     a few neurons instead of all; all mice on one stimulus instead of one mouse
  gradient    d(sum of weights times responses) / d(inputs), as a multiple of a prediction
  memory      resident after loading, and at most

Cases run in turns, round after round, and medians are printed, so a machine that is busy for a while slows all cases
alike. Ratios carry over to other machines; milliseconds do not. Leave the machine alone while it runs."""

# (rows, inner, columns): a large square, and the two products of attention at the published size.
GEMMS = ((2048, 2048, 2048), (6616, 155, 1654), (6616, 1654, 155))
SUBSETS = (1, 10, 100, 1000)


@dataclass(frozen=True)
class Case:
    """Something timed: `images` images per call."""

    name: str
    call: Callable[[], object]
    images: int = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="folder with a manifest.json, as the exporter writes it")
    parser.add_argument("--mouse", help="whose images to time (default: the first mouse)")
    parser.add_argument("--threads", type=positive, metavar="N", help="of one graph on the CPU (default: one per core)")
    parser.add_argument("--provider", choices=get_args(Provider), default="auto", help="where the graphs run")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of the cores")
    parser.add_argument(
        "--max-batch", type=positive, default=8, metavar="B", help="largest batch (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=positive, default=10, metavar="R", help="turns per case (default: %(default)s)"
    )
    parser.add_argument("--no-gradient", dest="gradient", action="store_false", help="leave the gradient out")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    gflops = matmul_gflops(args.threads)
    before = resident_mb()
    start = time.perf_counter()
    engine = Engine.load(
        Path(args.bundle),
        provider=args.provider,
        precision=args.precision,
        threads=args.threads,
        max_batch=args.max_batch,
    )
    loaded = time.perf_counter() - start
    mouse_id = args.mouse or next(iter(engine.manifest.mice))
    after_loading = resident_mb()
    cases = _cases(engine, mouse_id, with_gradient=args.gradient and engine.manifest.has_gradients)
    times = measure(cases, rounds=args.rounds)

    manifest = engine.manifest
    neurons = manifest.mice[mouse_id].n_neurons
    threads = args.threads or usable_cores()
    mice = f"mouse {mouse_id} of {len(manifest.mice)}, {neurons} neurons"
    print(f"bundle    {manifest.name}: {manifest.members} members, {mice}")
    print(f"machine   {engine.provider}, {engine.precision}, {threads} threads, onnxruntime {ort.__version__}")
    print(f"ceiling   {gflops:.0f} GFLOP/s, the best matrix product in onnxruntime on the CPU")
    work = [core_gflop(config, core.n_tokens) for config, core in zip(manifest.configs, engine.cores, strict=True)]
    least = sum(one for one in work if one is not None) / gflops if all(work) else None  # seconds an image
    if least is not None:
        print(f"work      {least * gflops:.1f} GFLOP an image, at least {least * 1e3:.1f} ms at the ceiling")
    print(f"load      {loaded:.2f} s")
    print()
    print(f"{'case':<28}{'ms an image':>12}{'relative':>10}" + (f"{'of ceiling':>12}" if least else ""))
    base = times[cases[0].name]
    for case in cases:
        seconds = times[case.name] / case.images
        share = f"{least / seconds:>12.0%}" if least and case.name.startswith("batch") else ""
        print(f"{case.name:<28}{seconds * 1e3:>12.2f}{seconds / base:>9.2f}x{share}")
    print()
    print(f"memory    {before:.0f} MB before loading, {after_loading:.0f} MB after, {peak_mb():.0f} MB at most")
    if engine.device != "cpu":
        print("note      the ceiling is the CPU's; for a GPU compare with its own, see tests/perf/gpu", file=sys.stderr)
    return 0


def _cases(engine: Engine, mouse_id: str, *, with_gradient: bool) -> list[Case]:
    rng = np.random.default_rng(0)
    mouse = engine.manifest.mice[mouse_id]

    def stimulus(batch: int, neurons: int | None = None) -> Stimulus:
        shapes = (mouse.image_shape, (len(mouse.behavior),), (len(mouse.pupil_center),))
        some = None if neurons is None else rng.permutation(mouse.n_neurons)[:neurons]
        image, behavior, pupil_center = (rng.standard_normal((batch, *s)) for s in shapes)
        return engine.check(mouse_id, image, behavior, pupil_center, some)

    def predict(*stimuli: Stimulus) -> Callable[[], object]:
        return lambda: engine.predict_many(stimuli)

    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size <= engine.max_batch]
    cases = [Case(f"batch {size}, all neurons", predict(stimulus(size)), size) for size in sizes]
    cases += [Case(f"{n} neuron{'s'[: n > 1]}", predict(stimulus(1, n))) for n in SUBSETS if n < mouse.n_neurons]
    alike = [other for other in engine.manifest.mice.values() if other.image_shape == mouse.image_shape]
    if len(alike) > 1:
        one = stimulus(1)
        everyone = [
            Stimulus(other.mouse_id, one.image, one.behavior, one.pupil_center) for other in alike[: engine.max_batch]
        ]
        cases.append(Case(f"{len(everyone)} mice, one stimulus", predict(*everyone)))
    if with_gradient:
        one = stimulus(1)
        inputs = mouse_id, one.image, one.behavior, one.pupil_center
        weights = rng.standard_normal(mouse.n_neurons).astype(np.float32)
        cases.append(Case("gradient, all neurons", lambda: engine.gradient(*inputs, weights)))
        cases.append(Case("gradient, 1 neuron", lambda: engine.gradient(*inputs, weights[:1], np.array([0]))))
    return cases


def measure(cases: list[Case], *, rounds: int) -> dict[str, float]:
    """Median seconds per call; every case once unmeasured, then all in turns."""
    for case in cases:
        case.call()
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            start = time.perf_counter()
            case.call()
            seconds[case.name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def core_gflop(config: dict[str, Any], n_tokens: int) -> float | None:
    """Work of one image in a ViT's matrix products as trained, before any fold; None for other cores."""
    core = config["core"]
    if core["kind"] != "vit":
        return None
    tokens, dim, heads = n_tokens + 1, core["dim"], core["n_heads"]
    attention = 2 * 2 * heads * tokens**2 * dim
    projections = 2 * tokens * dim * heads * dim * 4  # queries, keys, values, output
    mlp = 2 * 2 * tokens * dim * core["mlp_dim"]
    return float(core["n_blocks"] * (attention + projections + mlp)) / 1e9


def matmul_gflops(threads: int | None, *, repeats: int = 5) -> float:
    """The best rate of a float32 matrix product in onnxruntime on the CPU."""
    options = ort.SessionOptions()
    if (threads := threads or default_threads()) is not None:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(MATMUL, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    best = 0.0
    for rows, inner, columns in GEMMS:
        a = rng.standard_normal((rows, inner), dtype=np.float32)
        b = rng.standard_normal((inner, columns), dtype=np.float32)
        for _ in range(repeats):
            start = time.perf_counter()
            session.run(None, {"a": a, "b": b})
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - start) / 1e9)
    return best


def resident_mb() -> float:
    """Memory that this process holds now; NaN where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_mb() -> float:
    """The most memory that this process has held; NaN where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
