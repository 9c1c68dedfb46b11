"""Ten thousand images through a live server: memory above idle on both sides, and the rate compared with the engine's.

    python tests/perf/bench_streaming.py [--images 10000] [--neurons 8000] [--in-flight 2]

prints a table. The twin is tiny and its images have the size of a recording's, so that the transport of the arrays is
measured rather than the model. Memory is the resident memory of the client process and of all server processes, sampled
every 20 ms from before the first image. The bound is 300 MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.live_server import serving  # noqa: E402
from support.tiny_bundle import write_tiny_bundle  # noqa: E402

BOUND_MB = 300
SHAPE = (1, 144, 216)
ENGINE = """
import sys, time
import numpy as np
from server.inference.engine import Engine
bundle, images, output = sys.argv[1:4]
engine = Engine.load(bundle, provider="cpu")
engine.warm_up()
stack = np.load(images, mmap_mode="r")
start = time.perf_counter()
with open(output, "wb") as stream:
    for i in range(0, len(stack), engine.max_batch):
        piece = stack[i : i + engine.max_batch]
        n = len(piece)
        stream.write(engine.predict("A", piece, np.tile([40, 0.5, 3], (n, 1)), np.tile([250, 180], (n, 1))).tobytes())
print(time.perf_counter() - start)
"""
CLIENT = """
import sys, time
from v1t_client import Client
url, images, output, in_flight = sys.argv[1:5]
with Client(url) as client:
    print(client.neurons("A").total, flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    client.predict_many("A", images, output=output, in_flight=int(in_flight))
    print(time.perf_counter() - start)
"""


class Memory:
    """The peak of the joint memory of some processes, and their memory at the start."""

    def __init__(self, *pids: int) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self.idle = self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _now(self) -> float:
        total = 0
        for process in self._processes:
            for one in (process, *process.children(recursive=True)):
                try:
                    total += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        return total / 1e6

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self.peak = max(self.peak, self._now())
            except psutil.NoSuchProcess:  # it has ended
                return

    def grown(self) -> float:
        self._stop.set()
        self._thread.join()
        return self.peak - self.idle


def through_client(url: str, server: int, images: Path, output: Path, in_flight: int) -> tuple[float, float, float]:
    """Seconds, and MB above idle of the client and of the server."""
    command = [sys.executable, "-c", CLIENT, url, str(images), str(output), str(in_flight)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        of_client, of_server = Memory(process.pid), Memory(server)
        process.stdin.write("go\n")
        process.stdin.flush()
        seconds = float(process.stdout.readline())
        return seconds, of_client.grown(), of_server.grown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--neurons", type=int, default=8_000)
    parser.add_argument("--in-flight", type=int, default=2)
    args = parser.parse_args()
    rows: list[tuple[str, float, float | None, float | None]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        twin = write_tiny_bundle(folder / "tiny", mice=("A",), shape=SHAPE, n_neurons=args.neurons)
        images = folder / "images.npy"
        rng = np.random.default_rng(0)
        stack = np.lib.format.open_memmap(images, "w+", np.uint8, (args.images, *SHAPE))
        for i in range(0, args.images, 500):
            stack[i : i + 500] = rng.integers(0, 256, stack[i : i + 500].shape, dtype=np.uint8)
        del stack
        command = [sys.executable, "-c", ENGINE, str(twin.folder), str(images), str(folder / "engine")]
        seconds = float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        rows.append(("`Engine.predict` in a loop", seconds, None, None))
        with serving(twin.folder, folder) as server:
            server.wait_for("/readyz", 200)
            output = folder / "client.npy"
            measured = through_client(server.url, server.process.pid, images, output, args.in_flight)
            rows.append(("`Client.predict_many`", *measured))
        right = np.fromfile(folder / "engine", np.float32).reshape(args.images, args.neurons)
        answered = np.load(output, mmap_mode="r")
        for i in range(0, args.images, 500):
            np.testing.assert_allclose(answered[i : i + 500], right[i : i + 500], atol=1e-4)
    print(f"\n{args.images:,} images of {SHAPE}, {args.neurons:,} neurons; memory above idle, bound {BOUND_MB} MB\n")
    print("| way | images/s | share of the engine's | client | server |")
    print("|---|---|---|---|---|")
    for way, seconds, of_client, of_server in rows:
        rate, share = args.images / seconds, rows[0][1] / seconds
        print(f"| {way} | {rate:.0f} | {share:.2f} | {_mb(of_client)} | {_mb(of_server)} |")


def _mb(grown: float | None) -> str:
    if grown is None:
        return "-"
    return f"{grown:.0f} MB{'' if grown < BOUND_MB else ', ABOVE THE BOUND'}"


if __name__ == "__main__":
    main()
