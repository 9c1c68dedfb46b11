"""Command-line arguments that several verbs share, and their parser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["Parser", "add_checkpoints", "add_device", "add_nan_trials", "add_options", "add_output", "add_recordings"]

DEVICE = "cpu, cuda, cuda:N, or auto: a GPU if there is one (default: cpu)"


class Parser(argparse.ArgumentParser):
    """A parser of options that may be repeated if they take any number of values; any other value is given once.

    With argparse alone, of `--set a=1 --set b=2` the first would be lost without a word.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.given: set[str] = set()
        for name in (None, "store", "extend"):
            self.register("action", name, _Store)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = set()
        return super().parse_known_args(args, namespace)


class _Store(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        assert isinstance(parser, Parser)
        if option is not None and self.dest in parser.given:
            if self.nargs not in ("+", "*"):
                parser.error(f"{option} is given twice; got {getattr(namespace, self.dest)} and {values}")
            values = [*getattr(namespace, self.dest), *values]
        parser.given.add(self.dest)
        setattr(namespace, self.dest, values)


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    help_ = "a run, an ensemble, or checkpoints that make one"
    parser.add_argument("checkpoints", nargs="+", type=Path, help=help_)


def add_recordings(
    parser: argparse.ArgumentParser, help_: str = "recordings, or folders of them", *, required: bool = True
) -> None:
    help_ = f"{help_}; NAME=PATH names the mouse of a recording"
    parser.add_argument("--recordings", nargs="+", required=required, default=[], type=Path, metavar="PATH", help=help_)
    add_nan_trials(parser)


def add_nan_trials(parser: argparse.ArgumentParser) -> None:
    help_ = "trials with NaN or infinity: refuse the recording, or exclude the trials (default: refuse)"
    parser.add_argument("--nan-trials", choices=["refuse", "exclude"], default="refuse", help=help_)


def add_output(parser: argparse.ArgumentParser, help_: str, *, metavar: str = "FOLDER", force: bool = False) -> None:
    """--output, and with `force` also --force, for verbs that refuse an output that exists (`check_output`)."""
    parser.add_argument("--output", required=True, type=Path, metavar=metavar, help=help_)
    if force:
        parser.add_argument("--force", action="store_true", help="replace --output if it exists")


def add_options(parser: argparse.ArgumentParser, help_: str) -> None:
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help=help_)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help=DEVICE)
