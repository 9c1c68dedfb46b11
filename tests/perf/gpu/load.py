"""Load on a server from several processes: binary /v2 requests about images that differ."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from typing import Any

import httpx
import numpy as np
from bench_service import ask, http_request

__all__ = ["engine_runs", "under_load"]


def engine_runs(url: str) -> tuple[float, float, float]:
    """Runs of the engine so far, their images, and their seconds."""
    lines = dict(line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines() if line[:1] != "#")
    names = ("v1t_batch_images_count", "v1t_batch_images_sum", "v1t_compute_seconds_sum")
    runs, images, busy = (sum(float(value) for key, value in lines.items() if key.startswith(name)) for name in names)
    return runs, images, busy


def under_load(port: int, images: int, processes: int, connections: int, *, duration: float) -> str:
    context = multiprocessing.get_context("spawn")
    counts = context.Queue()
    workers = [
        context.Process(target=drive, args=(port, images, connections, duration, seed, counts))
        for seed in range(processes)
    ]
    for worker in workers:
        worker.start()
    replies = sum(counts.get(timeout=duration + 30) for _ in workers)
    for worker in workers:
        worker.join()
    in_all = processes * connections
    return (
        f"{images:>2} images a request, {in_all:>3} connections: {replies / duration:.0f} requests/s, "
        f"{replies * images / duration:.0f} images/s, {in_all * duration / max(1, replies) * 1e3:.1f} ms each"
    )


def drive(port: int, images: int, connections: int, duration: float, seed: int, counts: Any) -> None:
    """Asks over some connections, again and again, about images that are not in the same batch twice."""
    rng = np.random.default_rng(seed)
    requests = [request_of(images, rng) for _ in range(max(2, 128 // images))]

    async def run() -> int:
        count, end = 0, time.perf_counter() + duration

        async def connection() -> None:
            nonlocal count
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while time.perf_counter() < end:
                count += 1
                await ask(reader, writer, requests[count % len(requests)])
            writer.close()

        results = await asyncio.gather(*(connection() for _ in range(connections)), return_exceptions=True)
        for result in results:
            if result is not None:
                print(f"a client stopped: {str(result).splitlines()[0]}", flush=True)
        return count

    counts.put(asyncio.run(run()))


def request_of(images: int, rng: np.random.Generator) -> bytes:
    """A /v2 request with binary tensors, and binary responses."""
    shapes = {"image": (1, 144, 256), "behavior": (3,), "pupil_center": (2,)}
    arrays = {name: rng.standard_normal((images, *shape), np.float32) for name, shape in shapes.items()}
    tensors = [
        {"name": name, "datatype": "FP32", "shape": a.shape, "parameters": {"binary_data_size": a.nbytes}}
        for name, a in arrays.items()
    ]
    head = json.dumps({"inputs": tensors, "outputs": [{"name": "responses", "parameters": {"binary_data": True}}]})
    binary = b"".join([head.encode(), *(array.tobytes() for array in arrays.values())])
    return http_request("/v2/models/published.A/infer", binary, Inference_Header_Content_Length=str(len(head)))
