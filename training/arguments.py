"""Command-line arguments that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_checkpoints", "add_device", "add_options", "add_output", "add_recordings"]

DEVICE = "cpu, cuda, cuda:N, or auto: a GPU if there is one (default: cpu)"


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    help_ = "a run, an ensemble, or checkpoints that make one"
    parser.add_argument("checkpoints", nargs="+", type=Path, help=help_)


def add_recordings(
    parser: argparse.ArgumentParser, help_: str = "recordings, or folders of them", *, required: bool = True
) -> None:
    parser.add_argument("--recordings", nargs="+", required=required, default=[], type=Path, metavar="DIR", help=help_)


def add_output(parser: argparse.ArgumentParser, help_: str, *, metavar: str = "FOLDER") -> None:
    parser.add_argument("--output", required=True, type=Path, metavar=metavar, help=help_)


def add_options(parser: argparse.ArgumentParser, help_: str) -> None:
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help=help_)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help=DEVICE)
