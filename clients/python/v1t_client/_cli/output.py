"""The files and folders that the command line writes with `--output`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from v1t_client._answers.prediction import Prediction
from v1t_client._errors import InvalidArgument

__all__ = ["check_output", "check_output_file", "write_prediction"]

_ENDINGS = (".npy", ".csv", ".json")


def check_output(path: Path | None, *, force: bool = False, may_force: bool = True, needs_parent: bool = True) -> None:
    """Refuses --output before a request is sent, not afterwards.

    Args:
        may_force: whether the verb has the option --force.

    Raises:
        InvalidArgument: it exists already, or is in a folder that does not exist.
    """
    if path is None:
        return
    if needs_parent and not path.parent.is_dir():
        raise InvalidArgument("--output is in a folder that does not exist", got=path)
    if path.exists() and not force:
        hint = "Choose another name, or add --force." if may_force else "Choose another name."
        raise InvalidArgument("--output exists already", got=path, hint=hint)


def check_output_file(path: Path | None, *, force: bool) -> None:
    """The same for a file of predictions.

    Raises:
        InvalidArgument: as `check_output`, or the file type is unknown.
    """
    if path is not None and path.suffix not in _ENDINGS:
        raise InvalidArgument("--output has an unknown file type", got=path.name, expected=" or ".join(_ENDINGS))
    check_output(path, force=force)


def write_prediction(prediction: Prediction, path: Path) -> None:
    """Writes all responses: .npy (B, n), or (2, B, n) with spread; .csv with a row per image and neuron; .json.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    try:
        if path.suffix == ".npy":
            arrays = prediction.responses if prediction.spread is None else [prediction.responses, prediction.spread]
            with path.open("wb") as stream:
                np.save(stream, np.asarray(arrays, dtype=np.float32), allow_pickle=False)
        elif path.suffix == ".json":
            path.write_text(json.dumps(prediction.to_dict(), indent=1) + "\n", encoding="utf-8")
        else:
            _write_csv(prediction, path)
    except OSError as error:
        raise InvalidArgument(f"--output cannot be written: {error.strerror or error}", got=path) from error


def _write_csv(prediction: Prediction, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "neuron_id", "response"] + (["spread"] if prediction.spread is not None else []))
        for i in range(len(prediction)):
            columns = [prediction.neuron_ids.tolist(), prediction.responses[i].tolist()]
            if prediction.spread is not None:
                columns.append(prediction.spread[i].tolist())
            writer.writerows([i, *row] for row in zip(*columns, strict=True))
