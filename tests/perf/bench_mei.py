"""A search for most exciting inputs through the server, against its gradients alone and against torch: ratios.

    python tests/perf/bench_mei.py [--threads 2] [--neurons 16] [--steps 2] [--rounds 3] [--bundle FOLDER]

Builds and exports the paper's configuration (Table A.2) with random weights, as tests/perf/bench_engine.py does, starts
a server of it, and times in interleaved rounds, on the same cores:

    gradient   engine.gradient of N images and their N neurons, in this process
    step       the same over HTTP with all that a step of the search adds
    search     `ascend` of some steps with its last evaluation, over HTTP
    torch      the same `ascend`, its gradients from torch's autograd with scaled_dot_product_attention, image by image,
               which is torch's fastest way here

Prints medians and ratios. Nothing is asserted. Exporting takes some minutes; --bundle keeps it, and takes that of
bench_engine.py too. Leave the machine alone while it runs; with the defaults that is about 15 minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "perf")]

from bench_engine import build, with_kernel  # noqa: E402
from support.live_server import serving  # noqa: E402
from v1t_client import Client, Gradient, Prediction  # noqa: E402
from v1t_client.insilico import Subject, Work  # noqa: E402
from v1t_client.insilico.most_exciting_inputs.ascent import ascend, move, slopes  # noqa: E402
from v1t_client.insilico.most_exciting_inputs.canvas import Canvas  # noqa: E402
from v1t_client.insilico.most_exciting_inputs.recipes import Recipe, recipe  # noqa: E402

from server.bundle.manifest import MANIFEST  # noqa: E402
from server.inference.benchmark import Case, measure  # noqa: E402
from server.inference.engine import Engine  # noqa: E402
from training.checkpoints.checkpoint import Checkpoint  # noqa: E402
from training.checkpoints.ensemble import Ensemble  # noqa: E402
from training.export import export_bundle  # noqa: E402
from training.models import Twin  # noqa: E402

MOUSE = "A"
STATE = {"pupil_dilation": 0.5, "pupil_dilation_derivative": 0.0, "running_speed": 0.5, "pupil_center": (0.1, -0.1)}


class TorchTwin:
    """The trained modules behind the client's interface; mice and neurons are those of the served bundle."""

    def __init__(self, twin: Twin, client: Client) -> None:
        self.twin, self.client = twin, client
        self.mouse, self.neurons, self.mice = client.mouse, client.neurons, client.mice
        self.columns = {int(neuron): i for i, neuron in enumerate(client.neurons(MOUSE).neuron_ids)}

    def gradient(
        self, mouse: str, image: Any, *, weights: Any, neuron_ids: Sequence[int], model: str, **state: Any
    ) -> Gradient:
        columns = [self.columns[int(neuron)] for neuron in neuron_ids]
        responses, gradients = [], []
        for one, of_one in zip(torch.from_numpy(image), torch.from_numpy(np.asarray(weights, np.float32)), strict=True):
            shown = one[None].requires_grad_()
            response = self.twin(mouse, shown, *_state(state))[0, columns]
            gradients += torch.autograd.grad((response * of_one).sum(), [shown])
            responses.append(response.detach())
        n = len(image)
        return Gradient(
            image=torch.cat(gradients).numpy(),
            behavior=np.zeros((n, 3), np.float32),
            pupil_center=np.zeros((n, 2), np.float32),
            responses=torch.stack(responses).numpy(),
            neuron_ids=np.asarray(neuron_ids),
            mouse=mouse,
            units="standardized",
            model=self.client.mouse(mouse).bundle,
        )

    def predict(self, mouse: str, image: Any, *, neuron_ids: Sequence[int], model: str, **state: Any) -> Prediction:
        columns = [self.columns[int(neuron)] for neuron in neuron_ids]
        with torch.inference_mode():
            responses = [self.twin(mouse, one[None], *_state(state))[0, columns] for one in torch.from_numpy(image)]
        return Prediction(
            responses=torch.stack(responses).numpy(),
            neuron_ids=np.asarray(neuron_ids),
            mouse=mouse,
            units="standardized",
            model=self.client.mouse(mouse).bundle,
        )


def _state(state: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    behavior = [[state[name] for name in list(STATE)[:3]]]
    return torch.tensor(behavior), torch.tensor([list(state["pupil_center"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch and of the server (default: %(default)s)")
    parser.add_argument("--neurons", type=int, default=16, help="searched for at once (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of a search (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns per case (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="keep the bundle here, and take it from here if it is there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    twin = build(8000, 8)  # the bundle of bench_engine.py, so that one --bundle serves both
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.bundle or Path(temporary) / "published"
        if not (folder / MANIFEST).exists():
            export_bundle(Ensemble([Checkpoint(twin=twin)]), folder)
        with (
            serving(folder, Path(temporary), V1T_THREADS=str(args.threads)) as server,
            Client(server.url, timeout=600) as client,
        ):
            client.wait_until_ready(120)
            bench(twin, folder, client, args)


def bench(twin: Twin, folder: Path, client: Client, args: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    ids = client.neurons(MOUSE).neuron_ids
    chosen = [int(neuron) for neuron in rng.permutation(ids)[: args.neurons]]
    served, in_torch = (
        Subject.of(predictor, MOUSE, neuron_ids=chosen, state=STATE) for predictor in (client, TorchTwin(twin, client))
    )
    canvas = Canvas.of(served.mouse)
    quick = recipe("quick")
    search = Recipe(**{**vars(quick), "steps": args.steps})
    start = rng.standard_normal((args.neurons, 1, *canvas.grid))
    engine = Engine.load(folder, provider="cpu", threads=args.threads)
    images = canvas.show(canvas.constrain(start, search.constraint, search.size))[:, 0]
    behavior = np.tile(np.array([[STATE[name] for name in list(STATE)[:3]]], np.float32), (args.neurons, 1))
    pupil = np.tile(np.array([STATE["pupil_center"]], np.float32), (args.neurons, 1))
    rows = [int(np.flatnonzero(ids == neuron)[0]) for neuron in chosen]
    one_hot = np.eye(args.neurons, dtype=np.float32)

    def step() -> None:
        _, slope = slopes(served, canvas, start)
        canvas.constrain(start + move(slope, search, 0), search.constraint, search.size)

    def run(subject: Subject) -> np.ndarray:
        return ascend(subject, canvas, search, Work(quiet=True), name="most", start=start, window=0).trace

    times = measure(
        [
            Case("gradient", lambda: engine.gradient(MOUSE, images, behavior, pupil, one_hot, rows)),
            Case("step", step),
            Case("search", lambda: run(served)),
            Case("torch", with_kernel(twin, "fused", lambda: run(in_torch))),
        ],
        rounds=args.rounds,
    )
    print(f"{args.threads} threads, {args.neurons} neurons, {args.steps} steps, torch {torch.__version__}")
    for name, seconds in times.items():
        print(f"  {name:<10}{seconds:>9.2f} s")
    print("ratios                                       got   bound")
    for what, ratio, bound in (
        ("step over HTTP / gradient in process", times["step"] / times["gradient"], "1.20"),
        ("search with torch SDPA / over HTTP", times["torch"] / times["search"], "2.00 at least"),
    ):
        print(f"  {what:<40}{ratio:>6.2f}  {bound}")
    print(f"largest difference between the two searches' responses: {np.abs(run(served) - run(in_torch)).max():.1e}")


if __name__ == "__main__":
    main()
