"""`v1t predict` into a Zarr folder: sets of images of any size, by one server, several servers or a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from v1t_client._answers.notes import Note
from v1t_client._cli.hints import on_command_line
from v1t_client._client import Client
from v1t_client._errors import InvalidArgument, V1TError
from v1t_client._large_sets.image_sets import open_images
from v1t_client._protocol.arguments import PredictOptions
from v1t_client._replicas import Replicas

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_for_zarr", "predict_set"]


def is_for_zarr(options: argparse.Namespace) -> bool:
    """Whether the output is a Zarr folder; other outputs are written by one server.

    Raises:
        InvalidArgument: several servers or a cluster, and another output.
    """
    if options.output is not None and options.output.suffix == ".zarr":
        return True
    if options.ray or (options.bundle is None and len(options.url) > 1):
        raise InvalidArgument(
            "several servers can only write to a Zarr folder",
            got=f"--output {options.output}" if options.output else "no --output",
            expected="--output responses.zarr",
        )
    return False


def predict_set(options: argparse.Namespace, mice: list[str], predictor: Client | Replicas) -> int:
    """Writes a Zarr folder for each mouse."""
    arguments = cast("PredictOptions", {name: getattr(options, name) for name in PredictOptions.__optional_keys__})
    replicas = predictor if isinstance(predictor, Replicas) else Replicas([predictor])
    images: Any = options.images if len(options.images) > 1 else options.images[0]
    printed: set[str] = set()
    for mouse in mice:
        channels = replicas.mouse(mouse, model=options.model).image_shape[0]
        output: Path = options.output
        if len(mice) > 1:
            output = output.with_name(f"{output.stem}.{mouse}.zarr")
        try:
            attributes = replicas.predict_to_zarr(
                mouse, open_images(images, channels=channels), output, force=options.force, **arguments
            )
        except (KeyboardInterrupt, V1TError):
            if output.with_name(f"{output.name}.part").is_dir():
                print("v1t: finished chunks are kept; run the same command again to resume", file=sys.stderr)
            raise
        for line in _lines(attributes):
            if line not in printed:
                print(on_command_line(line), file=sys.stderr)
            printed.add(line)
        print(f"wrote {output}", file=sys.stderr)
    return 0


def _lines(attributes: Mapping[str, Any]) -> list[str]:
    kind = "simulated" if attributes["simulated"] else "notice"
    return [
        *([f"{kind}: {attributes['notice']}"] if attributes["notice"] else []),
        *(f"assumed: {line}" for line in attributes["assumed"]),
        *(f"note: {Note(**note)}" for note in attributes["notes"]),
    ]
