"""The cost of a change to the server: requests/s and CPU per request of two checkouts, in turn.

    git worktree add ../before COMMIT
    python tests/perf/bench_checkouts.py ../before [--rounds 10]

Both serve the tiny model, whose overhead is visible. The table has the median of the rounds, and the median ratio of
neighbouring rounds. Nothing is asserted. Do not use the machine for anything else while this runs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "perf")]

from bench_service import our_contenders, rate  # noqa: E402
from support.live_server import serving  # noqa: E402
from support.tiny_bundle import write_tiny_bundle  # noqa: E402

NEURONS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        twin = write_tiny_bundle(folder / "tiny", mice=("A",), n_neurons=NEURONS)
        arrays = twin.draw("A", np.random.default_rng(0))
        sides = []
        for checkout in (args.before.resolve(), ROOT):
            server = stack.enter_context(serving(twin.folder, folder, cwd=checkout, V1T_THREADS="1"))
            server.wait_for("/readyz", 200)
            sides.append(our_contenders(server.process.pid, int(server.url.rpartition(":")[2]), arrays, NEURONS))
        print("| request | requests/s before | after | ratio | CPU ms before | after | ratio |")
        print("|---|--:|--:|--:|--:|--:|--:|")
        for old, new in zip(*sides, strict=True):
            rounds = []
            for number in range(args.rounds + 1):
                order = (old, new) if number % 2 else (new, old)
                rates = {one.pid: asyncio.run(rate(one, args.seconds)) for one in order}
                if number:  # the first one warms up
                    rounds.append((*rates[old.pid], *rates[new.pid]))
            before, cpu_before, after, cpu_after = (statistics.median(column) for column in zip(*rounds, strict=True))
            faster = statistics.median(one[2] / one[0] for one in rounds)
            dearer = statistics.median(one[3] / one[1] for one in rounds)
            print(
                f"| {new.name} | {before:,.0f} | {after:,.0f} | {faster:.3f} | {cpu_before:.3f} | {cpu_after:.3f} | "
                f"{dearer:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
