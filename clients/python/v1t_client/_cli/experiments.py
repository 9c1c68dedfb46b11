"""The experiments as verbs of `v1t`: `v1t NAME MOUSE --output FOLDER`, one for each in the catalogue."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from v1t_client._cli.tools import TOOLS, add_tools
from v1t_client._errors import ConnectionFailed, InvalidArgument, TimedOut
from v1t_client._options import count, integers, number
from v1t_client.insilico.catalogue import EXPERIMENTS
from v1t_client.insilico.framework.experiment import perform
from v1t_client.insilico.framework.predictors import open_predictor
from v1t_client.insilico.stimuli.monitor import Monitor

__all__ = ["VERBS", "add_verbs", "run"]

VERBS = frozenset({*EXPERIMENTS, *TOOLS})

_COMMON = """
Interrupted, the same command goes on where it was (FOLDER.partial). FOLDER gets result.nc (xarray), neurons.parquet (a
row per neuron), figures as PNG and PDF, and receipt.json. Needs `pip install 'v1t-client[insilico]'`.
"""


def add_verbs(verb: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Adds a verb for each experiment.

    Args:
        verb: makes a parser of a name, a summary and what stands below its options.
    """
    for name, experiment in EXPERIMENTS.items():
        parser = verb(name, experiment.summary, f"{experiment.examples.rstrip()}\n{_COMMON}")
        _add_common(parser)
        experiment.add_arguments(parser)
    add_tools(verb)


def run(options: argparse.Namespace) -> int:
    """Runs the experiment of the parsed options, or the tool for results."""
    if options.verb in TOOLS:
        return TOOLS[options.verb](options)
    experiment = EXPERIMENTS[options.verb].from_options(options)
    where = str(options.bundle or options.url)
    command = shlex.join(["v1t", *sys.argv[1:]])
    if options.output.exists() and not options.force:  # before a bundle is opened
        raise InvalidArgument(
            "--output exists already", got=options.output, hint="Choose another name, or add --force."
        )
    try:
        with open_predictor(
            where, api_key=options.api_key, timeout=options.timeout, retries=options.retries
        ) as predictor:
            result = perform(
                experiment,
                predictor,
                options.output,
                force=options.force,
                quiet=options.quiet or not sys.stderr.isatty(),
                where=where,
                command=command,
            )
    except (ConnectionFailed, TimedOut) as error:
        partial = options.output.with_name(f"{options.output.name}.partial")
        if partial.is_dir():
            raise type(error)(
                error.message, got=error.got, hint=f"What is done is kept in {partial}: the same command goes on."
            ) from error
        raise
    except KeyboardInterrupt:
        print("\nv1t: what is done is kept; the same command goes on", file=sys.stderr)
        raise
    if result.receipt.model.get("notice"):
        print(f"notice: {result.receipt.model['notice']}", file=sys.stderr)
    for line in result.receipt.assumed:
        print(f"assumed: {line}", file=sys.stderr)
    print(experiment.summarize(result))
    print(f"wrote {options.output}", file=sys.stderr)
    return 0


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mouse", metavar="MOUSE", help="mouse id, from `v1t mice`")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the result goes")
    parser.add_argument("--force", action="store_true", help="overwrite FOLDER, and forget an unfinished run")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="open a bundle locally in place of --url")
    parser.add_argument("--model", help="bundle name, where several bundles hold this mouse")
    neurons = parser.add_argument_group("neurons (all if none are chosen)").add_mutually_exclusive_group()
    neurons.add_argument("--neuron-ids", type=integers, metavar="ID,ID,...", help="only these")
    neurons.add_argument("--best", type=count, metavar="N", help="only the N with the best test scores")
    setting = parser.add_argument_group("screen and state")
    setting.add_argument(
        "--monitor",
        type=_monitor,
        metavar="WxH@D",
        help="lit width x height @ distance from the eye, cm; lengths are then degrees. Without it: pixels",
    )
    setting.add_argument("--luminance", type=number, metavar="LEVEL", help="of the background (the training mean)")
    setting.add_argument("--pupil-dilation", type=number, metavar="PX", help="held at; the training mean if left out")
    setting.add_argument("--pupil-dilation-derivative", type=number, metavar="PX/S")
    setting.add_argument("--running-speed", type=number, metavar="CM/S")
    setting.add_argument("--pupil-center", type=number, nargs=2, metavar=("X", "Y"))
    setting.add_argument("--seed", type=count, default=0, metavar="N", help="of all that is random (%(default)s)")


def _monitor(text: str) -> Monitor:
    try:
        return Monitor.parse(text)
    except InvalidArgument as error:
        raise argparse.ArgumentTypeError(str(error)) from None
