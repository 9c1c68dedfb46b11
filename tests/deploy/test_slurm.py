"""The examples for SLURM: shell that parses, directives that sbatch has, and commands that the trainer takes."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.tools import run

from training.__main__ import VERBS
from training.arguments import Parser

FILES = sorted((ROOT / "deploy" / "slurm").glob("*.sbatch"))
# Of `sbatch --help`, with the form of their values.
DIRECTIVES = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "gpus-per-node": r"\d+",
    "array": r"\d+-\d+",
    "mem": r"\d+[KMGT]",
    "time": r"\d+:\d\d:\d\d",
    "requeue": None,
    "output": r"[\w%-]+\.log",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_script_parses_and_its_directives_are_sbatch_s(path: Path) -> None:
    run("bash", "-n", str(path))
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(directives) < first_command  # sbatch reads none after the first command
    for i in directives:
        found = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", lines[i])
        assert found, lines[i]
        pattern = DIRECTIVES[found[1]]
        assert (found[2] is None) if pattern is None else re.fullmatch(pattern, found[2]), lines[i]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_trainer_takes_the_command(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^python -m training (.*)$", text, flags=re.M)
    values = {"TRIALS": "3", "MEMBERS": "3", "KEEP": "2", "STORAGE": "sqlite://", "head": "node", "port": "10001"}
    expanded = re.sub(
        r"\$\{?(\w+)(?::[-?]([^}]*))?\}?", lambda found: values.get(found[1], found[2] or "value"), command
    )
    words = shlex.split(expanded)
    parser = Parser()
    importlib.import_module(VERBS[words[0]][0]).add_arguments(parser)
    options = parser.parse_args(words[1:])
    assert options.device == "cuda"
