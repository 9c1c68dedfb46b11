"""Verbs of `v1t` that work on results: `replay` does one again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from v1t_client._errors import InvalidArgument
from v1t_client.insilico.opening import open_predictor
from v1t_client.insilico.options import number
from v1t_client.insilico.receipt import Receipt
from v1t_client.insilico.replay import TOLERANCE, replay

__all__ = ["TOOLS", "add_tools"]

_REPLAY = """\
examples:
  v1t replay meis                               the result's folder, or its receipt.json; asks whom the receipt names
  v1t replay meis --url http://twins:3000       asks another server
  v1t replay meis --bundle exported_models/mine --output meis-again

Exit code 0: the same bundle gave the same result; 1: it did not, and the lines say where.
"""


def add_tools(verb: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Adds the verbs; see `commands.add_verbs`."""
    parser = verb("replay", "do again what a receipt says, and compare with its result", _REPLAY)
    parser.set_defaults(url=None)  # the receipt's own
    parser.add_argument("receipt", type=Path, metavar="RECEIPT", help="a receipt.json, or the folder of a result")
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="open a bundle locally in place of --url")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="keep the new result")
    parser.add_argument("--force", action="store_true", help="overwrite FOLDER")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--tolerance", type=number, default=TOLERANCE, metavar="X", help="of a variable's largest value (%(default)s)"
    )


def _replay(options: argparse.Namespace) -> int:
    where = str(options.bundle or options.url or Receipt.load(options.receipt).predictor)
    if not where:
        raise InvalidArgument("the receipt does not say who was asked", hint="Give --url or --bundle.")
    if options.output is not None and options.output.exists() and not options.force:
        raise InvalidArgument("--output exists already", got=options.output, hint="Choose another name, or --force.")
    with open_predictor(where, api_key=options.api_key, timeout=options.timeout, retries=options.retries) as predictor:
        done = replay(
            options.receipt,
            predictor,
            output=options.output,
            force=options.force,
            quiet=options.quiet or not sys.stderr.isatty(),
        )
    print(done.report(options.tolerance))
    return 0 if done.same(options.tolerance) else 1


TOOLS: dict[str, Callable[[argparse.Namespace], int]] = {"replay": _replay}
