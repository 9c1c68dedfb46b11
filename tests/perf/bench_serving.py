"""The time to the first answer of a server, and the time and memory to load a twin of 7,538 neurons.

    python tests/perf/bench_serving.py [--rounds 3] [--weights sensorium_p_sota_model.pth]

Prints a table. `--weights` is the Sensorium 2022 baseline of mouse 27204-5-13, by default that of ../shared/reference.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.live_server import serving  # noqa: E402

from training.checkpoints.ensemble import Ensemble  # noqa: E402
from training.checkpoints.importer import import_weights  # noqa: E402
from training.export import export_bundle  # noqa: E402

WEIGHTS = ROOT.parent / "shared" / "reference" / "sensorium-pretrained" / "sensorium_p_sota_model.pth"
# Runs in a process of its own, which only loads the engine.
LOAD = """
import re, sys, time
import numpy as np
from server.inference.engine import Engine
def peak_mb():  # not getrusage, whose peak includes the parent process
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before = peak_mb()
start = time.perf_counter()
engine = Engine.load(sys.argv[1])
loaded = time.perf_counter() - start
mouse_id, mouse = next(iter(engine.manifest.mice.items()))
start = time.perf_counter()
engine.predict(mouse_id, np.zeros((1, *mouse.image_shape)), np.zeros((1, 3)), np.zeros((1, 2)))
first = time.perf_counter() - start
print(loaded, first, peak_mb(), before)
"""


def load_cost(bundle: Path) -> tuple[float, float, float, float]:
    """Seconds to load, seconds of the first prediction, peak resident MB, and peak resident MB before loading."""
    command = [sys.executable, "-c", LOAD, str(bundle)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded, first, peak, before = map(float, output.split())
    return loaded, first, peak, before


def first_answer(bundles: Path, mouse: str, image: Path) -> float:
    """Seconds from the start of the server's process to the first reply to a prediction."""
    with tempfile.TemporaryDirectory() as home:
        start = time.perf_counter()
        with serving(bundles, Path(home)) as server:
            while True:
                try:
                    files = {"image": image.read_bytes()}
                    reply = httpx.post(f"{server.url}/predict", data={"mouse": mouse}, files=files, timeout=60)
                    if reply.status_code == 200:
                        return time.perf_counter() - start
                except httpx.TransportError:
                    pass
                time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="(default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "twin"
        export_bundle(Ensemble([import_weights(args.weights)]), bundle)
        costs = [load_cost(bundle) for _ in range(args.rounds)]
        starts = [
            first_answer(ROOT / "exported_models", "SIM1", ROOT / "docs" / "images" / "leaves.png")
            for _ in range(args.rounds)
        ]
    loaded, first, peak, before = (statistics.median(column) for column in zip(*costs, strict=True))
    print(f"\nmedian of {args.rounds} rounds\n")
    print("| what | measured |")
    print("|---|---|")
    print(f"| 7,538 neurons: load and verify | {loaded:.2f} s |")
    print(f"| 7,538 neurons: first prediction | {first:.2f} s |")
    print(f"| 7,538 neurons: peak resident memory | {peak:.0f} MB, of which {before:.0f} MB before loading |")
    print(f"| `bentoml serve` with the demo twin, from start to first answer | {statistics.median(starts):.1f} s |")


if __name__ == "__main__":
    main()
