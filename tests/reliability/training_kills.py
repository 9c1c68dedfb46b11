"""Trains a tiny ensemble twice: once without interruption, and once killed with SIGKILL at random moments and resumed.

    python -m reliability.training_kills [--kills 20]

Compares the final weights and logs of both. Kills come at random moments between the first update and the end; every
other kill waits for a file that is half written, which is the worst moment.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from support.checkout import ROOT
from support.tiny_twins import tiny_recordings

OPTIONS = [
    *("core.patch_size=4", "core.patch_stride=3", "core.n_blocks=2", "core.n_heads=2", "core.dim=6", "core.mlp_dim=8"),
    *("cropper.size=[12, 20]", "training.batch_size=4", "training.max_epochs=4", "training.learning_rate=0.01"),
    "training.save_minutes=0.000001",  # after every update
]


@dataclass(frozen=True)
class Result:
    kills: int
    half_written: int
    starts: int
    same_weights: bool
    same_logs: bool


def describe(result: Result) -> str:
    return (
        f"{result.kills} kills ({result.half_written} while a file was half written), {result.starts} starts: weights "
        f"{'equal' if result.same_weights else 'DIFFER'}, logs {'equal' if result.same_logs else 'DIFFER'}"
    )


def kill_and_resume(folder: Path, *, kills: int, members: int, seed: int) -> Result:
    """Trains both runs in the folder, and compares them."""
    recordings = [str(recording.path) for recording in tiny_recordings(folder / "recordings")]
    command = [
        *(sys.executable, "-u", "-c", _SLOWED, "train", "--recordings", *recordings, "--members", str(members)),
        *("--deterministic", "--set", *OPTIONS, "--output"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(folder / "whole")], env=environment, check=True, capture_output=True)
    rng = random.Random(seed)
    run, killed, half_written, starts = folder / "killed", 0, 0, 0
    while True:
        starts += 1
        process = subprocess.Popen(
            [*command, str(run)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        if killed < kills and _wait_to_kill(process, run, rng, worst=killed % 2 == 1):
            half_written += bool(list(run.rglob(".*.partial")))
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            killed += 1
            continue
        output = process.communicate()[0].decode()
        if process.returncode:
            raise SystemExit(f"start {starts} failed:\n{output}")
        break
    return Result(
        killed, half_written, starts, _weights(folder / "whole") == _weights(run), _logs(folder) == _logs(run)
    )


def _wait_to_kill(process: subprocess.Popen[bytes], run: Path, rng: random.Random, *, worst: bool) -> bool:
    """Waits for the moment of the kill; False if the process ended before."""
    states = {path: path.stat().st_mtime_ns for path in run.rglob("state.pt")}
    while process.poll() is None:  # at least one update is done
        if any(states.get(path) != _changed(path) for path in run.rglob("state.pt")):
            break
        time.sleep(0.002)
    moment = time.monotonic() + rng.uniform(0, 0.4)
    while process.poll() is None:
        late = time.monotonic() > moment
        if late and (not worst or any(run.rglob(".*.partial")) or time.monotonic() > moment + 2):
            return True
        time.sleep(0.0005)
    return False


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


# Writes of a tiny model take microseconds. Here they pause half-way, in both runs.
_SLOWED = """
import os, sys, time
from pathlib import Path
import training.checkpoints.checkpoint as checkpoint, training.trainer.run as run, training.trainer.state as state

def write_slowly(path, content):
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as stream:
        stream.write(content[: len(content) // 2])
        stream.flush()
        time.sleep(0.005)
    whole(path, content)

whole = checkpoint.write_atomically
for module in (checkpoint, run, state):
    module.write_atomically = write_slowly
from training.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def _weights(run: Path) -> dict[str, object]:
    """The final weights of a run as bytes, and the members that it keeps."""
    found: dict[str, object] = {"members": (run / "members.json").read_text()}
    for path in sorted(run.rglob("state.pt")):
        state = torch.load(path, weights_only=True)
        for part in ("twin", "best"):
            for name, tensor in state[part].items():
                found[f"{path.parent.name} {part} {name}"] = tensor.numpy().tobytes()
        found[f"{path.parent.name} epoch"] = state["epoch"]
    for path in sorted(run.rglob("weights-*.safetensors")):
        found[f"{path.parents[1].name} {path.name}"] = path.read_bytes()
    return found


def _logs(run: Path) -> list[list[dict[str, str]]]:
    """The rows of all logs, without times, which differ between runs."""
    run = run / "whole" if (run / "whole").exists() else run
    logs = []
    for path in sorted(run.rglob("log.csv")):
        with path.open(newline="") as stream:
            logs.append(
                [{k: v for k, v in row.items() if k not in ("seconds", "waited")} for row in csv.DictReader(stream)]
            )
    return logs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--members", type=int, default=8, help="members of the ensemble (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: %(default)s)")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = kill_and_resume(Path(folder), kills=args.kills, members=args.members, seed=args.seed)
    print(f"{describe(result)}, in {time.monotonic() - started:.0f} s")
    sys.exit(0 if result.same_weights and result.same_logs and result.kills == args.kills else 1)


if __name__ == "__main__":
    main()
