"""Measures predictions into a Zarr folder: by one local engine on all cores, and by a Ray cluster on the same cores.

    PYTHONPATH=.:clients/python:tests python tests/perf/bench_mass_prediction.py [BUNDLE] [--images 4000]

The cluster has one worker per core, each with an engine of one thread. Starting and loading are not counted. Prints
both rates, of `--rounds` rounds in turn, and the ratio of their medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from support.checkout import ROOT
from support.ray_cluster import ray_cluster
from v1t_client import Replicas
from v1t_client.insilico import open_predictor
from v1t_client.insilico.framework.ray_workers import ray_workers


def rate(twins: Replicas, mouse: str, images: np.ndarray, folder: Path) -> float:
    """Images per second."""
    start = time.perf_counter()
    twins.predict_to_zarr(mouse, images, folder / "responses.zarr", force=True, progress=False)
    return len(images) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path, default=ROOT / "exported_models" / "demo")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    os.environ |= {"V1T_PROVIDER": "cpu", "V1T_THREADS": str(cores)}
    with tempfile.TemporaryDirectory() as place, open_predictor(options.bundle) as client:
        # A worker's own number of threads is that of its CPUs.
        del os.environ["V1T_THREADS"]
        mouse = client.mice()[0]
        shape = (options.images, *mouse.image_shape)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        with ray_cluster(nodes=cores), ray_workers(options.bundle, "auto") as workers:
            predictors = {"local": Replicas([client]), "ray": Replicas(workers=workers)}
            rates: dict[str, list[float]] = {name: [] for name in predictors}
            for twins in predictors.values():
                rate(twins, mouse.mouse_id, images[:256], Path(place))
            for _ in range(options.rounds):
                for name, twins in predictors.items():
                    rates[name].append(rate(twins, mouse.mouse_id, images, Path(place)))
                    print(f"{name:<6} {rates[name][-1]:8.1f} images/s", flush=True)
    ratio = statistics.median(rates["ray"]) / statistics.median(rates["local"])
    print(f"{cores} cores, {options.images:,} images of {mouse.image_shape}: ray is {ratio:.3f} x local")


if __name__ == "__main__":
    main()
