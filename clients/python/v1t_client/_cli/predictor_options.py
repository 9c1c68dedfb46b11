"""Options of several verbs: --bundle and --ray, which choose a predictor, and what the mouse does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, get_args

from v1t_client._client import Client
from v1t_client._errors import InvalidArgument
from v1t_client._options import named_number, number
from v1t_client._protocol.arguments import State
from v1t_client._replicas import Replicas

__all__ = ["add_behavior", "add_bundle", "chosen", "only_url", "open_from"]

_BETWEEN = ", "  # two URLs in a receipt


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
    """Adds --bundle and --ray; --url is an option of every verb."""
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="serve a local bundle instead of using --url")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="serve the bundle on each GPU, or else each machine, of a Ray cluster; `local` starts one here",
    )


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


@contextmanager
def open_from(options: argparse.Namespace, *, default: str = "") -> Iterator[Client | Replicas]:
    """The predictor that the options choose.

    Args:
        default: what `chosen` gave, to use without --bundle and --url: that of a receipt.
    """
    call = {"timeout": options.timeout, "retries": options.retries}
    where = chosen(options) or default
    if not where:
        raise InvalidArgument("the receipt does not name a server or bundle", hint="Give --url or --bundle.")
    if options.ray and options.bundle is None:
        raise InvalidArgument("--ray needs a bundle to serve on the cluster", hint="Add --bundle FOLDER.")
    # Slow, and not needed to ask a server for predictions.
    from v1t_client.insilico.framework.predictors import open_predictor
    from v1t_client.insilico.framework.ray_workers import ray_workers

    with ExitStack() as stack:
        if options.ray:
            workers = stack.enter_context(ray_workers(options.bundle, options.ray, **call))
            yield stack.enter_context(Replicas(workers=workers))
        elif options.bundle is None and _BETWEEN in where:
            clients = [
                stack.enter_context(Client(url, api_key=options.api_key, **call)) for url in where.split(_BETWEEN)
            ]
            yield stack.enter_context(Replicas(clients))
        else:
            yield stack.enter_context(open_predictor(where, api_key=options.api_key, **call))


def chosen(options: argparse.Namespace) -> str:
    """The URLs or the bundle of the options, for receipts; empty if there are none."""
    return str(options.bundle or _BETWEEN.join(options.url or ()))


def only_url(options: argparse.Namespace) -> str:
    """The URL, for a verb that asks one server.

    Raises:
        InvalidArgument: there are several.
    """
    if len(options.url) > 1:
        raise InvalidArgument(
            f"`v1t {options.verb}` asks one server", got=" ".join(f"--url {url}" for url in options.url)
        )
    return str(options.url[0])
