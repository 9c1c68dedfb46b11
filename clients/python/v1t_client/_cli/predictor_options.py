"""The options that choose a predictor for an experiment: --url and --bundle."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager
from pathlib import Path

from v1t_client._client import Client
from v1t_client._errors import InvalidArgument
from v1t_client.insilico.framework.predictors import open_predictor

__all__ = ["add_bundle", "open_from"]


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
