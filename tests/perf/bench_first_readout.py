"""Time and memory of the regression that initialises readouts of a new mouse (`training/trainer/readout_init.py`).

    python tests/perf/bench_first_readout.py [--neurons 8000] [--trials 1000]

The maps are random numbers of the published size (Table A.2: 155 features at 29 x 57 places); their values do not
affect the cost. Nothing is asserted.
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
from training.models import Twin
from training.trainer.readout_init import fit_first_readout
from training.trainer.transfer import FeatureMaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--trials", type=int, default=1000, help="training trials (default: %(default)s)")
    args = parser.parse_args()
    mouse = tiny_mouse("A", n_neurons=args.neurons, image_shape=(1, 144, 256))
    twin = Twin(ModelConfig(), [mouse])
    trials = np.arange(args.trials)
    responses = np.random.default_rng(0).random((args.trials, args.neurons), dtype=np.float32)
    recording: Any = SimpleNamespace(
        mouse_id="A",
        response_std=np.ones(args.neurons, np.float32),
        tier=lambda name: SimpleNamespace(indices=trials),
        responses=lambda some: responses[some],
    )
    maps = FeatureMaps({"A": torch.randn(args.trials, *twin.core.output_shape)}, {"A": trials})
    started = time.perf_counter()
    fit_first_readout(twin, maps, recording)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = " x ".join(map(str, twin.core.output_shape))
    print(f"{args.trials} trials, {args.neurons} neurons, maps of {size}, {torch.get_num_threads()} threads")
    print(f"{seconds:.0f} s, {peak:.1f} GiB resident at the peak")


if __name__ == "__main__":
    main()
