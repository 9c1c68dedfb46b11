"""Time and memory of the start of one mouse's readout: from the training trials, or a regression on a frozen core.

    python tests/perf/bench_readout_start.py trials [--neurons 8000] [--trials 4500]
    python tests/perf/bench_readout_start.py regression [--neurons 8000] [--trials 1000]

Images, maps and responses are random numbers of the published size (Table A.2: 155 features at 29 x 57 places); their
values do not affect the cost. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout

from support.tiny_twins import tiny_mouse

from training.config import ModelConfig
from training.data.recordings import Batch
from training.models import Twin
from training.trainer.readout_start.regression import fit_first_readout
from training.trainer.readout_start.start import start_from_trials
from training.trainer.transfer import FeatureMaps


def recording_of(mouse_id: str, n_trials: int, n_neurons: int) -> Any:
    rng = np.random.default_rng(0)
    trials = np.arange(n_trials)
    responses = rng.random((n_trials, n_neurons), dtype=np.float32)
    images = rng.integers(0, 256, (n_trials, 1, 36, 64), dtype=np.uint8)

    def batch(some: np.ndarray) -> Batch:
        behavior, pupil = np.ones((len(some), 3), np.float32), np.ones((len(some), 2), np.float32)
        return Batch(images[some].astype(np.float32), behavior, pupil, responses[some])

    return SimpleNamespace(
        mouse_id=mouse_id,
        response_std=np.ones(n_neurons, np.float32),
        tier=lambda name: SimpleNamespace(indices=trials),
        responses=lambda some: responses[some],
        batch=batch,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", choices=["trials", "regression"])
    parser.add_argument("--neurons", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--trials", type=int, help="training trials (default: 4500, or 1000 for the regression)")
    args = parser.parse_args()
    n_trials = args.trials or {"trials": 4500, "regression": 1000}[args.start]
    mouse = tiny_mouse("A", n_neurons=args.neurons, image_shape=(1, 36, 64))
    twin = Twin(ModelConfig(), [mouse])
    recording = recording_of("A", n_trials, args.neurons)
    maps = None
    if args.start == "regression":
        maps = FeatureMaps({"A": torch.randn(n_trials, *twin.core.output_shape)}, {"A": np.arange(n_trials)})
    started = time.perf_counter()
    if maps is None:
        start_from_trials(twin, recording)
    else:
        fit_first_readout(twin, maps, recording)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{args.start}: {n_trials} trials, {args.neurons} neurons, {torch.get_num_threads()} threads")
    print(f"{seconds:.0f} s, {peak:.1f} GiB resident at the peak")


if __name__ == "__main__":
    main()
