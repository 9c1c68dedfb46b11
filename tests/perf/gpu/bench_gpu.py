"""Exactness and speed of the engine and the service on an NVIDIA GPU, in steps, each printed when it ends.

    python tests/perf/gpu/prepare.py FOLDER          # once, also on a machine without a GPU
    python tests/perf/gpu/bench_gpu.py FOLDER [--steps exactness ensemble kernels mei service] [--precisions fp16]

Needs onnxruntime-gpu and torch with CUDA (`make install RUNTIME=gpu`); torch gives the ceilings and the kernels' times.

    exactness   every case of the reference, in each precision, with and without CUDA graphs, against its responses
    ensemble    five members of the published size, by batch: images a second, share of the matrix ceiling
    sizes       the same in batches whose size changes each time, as traffic has them
    kernels     where the time of one core goes
    mei         a step of a search for most exciting inputs: gradients of one member
    service     `bentoml serve` at full load, requests of one image and of 32

`--provider cpu` tries the script without a GPU; the times then mean nothing. The training step on a GPU is
`bench_training_step.py --device cuda`.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "perf")]

from load import engine_runs, under_load  # noqa: E402
from support.live_server import serving  # noqa: E402

from server.bundle.manifest import MANIFEST, hash_file, load_manifest  # noqa: E402
from server.inference.benchmark import core_gflop  # noqa: E402
from server.inference.engine import Engine  # noqa: E402

MEMBERS = 5
PRECISIONS = ["fp32", "tf32", "fp16"]
EXACT = 1e-4  # of a graph in float32, relative to the reference's responses
say = functools.partial(print, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what prepare.py wrote")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS), help="(default: all)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="(default: all)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128], help="(default: 1 8 32 128)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda", help="(default: %(default)s)")
    args = parser.parse_args()
    if args.provider == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device; run this on a machine with an NVIDIA GPU, or try it with --provider cpu")
    device = torch.cuda.get_device_name() if args.provider == "cuda" else "CPU"
    say(f"{device}; onnxruntime {ort.__version__}, torch {torch.__version__}, {os.cpu_count()} cores")
    failed = []
    for step in args.steps:
        say(f"\n## {step}")
        start = time.perf_counter()
        try:
            STEPS[step](args)
        except Exception:  # the other steps are worth having
            traceback.print_exc()
            failed.append(step)
        say(f"({step}: {time.perf_counter() - start:.0f} s)")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def modes(args: argparse.Namespace, *, half: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of an engine, for each way to run a core."""
    on_gpu = args.provider == "cuda"
    for precision in args.precisions:
        if (precision == "tf32" and not on_gpu) or (precision == "fp16" and not half):
            continue
        for cuda_graphs in (False, True) if on_gpu else (False,):
            name = f"{precision}, graphs" if cuda_graphs else precision
            yield name, {"provider": args.provider, "precision": precision, "cuda_graphs": cuda_graphs}


def exactness(args: argparse.Namespace) -> None:
    wrong = []
    for golden_file in sorted((args.folder / "golden").glob("*/golden.npz")):
        golden, folder = np.load(golden_file), golden_file.parent
        inputs = golden["image"], golden["behavior"], golden["pupil_center"]
        manifest = load_manifest(folder)
        found = []
        for name, options in modes(args, half=bool(manifest.half_cores)):
            try:
                engine = Engine.load(folder, **options, max_batch=4 * len(inputs[0]))
                error = max(
                    float(np.abs(answer - golden[f"response_{mouse_id}"]).max())
                    for mouse_id in manifest.mice
                    for answer in answers(engine, mouse_id, inputs)
                )
                if name.startswith("fp32") and not error <= EXACT:
                    wrong.append(f"{folder.name} ({name})")
                found.append(f"{name} {error:.1e}")
                engine.close()
            except Exception as failure:
                wrong.append(f"{folder.name} ({name})")
                found.append(f"{name} FAILED: {str(failure)[:300]}")
        say(f"{folder.name:<32}" + "; ".join(found))
    say(f"not exact: {', '.join(wrong)}" if wrong else f"every case is within {EXACT:.0e} in float32")


def answers(engine: Engine, mouse_id: str, inputs: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """The responses in one batch, image by image, in one batch again (a recorded graph is then replayed), and in one
    batch with all other mice."""
    yield engine.predict(mouse_id, *inputs)
    yield np.concatenate([engine.predict(mouse_id, *(x[i : i + 1] for x in inputs)) for i in range(len(inputs[0]))])
    yield engine.predict(mouse_id, *inputs)
    alike = [mouse_id, *(key for key in engine.manifest.mice if key != mouse_id)]
    yield engine.predict_many([engine.check(key, *inputs) for key in alike])[0].response


@contextmanager
def ensemble_of(bundle: Path, members: int) -> Iterator[Path]:
    """The bundle of one member as one of several, which have the same weights: only times are measured with it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / bundle.name
        shutil.copytree(bundle, folder)
        content = json.loads((folder / MANIFEST).read_text())
        content["members"] = members
        content["configs"] *= members
        for name in ("attention", "token_cores", "core_tapes", "core_gradients"):
            content[name] = []
        for name in ("cores", "half_cores"):
            content[name] *= members
        for mouse in content["mice"].values():
            mouse["readouts"] *= members
            mouse["half_readouts"] *= members
            shutil.copy(bundle.parent / "ensemble.onnx", folder / mouse["ensemble"]["path"])
            mouse["ensemble"]["sha256"] = hash_file(folder / mouse["ensemble"]["path"])
            mouse["ensemble"]["bytes"] = (folder / mouse["ensemble"]["path"]).stat().st_size
            mouse["touched_tokens"] = []
            mouse["stem_gradients"], mouse["readout_gradients"], mouse["ensemble_gradient"] = [], [], None
        (folder / MANIFEST).write_text(json.dumps(content))
        yield folder


def seconds(call: Callable[[], object], least: float) -> float:
    """Median seconds of a call, over at least that long."""
    call()
    call()
    times: list[float] = []
    end = time.perf_counter() + least
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def ceilings() -> dict[str, float]:
    """TFLOP/s of torch's largest matrix product in each precision, on random values."""
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("fp16", torch.float16)):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            a @ b
            torch.cuda.synchronize()

        rates[name] = 2 * 8192**3 / seconds(product, 0.3) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.cuda.empty_cache()
    return rates


def gpu_megabytes() -> str:
    used = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader"]
    try:
        return subprocess.run(used, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return "-"


def random_inputs(size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(size)
    return [rng.standard_normal((size, *shape)).astype(np.float32) for shape in ((1, 144, 256), (3,), (2,))]


def ensemble(args: argparse.Namespace) -> None:
    rates = ceilings() if args.provider == "cuda" else {}
    say("ceilings: " + ", ".join(f"{name} {rate:.0f} TFLOP/s" for name, rate in rates.items()))
    say(f"{'mode':<14}{'batch':>6}{'ms':>10}{'images/s':>10}{'of ceiling':>11}  stages [ms], as they end on the CPU")
    with ensemble_of(args.folder / "published", MEMBERS) as folder:
        expected = Engine.load(folder, provider=args.provider).predict("A", *random_inputs(args.batches[0]))
        for name, options in modes(args, half=True):
            try:
                time_ensemble(f"{name:<14}", folder, options, args, rates, expected)
            except Exception as failure:
                say(f"{name:<14} FAILED: {str(failure)[:500]}")
            gc.collect()


def time_ensemble(
    name: str,
    folder: Path,
    options: dict[str, Any],
    args: argparse.Namespace,
    rates: dict[str, float],
    expected: np.ndarray,
) -> None:
    engine = Engine.load(folder, **options, max_batch=max(args.batches))
    work = core_gflop(engine.manifest.configs[0], engine.cores[0].n_tokens) or float("nan")
    for size in args.batches:
        call = functools.partial(engine.predict, "A", *random_inputs(size))
        took = seconds(call, args.seconds)
        share = size / took * work * MEMBERS / 1e3 / rates.get(options["precision"], float("nan"))
        stages = ", ".join(f"{stage} {value * 1e3:.1f}" for stage, value in engine.stages.seconds.items())
        say(f"{name}{size:>6}{took * 1e3:>10.2f}{size / took:>10.1f}{share:>11.1%}  {stages}")
    error = np.abs(engine.predict("A", *random_inputs(args.batches[0])) - expected).max()
    relative = error / np.abs(expected).max()
    say(f"{name}  error against fp32 {error:.1e}, {relative:.1e} of the largest response; GPU memory {gpu_megabytes()}")
    engine.close()


def sizes(args: argparse.Namespace) -> None:
    """Random sizes up to the largest batch: a first pass, which meets each size once or more, and a second one."""
    rng = np.random.default_rng(0)
    order = rng.integers(1, max(args.batches) + 1, 60)
    inputs = [random_inputs(int(size)) for size in order]
    with ensemble_of(args.folder / "published", MEMBERS) as folder:
        for name, options in modes(args, half=True):
            engine = Engine.load(folder, **options, max_batch=max(args.batches))
            engine.warm_up()
            rates = []
            for _ in range(2):
                times = []
                for each in inputs:
                    start = time.perf_counter()
                    engine.predict("A", *each)
                    times.append(time.perf_counter() - start)
                rates.append(f"{order.sum() / sum(times):.0f} images/s, slowest {max(times) * 1e3:.0f} ms")
            say(f"{name:<14}{len(order)} batches of 1 to {max(args.batches)}: {'; again: '.join(rates)}")
            engine.close()


def kernels(args: argparse.Namespace) -> None:
    """The GPU's kernels in one call at batch 32, by torch's profiler, which sees those of onnxruntime too."""
    from torch.profiler import ProfilerActivity, profile

    size = 32 if args.provider == "cuda" else 1
    inputs = random_inputs(size)
    for precision in args.precisions:
        engine = Engine.load(args.folder / "published", provider=args.provider, precision=precision, max_batch=size)
        call = functools.partial(engine.predict, "A", *inputs)
        call()
        call()
        activities = [ProfilerActivity.CUDA] if args.provider == "cuda" else [ProfilerActivity.CPU]
        with profile(activities=activities) as profiled:
            call()
            if args.provider == "cuda":
                torch.cuda.synchronize()
        rows = sorted(profiled.key_averages(), key=lambda row: -row.self_device_time_total)
        total = sum(row.self_device_time_total for row in rows) / 1e3
        whole = seconds(call, 0.5) * 1e3
        say(f"{precision}, batch {size}, one member: {total:.2f} ms on the GPU, {whole:.2f} ms in all")
        for row in rows[:20]:
            say(f"  {row.self_device_time_total / 1e3:>9.3f} ms {row.count:>5}  {row.key[:110]}")
        engine.close()


def mei(args: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    on_cpu = Engine.load(args.folder / "published", provider="cpu", max_batch=8)
    on_gpu = Engine.load(args.folder / "published", provider=args.provider, max_batch=128)
    some = np.arange(0, 8000, 80)  # enough that some of them see the image
    question = *random_inputs(1), np.ones(len(some), np.float32), some
    expected, got = on_cpu.gradient("A", *question).image, on_gpu.gradient("A", *question).image
    error = np.abs(got - expected).max() / np.abs(expected).max()
    say(f"gradient of the image, relative to the CPU's: {error:.1e} of its largest value")
    for size in (1, 8, 32) if args.provider == "cuda" else (1,):
        inputs = random_inputs(size)
        neurons = rng.permutation(8000)[:size]
        weights = np.eye(size, dtype=np.float32)  # each image drives its own neuron
        forward = seconds(functools.partial(on_gpu.predict, "A", *inputs, neurons), args.seconds)
        took = seconds(functools.partial(on_gpu.gradient, "A", *inputs, weights, neurons), args.seconds)
        each, ratio = took / size * 1e3, took / forward
        say(f"{size:>4} images and neurons: {took * 1e3:.1f} ms, {each:.2f} ms an image, {ratio:.1f} x a prediction")


LOADS = ((1, 1, 1), (1, 4, 32), (8, 4, 8), (32, 4, 2))  # images a request, client processes, connections of each


def service(args: argparse.Namespace) -> None:
    on_gpu = args.provider == "cuda"
    precision, largest = ("fp16", "64") if on_gpu else ("fp32", "8")
    with (
        ensemble_of(args.folder / "published", MEMBERS) as bundle,
        tempfile.TemporaryDirectory() as temporary,
    ):
        settings = {"V1T_PROVIDER": args.provider, "V1T_PRECISION": precision, "V1T_MAX_BATCH": largest}
        for recorded in ("1", "0") if on_gpu else ("0",):
            try:
                with serving(bundle, Path(temporary), **settings, V1T_CUDA_GRAPHS=recorded) as server:
                    server.wait_for("/readyz", 200)
                    for load in LOADS:
                        port = int(server.url.rpartition(":")[2])
                        under_load(port, *load, duration=2.0)  # meets most batch sizes once
                        before = engine_runs(server.url)
                        line = under_load(port, *load, duration=max(3.0, args.seconds))
                        runs, images, busy = (b - a for a, b in zip(before, engine_runs(server.url), strict=True))
                        mean = f"{images / max(1, runs):.1f} images a run, {busy / max(1, runs) * 1e3:.1f} ms each"
                        say(f"graphs {recorded}: {line}; {mean}")
            except AssertionError as failure:
                say(f"graphs {recorded}: FAILED: {str(failure)[-1500:]}")


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "exactness": exactness,
    "ensemble": ensemble,
    "sizes": sizes,
    "kernels": kernels,
    "mei": mei,
    "service": service,
}


if __name__ == "__main__":
    main()
