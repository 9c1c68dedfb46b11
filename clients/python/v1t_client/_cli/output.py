"""The files and folders that the command line writes with `--output`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from v1t_client._answers.prediction import Prediction
from v1t_client._answers.sidecar import sidecar_of, write_sidecar
from v1t_client._errors import InvalidArgument
from v1t_client._replacing import replacing

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
    if path is not None and path.suffix != ".json":
        check_output(sidecar_of(path), force=force)


def write_prediction(prediction: Prediction, path: Path) -> None:
    """Writes all responses: .npy (B, n), or (2, B, n) with spread; .csv with a row per image and neuron; .json.

    What .npy and .csv cannot hold is written to a JSON file beside them.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    with replacing(path) as beside:
        if path.suffix == ".npy":
            arrays = prediction.responses if prediction.spread is None else [prediction.responses, prediction.spread]
            with beside.open("wb") as stream:
                np.save(stream, np.asarray(arrays, dtype=np.float32), allow_pickle=False)
        elif path.suffix == ".json":
            beside.write_text(json.dumps(prediction.to_dict(), indent=1) + "\n", encoding="utf-8")
        else:
            _write_csv(prediction, beside)
        if path.suffix != ".json":
            write_sidecar(prediction, path)


def _write_csv(prediction: Prediction, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        named, spread = bool(prediction.images), prediction.spread is not None
        header = ["image", *(["file"] if named else []), "neuron_id", "response", *(["spread"] if spread else [])]
        writer.writerow(header)
        for i in range(len(prediction)):
            image = [i, prediction.images[i]] if named else [i]
            columns = [prediction.neuron_ids.tolist(), prediction.responses[i].tolist()]
            if prediction.spread is not None:
                columns.append(prediction.spread[i].tolist())
            writer.writerows([*image, *row] for row in zip(*columns, strict=True))
