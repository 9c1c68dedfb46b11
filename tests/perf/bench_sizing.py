"""Predictions of `python -m server size` beside a live server's latencies, at two loads.

    python tests/perf/bench_sizing.py [BUNDLE] [--seconds 60] [--loads 0.3 0.7]

Measures the engine's cost, starts a server, and sends requests of one image at random times, each on a connection that
is free. Prints medians and 99th percentiles, predicted and measured, the share of requests that the server refused
(429), and the share whose connection it closed, twice, without a reply. The percentiles are those of the answers, and
the predictions refuse nothing, so they compare only where both shares are near 0. What a lone request waits beside its
work is added to the predictions, and the cores that this client keeps busy are not the server's. Nothing is asserted.
Leave the machine alone while it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "perf")]

from bench_service import Refused, ask, http_request  # noqa: E402
from support.live_server import serving  # noqa: E402

from server.inference.engine import Engine  # noqa: E402
from server.inference.sizing import capacity, measured, simulate  # noqa: E402

MAX_BATCH = 8
HTTP = 0.001  # seconds of work of the HTTP side for each request, as `python -m server size` assumes


async def open_loop(port: int, request: bytes, rate: float, seconds: float) -> tuple[list[float], Counter[str]]:
    """Sends requests at random times, whether or not earlier ones were answered.

    Returns:
        The latencies of those that were answered, and how many were `refused` (429) and `closed` without a reply.
    """
    rng = np.random.default_rng(0)
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    latencies: list[float] = []
    unanswered: Counter[str] = Counter()

    async def one(at: float) -> None:
        connection = free.pop(0) if free else await asyncio.open_connection("127.0.0.1", port)
        try:
            try:
                await ask(*connection, request)
            except (asyncio.IncompleteReadError, ConnectionResetError):  # the server had closed it, as it was idle
                connection = await asyncio.open_connection("127.0.0.1", port)
                await ask(*connection, request)
        except (Refused, asyncio.IncompleteReadError, ConnectionResetError) as error:
            if isinstance(error, Refused) and error.status != 429:
                raise
            unanswered["refused" if isinstance(error, Refused) else "closed"] += 1
            connection[1].close()
            return
        latencies.append(time.perf_counter() - at)
        free.append(connection)

    start, due = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        while (due := due + rng.exponential(1 / rate)) < seconds:
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            group.create_task(one(start + due))
    for _, writer in free:
        writer.close()
    return latencies, unanswered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=ROOT / "exported_models" / "demo")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load (default: %(default)s)")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.7], help="(default: 0.3 0.7)")
    args = parser.parse_args()
    engine = Engine.load(args.bundle, provider="cpu", max_batch=MAX_BATCH)
    mouse_id, mouse = next(iter(engine.manifest.mice.items()))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, *shape)).astype(np.float32) for shape in (mouse.image_shape, (3,), (2,))]
    tensors = [
        {"name": name, "datatype": "FP32", "shape": a.shape, "parameters": {"binary_data_size": a.nbytes}}
        for name, a in zip(("image", "behavior", "pupil_center"), arrays, strict=True)
    ]
    head = json.dumps({"inputs": tensors, "outputs": [{"name": "responses", "parameters": {"binary_data": True}}]})
    body = head.encode() + b"".join(array.tobytes() for array in arrays)
    path = f"/v2/models/{engine.manifest.name}.{mouse_id}/infer"
    request = http_request(path, body, Inference_Header_Content_Length=str(len(head)))
    with (
        tempfile.TemporaryDirectory() as temporary,
        serving(args.bundle, Path(temporary), V1T_MAX_BATCH=str(MAX_BATCH)) as server,
    ):
        server.wait_for("/readyz", 200)
        port = int(server.url.rpartition(":")[2])
        alone = statistics.median(asyncio.run(open_loop(port, request, 5.0, 10.0))[0])
        cost = measured(engine, mouse_id, request=0.0)
        cost = replace(cost, request=HTTP)
        beside = max(0.0, alone - cost.of_run(1) - HTTP)  # of a lone request: waiting, not work
        most = capacity(cost, images=1, max_batch=MAX_BATCH)
        print(
            f"{engine.manifest.name}: {cost.fixed * 1e3:.2f} ms a run, {cost.image * 1e3:.2f} ms an image, "
            f"{cost.request * 1e3:.2f} ms a request, on {cost.busy:.1f} of {cost.cores:g} cores; "
            f"capacity {most:.0f} requests/s\n"
        )
        print(
            "| load | requests/s | refused | closed | median ms, predicted | measured | p99 ms, predicted | measured |"
        )
        print("|--:|--:|--:|--:|--:|--:|--:|--:|")
        for load in args.loads:
            own = time.process_time()
            latencies, unanswered = asyncio.run(open_loop(port, request, load * most, args.seconds))
            own = (time.process_time() - own) / args.seconds  # cores that this client used
            found = np.percentile(latencies or [float("nan")], (50, 99)) * 1e3
            sent = max(1, unanswered.total() + len(latencies))
            shares = " | ".join(f"{unanswered[how] / sent:.1%}" for how in ("refused", "closed"))
            left = replace(cost, cores=cost.cores - own)
            predicted = np.percentile(simulate(left, load * most, images=1, max_batch=MAX_BATCH), (50, 99)) * 1e3
            predicted += beside * 1e3
            cells = [value for pair in zip(predicted, found, strict=True) for value in pair]
            numbers = " | ".join(f"{cell:.1f}" for cell in cells)
            print(f"| {load:.0%} | {load * most:.0f} | {shares} | {numbers} |")


if __name__ == "__main__":
    main()
