"""The experiments as verbs of `v1t`: `v1t NAME MOUSE --output FOLDER`, one for each in the catalogue."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from v1t_client._cli.hints import on_command_line
from v1t_client._cli.output import check_output
from v1t_client._cli.predictor_options import add_behavior, add_bundle, chosen, open_from
from v1t_client._cli.tools import TOOLS, add_tools
from v1t_client._errors import ConnectionFailed, InvalidArgument, TimedOut
from v1t_client._options import count, integers, number
from v1t_client.insilico.catalogue import EXPERIMENTS
from v1t_client.insilico.framework.experiment import Experiment, perform
from v1t_client.insilico.stimuli.monitor import Monitor

__all__ = ["add_verbs", "run"]

_COMMON = """
If interrupted, run the same command again to resume (from FOLDER.partial). FOLDER gets result.nc (xarray),
neurons.parquet (one row per neuron), figures as PNG and PDF, and receipt.json. Needs
`pip install './clients/python[insilico]'`.
"""


def add_verbs(verb: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Adds a verb for each experiment.

    Args:
        verb: makes a parser from a name, a summary, and the text below its options.
    """
    for name, experiment in EXPERIMENTS.items():
        parser = verb(name, experiment.summary, f"{experiment.examples.rstrip()}\n{_COMMON}")
        _add_common(parser, experiment)
        experiment.add_arguments(parser)
    add_tools(verb)


def run(options: argparse.Namespace) -> int:
    """Runs the experiment of the parsed options, or the tool for results."""
    if options.verb in TOOLS:
        return TOOLS[options.verb](options)
    experiment = EXPERIMENTS[options.verb].from_options(options)
    check_output(options.output, force=options.force)
    try:
        with open_from(options) as predictor:
            result = perform(
                experiment,
                predictor,
                options.output,
                force=options.force,
                quiet=options.quiet,
                where=chosen(options),
                command=shlex.join(["v1t", *sys.argv[1:]]),
            )
    except (ConnectionFailed, TimedOut) as error:
        partial = options.output.with_name(f"{options.output.name}.partial")
        if partial.is_dir():
            raise type(error)(
                error.message, got=error.got, hint=f"Run the same command again to resume from {partial}."
            ) from error
        raise
    except KeyboardInterrupt:
        print("\nv1t: finished work is kept; run the same command again to resume", file=sys.stderr)
        raise
    for line in result.receipt.lines():
        print(on_command_line(line), file=sys.stderr)
    if result.receipt.model.get("simulated"):
        print("SIMULATED: no animal was recorded")
    print(experiment.summarize(result))
    print(f"wrote {options.output}", file=sys.stderr)
    return 0


def _add_common(parser: argparse.ArgumentParser, experiment: type[Experiment]) -> None:
    parser.add_argument("mouse", metavar="MOUSE", help="mouse id, from `v1t mice`")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the result")
    parser.add_argument("--force", action="store_true", help="overwrite FOLDER, and discard an unfinished run")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    add_bundle(parser)
    parser.add_argument("--model", help="bundle name, if several bundles contain this mouse")
    neurons = parser.add_argument_group("neurons (default: all)").add_mutually_exclusive_group()
    neurons.add_argument("--neuron-ids", type=integers, metavar="ID,ID,...", help="only these neurons")
    neurons.add_argument("--best", type=count, metavar="N", help="only the N neurons with the best test scores")
    setting = parser.add_argument_group("screen and behaviour")
    setting.add_argument(
        "--monitor",
        type=_monitor,
        metavar="WxH@D",
        help="width x height of the lit area @ distance from the eye, cm; gives lengths in degrees instead of pixels",
    )
    setting.add_argument(
        "--luminance", type=number, metavar="LEVEL", help="background level (default: the training mean)"
    )
    add_behavior(setting, state=experiment.state)
    setting.add_argument("--seed", type=count, default=0, metavar="N", help="seed of all random numbers (%(default)s)")


def _monitor(text: str) -> Monitor:
    try:
        return Monitor.parse(text)
    except InvalidArgument as error:
        raise argparse.ArgumentTypeError(str(error)) from None
