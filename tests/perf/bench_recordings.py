"""Reading trials from single files, as they are on disk, against reading from the packed cache.

    python tests/perf/bench_recordings.py [RECORDING]

Reads the same trials in the same random batches both ways, in one process, in interleaved rounds, and prints medians
and their ratio. Without an argument, a recording is simulated in a temporary folder. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout

from training.data.recordings import Batch, Recording
from training.simulation.simulate import simulate

FOLDERS = ("images", "behavior", "pupil_center", "responses")


def read_files(folder: Path, indices: np.ndarray) -> list[np.ndarray]:
    """A loader without a cache: four files per trial, stacked and cast."""
    return [
        np.stack([np.load(folder / f"data/{name}/{trial}.npy") for trial in indices]).astype(np.float32)
        for name in FOLDERS
    ]


def seconds(read: Callable[[np.ndarray], object], batches: list[np.ndarray]) -> float:
    start = time.perf_counter()
    for batch in batches:
        read(batch)
    return time.perf_counter() - start


def check(batch: Batch, files: list[np.ndarray]) -> None:
    for packed, loose in zip((batch.image, batch.behavior, batch.pupil_center, batch.response), files, strict=True):
        if not np.array_equal(packed, loose.reshape(packed.shape)):
            raise SystemExit("the files and the cache give different numbers")


def bench(folder: Path, *, batch_size: int, rounds: int, cache: Path | None) -> None:
    start = time.perf_counter()
    recording = Recording.open(folder, cache=cache)
    first = time.perf_counter() - start
    start = time.perf_counter()
    recording = Recording.open(folder, cache=cache)
    again = time.perf_counter() - start
    order = np.random.default_rng(0).permutation(recording.n_trials)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    check(recording.batch(batches[0]), read_files(folder, batches[0]))
    loose, packed = [], []
    for _ in range(rounds):  # both are in the page cache, so the disk itself is not measured
        loose.append(seconds(lambda indices: read_files(folder, indices), batches))
        packed.append(seconds(recording.batch, batches))
    ratios = [a / b for a, b in zip(loose, packed, strict=True)]
    n = recording.n_trials
    print(f"{n} trials of {recording.n_neurons} neurons, images {recording.image_shape}, batches of {batch_size}")
    print(f"open: {first:.2f} s the first time (packs), {again:.2f} s after that\n")
    print(f"{'':<18}{'ms per epoch':>14}{'us per trial':>14}{'trials per s':>14}")
    for name, values in (("file by file", loose), ("packed", packed)):
        median = statistics.median(values)
        print(f"{name:<18}{median * 1e3:>14.1f}{median / n * 1e6:>14.1f}{n / median:>14.0f}")
    print(f"\nratio {statistics.median(ratios):.1f} (from {min(ratios):.1f} to {max(ratios):.1f} over {rounds} rounds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", nargs="?", type=Path, help="a recording's folder (default: simulate one)")
    parser.add_argument(
        "--trials", type=int, default=1500, help="trials of a simulated recording (default: %(default)s)"
    )
    parser.add_argument(
        "--neurons", type=int, default=500, help="neurons of a simulated recording (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="(default: %(default)s, the paper's)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.recording or simulate(
            temporary, mouse_id="SIM1", data_key="90001-1-1", n_neurons=args.neurons, n_train=args.trials
        )
        bench(folder, batch_size=args.batch_size, rounds=args.rounds, cache=None if args.recording else Path(temporary))


if __name__ == "__main__":
    main()
