"""The number of cores that a process may use, from its affinity and from its control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT

from server.inference.processors import usable_cores

MANY = len(os.sched_getaffinity(0))


def groups(folder: Path, limits: dict[str, str], own: str) -> tuple[Path, Path]:
    """/proc/self/cgroup and /sys/fs/cgroup of a process in the group `own`."""
    for name, text in limits.items():
        (folder / "groups" / name).mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name / "cpu.max").write_text(text + "\n")
    (folder / "own").write_text(f"1:name=systemd:/somewhere\n0::/{own}\n")
    return folder / "own", folder / "groups"


@pytest.mark.parametrize(
    ("limits", "own", "expected"),
    [
        ({"": "max 100000"}, "", MANY),
        ({"": "100000 100000"}, "", 1),  # a container sees its group as the root
        ({"": "20000 100000"}, "", 1),
        ({"": f"{100_000 * MANY - 50_000} 100000"}, "", MANY),  # rounded up
        ({"": "max 100000", "system.slice/v1t.service": "50000 50000"}, "system.slice/v1t.service", 1),
        ({"": "max 100000", "user": "100000 100000", "user/job": "max 100000"}, "user/job", 1),  # a group around it
        ({"": "max 100000", "other": "100000 100000"}, "user/job", MANY),
        ({"": "what is this"}, "", MANY),
    ],
)
def test_limits_of_control_groups(tmp_path: Path, limits: dict[str, str], own: str, expected: int) -> None:
    assert usable_cores(*groups(tmp_path, limits, own)) == expected


def test_without_control_groups_all_cores_of_the_affinity_are_usable(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path) == MANY


def test_an_engine_on_one_of_the_cores_has_no_more_threads(tmp_path: Path) -> None:
    """onnxruntime would start one per core of the machine, and each would wait for the others by spinning."""
    code = """
import os, sys
from server.inference.engine import Engine
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
engine = Engine.load("exported_models/demo", provider="cpu", threads=int(sys.argv[1]) or None)
print(len(os.listdir("/proc/self/task")))
"""
    command = [sys.executable, "-c", code]
    threads = [
        int(subprocess.run([*command, n], cwd=ROOT, capture_output=True, check=True, timeout=90).stdout)
        for n in ("0", "1", "2")
    ]
    assert threads[0] == threads[1] < threads[2]
