"""A training step of the published configuration, including dropout of the attention weights.

    python tests/perf/bench_training_step.py [--batch 4] [--rounds 5] [--memory]
    python tests/perf/bench_training_step.py --device cuda --batch 16
    python tests/perf/bench_training_step.py --core cnn --batch 16

A step is what `python -m training train` does for one mouse's batch: read the trials, forward pass, loss with its L1
terms, backward pass, AdamW. All cases run in one process, in interleaved rounds. Printed are medians, and the median
over rounds of the ratio to the first case. "eager" materialises softmax(Q K^T) like the reference code, with its
dropout. `--core cnn` and `--core ln` print where the time of a step goes, and compare torch's own convolution per
channel. Weights are random, and the recording is simulated. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout

from training.config import ModelConfig, TrainingConfig, parse_config, with_options
from training.data.batches import epoch_batches, read_ahead
from training.data.recordings import Recording
from training.models.attention import Attention
from training.models.depthwise import DepthwiseConv2d
from training.models.dropout import Dropout
from training.simulation.simulate import simulate
from training.trainer.hardware import Hardware
from training.trainer.loop import start_member
from training.trainer.run_spec import RunSpec
from training.trainer.state import RunState
from training.trainer.update import Update

DATASET_S = (5, 4500, 500, 200)  # mice, training and validation trials of each, epochs


@dataclass(frozen=True)
class Case:
    """One way to run the same step."""

    name: str
    kernel: str  # of attention and dropout: eager, torch's sdpa, cuDNN's or ours; of convolutions: torch's or ours
    precision: str = "fp32"
    dropout: bool = True
    compile: bool = False


CPU_CASES = (
    Case("eager softmax(QK^T)V, dropout", "eager"),
    Case("SDPA, dropout (torch's plain path)", "sdpa"),
    Case("eager, no dropout", "eager", dropout=False),
    Case("SDPA, no dropout", "sdpa", dropout=False),
    Case("as trained, dropout", "fused"),
    Case("eager, dropout, bf16", "eager", "bf16"),
    Case("SDPA, no dropout, bf16", "sdpa", "bf16", dropout=False),
    Case("as trained, dropout, bf16", "fused", "bf16"),
)
CUDA_CASES = (
    Case("eager softmax(QK^T)V, dropout", "eager"),
    Case("as trained, dropout", "fused"),
    Case("eager, dropout, bf16", "eager", "bf16"),
    Case("as trained, dropout, bf16", "fused", "bf16"),
    Case("as trained, dropout, fp16", "fused", "fp16"),
    Case("cuDNN's attention, dropout, bf16", "cudnn", "bf16"),
    Case("as trained, dropout, bf16, compiled", "fused", "bf16", compile=True),
)


def with_torchs_sdpa(self: Attention, x: Tensor, rate: float) -> Tensor:
    q, k, v = self._heads(x)
    return self._merge(F.scaled_dot_product_attention(q, k, v, dropout_p=rate, scale=self._scale()))


OURS, FORWARD, DEPTHWISE = Attention._with_dropout, Attention.forward, DepthwiseConv2d.forward


def with_cudnn(self: Attention, x: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return FORWARD(self, x)


def use(case: Case) -> None:
    DepthwiseConv2d.forward = torch.nn.Conv2d.forward if case.kernel == "torch" else DEPTHWISE
    Attention.forward = with_cudnn if case.kernel == "cudnn" else FORWARD
    Attention.kernel = Dropout.kernel = "eager" if case.kernel == "eager" else "fused"
    Dropout.kernel = "eager" if case.kernel in ("eager", "sdpa") else "fused"
    Attention._with_dropout = with_torchs_sdpa if case.kernel == "sdpa" else OURS


class Bench:
    """A member per case, and its steps over the same trials."""

    def __init__(self, cases: tuple[Case, ...], config: ModelConfig, recording: Recording, device: str, batch: int):
        self.recordings = {recording.mouse_id: recording}
        self.training = TrainingConfig(batch_size=batch)
        self.members: dict[Case, tuple[Update, RunState]] = {}
        for case in cases:
            hardware = Hardware(device=device, precision=case.precision)
            fabric = hardware.fabric()
            model = config
            if not case.dropout:
                model = with_options(config, {"core.patch_dropout": 0.0, "core.block_dropout": 0.0})
            state = start_member(RunSpec(model=model, training=self.training, recordings=self.recordings), fabric)
            compiled = torch.compile(state.twin.core) if case.compile else None
            self.members[case] = Update(state.twin, self.training, self.recordings, fabric, compiled=compiled), state

    def step(self, case: Case, trials: dict[str, np.ndarray]) -> None:
        use(case)
        update, state = self.members[case]
        state.twin.train()
        state.optimizer.zero_grad()
        loss = update.gradients(trials)
        update.fabric.strategy.precision.optimizer_step(state.optimizer)
        if not np.isfinite(loss):
            raise SystemExit(f"{case.name}: the loss is {loss}")
        if update.fabric.device.type == "cuda":
            torch.cuda.synchronize()

    def trials(self, n: int) -> dict[str, np.ndarray]:
        return {mouse_id: recording.tier("train").indices[:n] for mouse_id, recording in self.recordings.items()}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def print_steps(bench: Bench, batch: int, rounds: int) -> dict[Case, float]:
    trials = bench.trials(batch)
    for case in [*bench.members]:
        try:
            bench.step(case, trials)  # warms up
        except RuntimeError as error:
            print(f"{case.name}: cannot run: {str(error).splitlines()[0]}")
            del bench.members[case]
    times: dict[Case, list[float]] = {case: [] for case in bench.members}
    for _ in range(rounds):
        for case in bench.members:
            times[case].append(seconds(lambda case=case: bench.step(case, trials)))
    first = next(iter(times))
    print(f"{'one step':<40}{'ms per sample':>14}{'throughput':>12}{'from':>8}{'to':>7}")
    for case, values in times.items():
        ratios = [a / b for a, b in zip(times[first], values, strict=True)]
        print(
            f"{case.name:<40}{statistics.median(values) / batch * 1e3:>14.1f}{statistics.median(ratios):>11.2f}x"
            f"{min(ratios):>8.2f}{max(ratios):>7.2f}"
        )
    return {case: statistics.median(values) / batch for case, values in times.items()}


def print_waiting(bench: Bench, case: Case, steps: int) -> None:
    """The share of an epoch spent waiting for trials, with reading ahead in a thread as in training, and without."""
    update, _ = bench.members[case]
    epochs = (trials for epoch in range(100) for trials in all_steps(bench, epoch))
    waited = total = read = 0.0
    ahead = read_ahead((trials, update.read(trials)) for trials in epochs)
    next(ahead)
    for _ in range(steps):
        start = time.perf_counter()
        trials, batches = next(ahead)
        waited += time.perf_counter() - start
        read += seconds(lambda trials=trials: update.read(trials))
        begun = time.perf_counter()
        use(case)
        update.twin.train()
        update.twin.zero_grad()
        update.gradients(trials, batches)
        total += time.perf_counter() - begun
    ahead.close()
    total += waited
    print(
        f"\nwaiting for data: {waited / total:.2%} of an epoch, over {steps} updates ({case.name}); "
        f"without reading ahead {read / (total - waited + read):.2%}"
    )


def all_steps(bench: Bench, epoch: int) -> list[dict[str, np.ndarray]]:
    return list(epoch_batches(bench.recordings, batch_size=bench.training.batch_size, seed=0, epoch=epoch))


def flops(config: ModelConfig, recording: Recording) -> float:
    """FLOP of one sample's step, forward and backward, by torch's counter."""
    case = Case("", "eager", dropout=False)
    bench = Bench((case,), config, recording, "cpu", 1)
    use(case)
    with FlopCounterMode(display=False) as counter:
        bench.step(case, bench.trials(1))
    return float(counter.get_total_flops())


def ceiling(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of the fastest square matrix product."""
    best = 0.0
    for n in (2048, 4096, 8192) if device == "cuda" else (1024, 2048):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            a @ b
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        best = max(best, 2 * n**3 / min(times))
    return best


def print_operators(bench: Bench, case: Case, batch: int) -> None:
    """The share of each operator in a step and in reading its trials, by torch's profiler."""
    trials = bench.trials(batch)
    bench.step(case, trials)  # warms up
    bench.step(case, trials)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            bench.step(case, trials)
    rows = sorted(profiled.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"\n{'where a step goes, ' + case.name:<60}{'share':>7}{'calls':>7}")
    for row in rows[:12]:
        print(f"{row.key[:58]:<60}{row.self_cpu_time_total / total:>7.1%}{row.count // 3:>7}")


def print_ceilings(per_sample: dict[Case, float], work: float, device: str) -> None:
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    measured = {name: ceiling(dtypes[name], device) for name in {case.precision for case in per_sample}}
    mice, train, validation, epochs = DATASET_S
    print(f"\n{work / 1e9:.0f} GFLOP a sample, forward and backward")
    print(f"{'':<40}{'samples/s':>10}{'of ceiling':>12}{'Dataset S':>12}")
    for case, value in per_sample.items():
        share = work / value / measured[case.precision]
        # A validation trial is a forward pass: a third of a step.
        days = epochs * mice * (train + validation / 3) * value / 86400
        print(f"{case.name:<40}{1 / value:>10.1f}{share:>12.0%}{days:>7.2f} days")
    print(
        "ceilings: " + ", ".join(f"{name} {value / 1e12:.2f} TFLOP/s" for name, value in measured.items()),
        f"; Dataset S is {mice} mice, {train} trials each, all {epochs} epochs",
    )


def print_memory(arguments: list[str], cases: tuple[Case, ...]) -> None:
    """Measures each case in its own process, as the peak of a process never falls."""
    print(f"\n{'peak memory, one step':<40}{'MiB':>8}")
    for i, case in enumerate(cases):
        command = [sys.executable, __file__, *arguments, "--only", str(i)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(f"{case.name:<40}{float(output.split()[-1]):>8.0f}")


def peak(device: str) -> float:
    """MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak would be that of the process that started this one, where that is larger
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:") / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    parser.add_argument("--core", choices=["vit", "cnn", "ln"], default="vit", help="(default: %(default)s, V1T)")
    parser.add_argument("--batch", type=int, default=4, help="trials in a step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--neurons", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its choice)")
    parser.add_argument("--stride", type=int, default=1, help="stride of patches; larger is quicker (default: 1)")
    parser.add_argument(
        "--memory", action="store_true", help="also measure each case's peak memory, in its own process"
    )
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.core == "vit":
        cases = CUDA_CASES if args.device == "cuda" else CPU_CASES
        config = with_options(ModelConfig(), {"core.patch_stride": args.stride})
    else:
        cases = tuple(
            Case(f"{args.core.upper()}, {precision}{', torch alone' * (kernel == 'torch')}", kernel, precision)
            for precision in ("fp32", "bf16")
            for kernel in ("torch", "fused")
        )
        config = parse_config({"core": {"kind": args.core}, "behavior": "channels"})
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording.open(
            simulate(
                folder, mouse_id="SIM1", data_key="90001-1-1", n_neurons=args.neurons, n_train=max(32, 2 * args.batch)
            ),
            cache=folder,
        )
        if args.only is not None:
            case = cases[args.only]
            bench = Bench((case,), config, recording, args.device, args.batch)
            bench.step(case, bench.trials(args.batch))
            print(peak(args.device))
            return
        where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
        print(f"torch {torch.__version__}, {where}, batch {args.batch}, {args.neurons} neurons, {args.rounds} rounds\n")
        bench = Bench(cases, config, recording, args.device, args.batch)
        per_sample = print_steps(bench, args.batch, args.rounds)
        quickest = min((case for case in per_sample if case.dropout), key=lambda case: per_sample[case])
        print_waiting(bench, quickest, steps=5)
        if args.core != "vit":
            for case in cases:
                print_operators(bench, case, args.batch)
            return
        print_ceilings(per_sample, flops(config, recording), args.device)
        if args.memory:
            options = ["--device", args.device, "--batch", str(args.batch), "--neurons", str(args.neurons)]
            print_memory([*options, "--stride", str(args.stride)], cases)


if __name__ == "__main__":
    main()
