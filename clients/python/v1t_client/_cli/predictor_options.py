"""Options of several verbs: --bundle, which chooses the predictor of an experiment, and what the mouse does."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args

from v1t_client._client import Client
from v1t_client._errors import InvalidArgument
from v1t_client._options import named_number, number
from v1t_client._protocol.arguments import State

__all__ = ["add_behavior", "add_bundle", "open_from"]


class _Channels(argparse.Action):
    """Collects NAME=VALUE pairs in a dictionary."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        (name, value), given = values, getattr(namespace, self.dest) or {}
        if name in given:
            parser.error(f"argument {option}: {name} is given twice")
        setattr(namespace, self.dest, {**given, name: value})


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Adds --bundle; --url is an option of every verb."""
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="serve a local bundle instead of using --url")


def add_behavior(group: argparse._ArgumentGroup, *, state: State | None = None) -> None:
    """Adds the behaviour and gaze of the mouse, --state and --strict.

    Args:
        state: the default of --state; None: that of the server.
    """
    group.add_argument("--pupil-dilation", type=number, metavar="PX", help="eye-camera pixels")
    group.add_argument("--pupil-dilation-derivative", type=number, metavar="PX/S", help="eye-camera pixels/s")
    group.add_argument("--running-speed", type=number, metavar="CM/S")
    group.add_argument(
        "--behavior",
        type=named_number,
        action=_Channels,
        metavar="NAME=VALUE",
        help="any behaviour channel, as `v1t mouse` lists them, in its unit; may be repeated",
    )
    group.add_argument("--pupil-center", type=number, nargs=2, metavar=("X", "Y"), help="eye-camera pixels")
    group.add_argument(
        "--state",
        choices=get_args(State),
        default=state,
        help=f"what fills in those that are left out, over the training trials (default: {state or 'median'})",
    )
    group.add_argument("--strict", action="store_true", help="refuse inputs outside what was recorded")


def open_from(options: argparse.Namespace, *, default: str = "") -> AbstractContextManager[Client]:
    """The predictor that the options choose.

    Args:
        default: URL or bundle to use without --bundle and --url: that of a receipt.
    """
    from v1t_client.insilico.framework.predictors import open_predictor  # slow, and not needed to ask a server

    where = str(options.bundle or options.url or default)
    if not where:
        raise InvalidArgument("the receipt does not name a server or bundle", hint="Give --url or --bundle.")
    return open_predictor(where, api_key=options.api_key, timeout=options.timeout, retries=options.retries)
