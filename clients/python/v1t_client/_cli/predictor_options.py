"""Options that the verbs for experiments share: which predictor to use, and where the result goes."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager
from pathlib import Path

from v1t_client._client import Client
from v1t_client._errors import InvalidArgument
from v1t_client.insilico.framework.predictors import open_predictor

__all__ = ["add_bundle", "check_output", "open_from"]


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Adds --bundle; --url is an option of every verb."""
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="serve a local bundle instead of using --url")


def open_from(options: argparse.Namespace, *, default: str = "") -> AbstractContextManager[Client]:
    """The predictor that the options choose.

    Args:
        default: URL or bundle to use without --bundle and --url: that of a receipt.
    """
    where = str(options.bundle or options.url or default)
    if not where:
        raise InvalidArgument("the receipt does not name a server or bundle", hint="Give --url or --bundle.")
    return open_predictor(where, api_key=options.api_key, timeout=options.timeout, retries=options.retries)


def check_output(
    output: Path | None, *, force: bool = False, needs_parent: bool = True, hint: str = "Choose another name."
) -> None:
    """Refuses an output folder before the experiment runs, not afterwards."""
    if output is None:
        return
    if output.exists() and not force:
        raise InvalidArgument("--output exists already", got=output, hint=hint)
    if needs_parent and not output.parent.is_dir():
        raise InvalidArgument("--output is in a folder that does not exist", got=output)
