"""The time of a call by its door: in the process that asks, over HTTP and over gRPC; and the time to the first answer.

    python tests/perf/bench_doors.py [--bundle exported_models/demo] [--rounds 20] [--sizes 1,8,64] [--threads 1]

The rows are the same question about the same images, asked in turn: of the engine alone, of `open_predictor(bundle)`,
of `bentoml serve` through `v1t_client.Client`, and through `tritonclient.grpc`, where the server has gRPC. The first
answer is measured in new processes, from `import v1t_client` to a prediction. Prints medians, and the time that each
door adds to the engine's. Nothing is asserted. Do not use the machine for anything else while this runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "clients" / "python")]

from support.live_server import free_port, serving  # noqa: E402
from v1t_client import Client  # noqa: E402
from v1t_client.insilico import open_predictor  # noqa: E402

from server.inference.engine import Engine  # noqa: E402

Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]  # image (B, C, H, W), behavior (B, 3), pupil_center (B, 2)
Door = Callable[[Inputs], Any]
FIRST = """
import time; start = time.perf_counter()
import sys
from v1t_client.insilico import open_predictor
with open_predictor(sys.argv[1]) as twin:
    twin.predict(sys.argv[2], sys.argv[3], resize="fit")
    print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "exported_models" / "demo", help="(default: the demo)")
    parser.add_argument("--rounds", type=int, default=20, help="calls of each row (default: %(default)s)")
    parser.add_argument("--sizes", default="1,8,64", help="images in a call (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of one graph (default: %(default)s)")
    options = parser.parse_args()
    os.environ["V1T_THREADS"] = str(options.threads)
    bundle = options.bundle.resolve()

    engine = Engine.load(bundle, provider="cpu", threads=options.threads, max_batch=8)
    engine.warm_up()
    mouse, record = next(iter(engine.manifest.mice.items()))
    rng = np.random.default_rng(0)
    print(f"{bundle.name}, mouse {mouse}: {len(engine.neurons[mouse])} neurons, images {record.image_shape}")
    print(f"{options.threads} thread(s) a graph; medians of {options.rounds} calls [ms]; and more than the engine")
    with ExitStack() as stack:
        doors: dict[str, Door] = {"engine": lambda inputs: engine.predict(mouse, *inputs)}
        doors |= {"in process": asked(stack.enter_context(open_predictor(bundle)), mouse)}
        doors |= stack.enter_context(served(bundle, mouse))
        for size in map(int, options.sizes.split(",")):
            draws = [
                (
                    rng.uniform(0, 255, (size, *record.image_shape)).astype(np.float32),
                    rng.normal(size=(size, 3)).astype(np.float32),
                    rng.normal(size=(size, 2)).astype(np.float32),
                )
                for _ in range(options.rounds + 2)
            ]
            seconds = measured(doors, draws)
            cells = [f"{name} {1e3 * s:.1f} (+{1e3 * (s - seconds['engine']):.1f})" for name, s in seconds.items()]
            print(f"{size:>4} images: {'; '.join(cells)}")
    command = [sys.executable, "-c", FIRST, str(bundle), mouse, str(ROOT / "docs" / "images" / "leaves.png")]
    path = os.pathsep.join([str(ROOT / "clients" / "python"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    runs = [subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT, env=environment) for _ in range(5)]
    first = [float(run.stdout) for run in runs]
    print(f"first answer in process, with all imports: {statistics.median(first):.2f} s (best {min(first):.2f} s)")


def asked(client: Client, mouse: str) -> Door:
    """The question through our client."""

    def ask(inputs: Inputs) -> Any:
        image, behavior, pupil_center = inputs
        dilation, derivative, speed = behavior.T
        return client.predict(
            mouse,
            image,
            pupil_dilation=dilation,
            pupil_dilation_derivative=derivative,
            running_speed=speed,
            pupil_center=pupil_center,
        )

    return ask


@contextmanager
def served(bundle: Path, mouse: str) -> Iterator[dict[str, Door]]:
    """HTTP, and gRPC where the server has it."""
    missing = [name for name in ("server.grpc_api", "grpc", "tritonclient") if find_spec(name) is None]
    port = free_port()
    settings = {} if missing else {"V1T_GRPC": f"127.0.0.1:{port}"}
    with (
        tempfile.TemporaryDirectory() as place,
        serving(bundle, Path(place), **settings) as server,
        ExitStack() as stack,
    ):
        server.wait_for("/readyz", 200)
        client = stack.enter_context(Client(server.url))
        doors = {"HTTP": asked(client, mouse)}
        if missing:
            print(f"gRPC is left out: there is no {missing[0]}")
        else:
            doors["gRPC"] = asked_by_grpc(f"127.0.0.1:{port}", f"{client.mice()[0].model}.{mouse}", stack)
        yield doors


def asked_by_grpc(address: str, model: str, stack: ExitStack) -> Door:
    """The question through an unmodified `tritonclient.grpc`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import tritonclient.grpc as triton
    client = triton.InferenceServerClient(address)
    stack.callback(client.close)

    def ask(inputs: Inputs) -> Any:
        tensors = []
        for name, array in zip(("image", "behavior", "pupil_center"), inputs, strict=True):
            tensors.append(triton.InferInput(name, array.shape, "FP32"))
            tensors[-1].set_data_from_numpy(array)
        return client.infer(model, tensors).as_numpy("responses")

    return ask


def measured(doors: dict[str, Door], draws: list[Inputs]) -> dict[str, float]:
    """The median time of a call of each door, in turn. The first two rounds are for warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in doors}
    for inputs in draws:
        for name, door in doors.items():
            start = time.perf_counter()
            door(inputs)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[2:]) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
