"""The cost and memory of receptive fields compared with predictions of the same images: ratios, in one run.

    python tests/perf/bench_insilico.py --bundle BUNDLE [--images 512] [--rounds 5] [--threads 2] [--fits 1000]

Times in interleaved rounds `POST /receptive_fields` of the service in this process, and the engine alone on the same
images, made beforehand and in the same batches. The maps are of all neurons; the bound is 1.10. Then measures the
memory with four times as many images, and the client's Gaussian fits. Nothing is asserted. `bench_engine.py --bundle`
makes bundles of the published size. The machine should be idle.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import warnings
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "clients" / "python"))

from v1t_client.insilico.fitting.gaussian import fit_gaussians

from server.inference.benchmark import resident_mb
from server.inference.engine import Engine
from server.inference.noise import enlarge, white_noise
from server.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # BentoML's, in its own imports
    from server.service import create_service

ROOT = Path(__file__).resolve().parents[2]
BOUND = 1.10
HEADERS = {"Accept": "application/x-v1t-stream"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "exported_models" / "demo")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--fits", type=int, default=1000)
    options = parser.parse_args()
    asyncio.run(_measure(options))
    _fits(options.fits)


async def _measure(options: argparse.Namespace) -> None:
    settings = Settings(bundles=(options.bundle,), provider="cpu", threads=options.threads, timeout=3600)
    engine = Engine.load(options.bundle, provider="cpu", threads=options.threads, max_batch=settings.max_batch)
    mouse_id, record = next(iter(engine.manifest.mice.items()))
    _, H, W = record.image_shape
    grid = (36, 64) if H % 36 == 0 and W == H // 36 * 64 else (H, W)
    behavior = [channel.mean or 0.0 for channel in record.behavior]
    pupil_center = [channel.mean or 0.0 for channel in record.pupil_center]
    question = {
        "mouse": mouse_id,
        "seed": 0,
        "grid": list(grid),
        "luminance": 0.0 if record.standardized_inputs else 110.0,
        "contrast": 1.0 if record.standardized_inputs else 60.0,
        **{channel.name: value for channel, value in zip(record.behavior, behavior, strict=True)},
        "pupil_center": pupil_center,
    }

    def predict(n: int) -> float:
        """Seconds of the engine alone; the images are made before the clock starts."""
        seconds = 0.0
        for first in range(0, n, 64):
            size = min(64, n - first)
            image = enlarge(white_noise(0, first, size, grid), record.image_shape) * question["contrast"]
            state = np.tile(np.float32(behavior), (size, 1)), np.tile(np.float32(pupil_center), (size, 1))
            start = time.perf_counter()
            engine.predict(mouse_id, (image + question["luminance"]).astype(np.float32), *state)
            seconds += time.perf_counter() - start
        return seconds

    app = create_service(settings).to_asgi()
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=None) as client,
    ):
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.05)

        async def map_fields(n: int) -> float:
            start = time.perf_counter()
            response = await client.post("/receptive_fields", json={**question, "n_images": n}, headers=HEADERS)
            assert response.status_code == 200, response.text
            return time.perf_counter() - start

        n = options.images
        await map_fields(64)  # warm
        await asyncio.to_thread(predict, 64)
        mapped, predicted = [], []
        for _ in range(options.rounds):
            mapped.append(await map_fields(n))
            predicted.append(await asyncio.to_thread(predict, n))
        before = resident_mb()
        await map_fields(4 * n)
        after = resident_mb()
    field, plain = np.median(mapped), np.median(predicted)
    elements = record.n_neurons * grid[0] * grid[1]
    print(f"{engine.manifest.name}, {record.n_neurons:,} neurons, maps {grid[0]} x {grid[1]}, {n} images,", end=" ")
    print(f"medians of {options.rounds} rounds")
    print(f"  predicting            {1e3 * plain / n:8.2f} ms per image")
    print(f"  receptive fields      {1e3 * field / n:8.2f} ms per image   {field / plain:.3f}x  (bound {BOUND:.2f})")
    print(
        f"  resident after {n} and {4 * n} images: {before:.0f} and {after:.0f} MB; maps are {8e-6 * elements:.0f} MB"
    )


def _fits(n: int) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:36, :64]
    place, size = rng.uniform([10, 8], [54, 28], (n, 2)), rng.uniform(1.5, 4, n)
    distance = (x - place[:, 0, None, None]) ** 2 + (y - place[:, 1, None, None]) ** 2
    maps = 8 * np.exp(-distance / (2 * size[:, None, None] ** 2)) + np.abs(rng.normal(size=(n, 36, 64)))
    start = time.perf_counter()
    fit = fit_gaussians(maps)
    seconds = time.perf_counter() - start
    error = np.median(np.hypot(*(fit.center - place).T))
    print(f"  {n} Gaussian fits in {seconds:.1f} s: 8,000 in {8000 / n * seconds:.0f} s; median error {error:.3f} px")


if __name__ == "__main__":
    main()
