"""The effect of a reload on the latency of other requests, and the time until a dead worker is replaced.

    python tests/perf/bench_reload.py [--bundle exported_models/demo] [--rounds 5] [--requests 40] [--kills 3]

Sends one request after another, in alternating rounds without reloads and with one reload after another. Each reload
loads, verifies and warms up another bundle of the same graphs. Then it kills the worker several times. Prints a table.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.live_server import serving  # noqa: E402

from server.bundle.manifest import MANIFEST, load_manifest  # noqa: E402

KEY = "an-admin-key-of-the-bench"


class Swapper:
    """Swaps two bundles with the same graphs and different manifests in the folder that is served."""

    def __init__(self, bundle: Path, folder: Path, url: str) -> None:
        self.served, self.aside = folder / "served" / "twin", folder / "aside"
        self.url = url
        self.seconds: list[float] = []

    @staticmethod
    def prepare(bundle: Path, folder: Path) -> None:
        for place, notice in ((folder / "served" / "twin", "one"), (folder / "aside", "two")):
            shutil.copytree(bundle, place)
            manifest = load_manifest(bundle).model_copy(update={"notice": notice})
            (place / MANIFEST).write_text(manifest.model_dump_json())

    def swap(self) -> None:
        between = self.aside.with_name("between")
        self.served.rename(between)
        self.aside.rename(self.served)
        between.rename(self.aside)
        start = time.perf_counter()
        reply = httpx.post(f"{self.url}/admin/reload", headers={"Authorization": f"Bearer {KEY}"}, timeout=600)
        self.seconds.append(time.perf_counter() - start)
        assert len(reply.raise_for_status().json()["loaded"]) == 1


def latencies(client: httpx.Client, url: str, question: dict[str, object], requests: int) -> list[float]:
    seconds = []
    for _ in range(requests):
        start = time.perf_counter()
        client.post(f"{url}/predict", json=question).raise_for_status()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "exported_models" / "demo", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=40, help="requests per round and case (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=3, help="kills of the worker (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        Swapper.prepare(args.bundle, folder)
        with serving(folder / "served", folder, V1T_ADMIN_KEYS=KEY) as server, httpx.Client(timeout=600) as client:
            server.wait_for("/readyz", 200)
            mouse = client.get(f"{server.url}/mice").json()["mice"][0]
            image = np.random.default_rng(0).integers(0, 256, mouse["image_shape"]).tolist()
            question = {"mouse": mouse["mouse"], "image": image}
            swapper = Swapper(args.bundle, folder, server.url)
            latencies(client, server.url, question, 5)
            alone: list[float] = []
            beside: list[float] = []
            for _ in range(args.rounds):
                alone += latencies(client, server.url, question, args.requests)
                stop = threading.Event()

                def reload(stop: threading.Event = stop) -> None:
                    while not stop.is_set():
                        swapper.swap()

                thread = threading.Thread(target=reload)
                thread.start()
                beside += latencies(client, server.url, question, args.requests)
                stop.set()
                thread.join()
            back = []
            for _ in range(args.kills):
                supervisor = psutil.Process(server.process.pid)
                (worker,) = (one for one in supervisor.children() if "worker" in " ".join(one.cmdline()))
                start = time.perf_counter()
                worker.kill()
                worker.wait(60)
                server.wait_for("/readyz", 200)
                back.append(time.perf_counter() - start)
    print("| | p50 ms | p99 ms |\n|---|---|---|")
    for name, seconds in (("without reloads", alone), ("with one reload after another", beside)):
        p50, p99 = (1000 * float(np.percentile(seconds, q)) for q in (50, 99))
        print(f"| {name} | {p50:.1f} | {p99:.1f} |")
    ratios = (np.percentile(beside, q) / np.percentile(alone, q) for q in (50, 99))
    print("| ratio | {:.2f} | {:.2f} |".format(*ratios))
    print(f"\n{len(swapper.seconds)} reloads, {statistics.median(swapper.seconds):.2f} s each (median).")
    print(f"Ready again after SIGKILL of the worker: {', '.join(f'{seconds:.1f}' for seconds in back)} s.")


if __name__ == "__main__":
    main()
