"""`neurons.npz`: the arrays that belong to the neurons of one mouse."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from server.bundle.manifest import MouseRecord
from server.errors import BundleError

__all__ = ["NeuronTable", "load_neurons"]

_SCORE = "score."
_READOUT_POSITION = "readout_position"  # not in bundles of older exporters
_BYTES_PER_NEURON = 24  # of the largest array: three coordinates in float64
_HEADER = 4096


class NeuronTable:
    """The neurons of a mouse, one row each.

    Attributes:
        ids: (N,) int64, the recording's unit ids, or 0..N-1 where there was no recording.
        coordinates: (N, 3) float32, cortical position [um], NaN where unknown.
        response_std: (N,) float32; a raw response is the standardised one times this. NaN where unknown.
        scores: name -> (N,) float32, per-neuron test scores, where known.
        readout_position: (N, 2) float32, x and y in pixels of the mouse's images, the middle of the top left one being
            (0, 0): where each neuron's readout looks with behaviour and gaze at their training medians, as the mean
            over members. It can lie outside of the image. None where it is not known.
    """

    def __init__(
        self,
        ids: np.ndarray,
        coordinates: np.ndarray,
        response_std: np.ndarray,
        scores: dict[str, np.ndarray],
        readout_position: np.ndarray | None = None,
    ) -> None:
        self.ids = ids
        self.coordinates = coordinates
        self.response_std = response_std
        self.scores = scores
        self.readout_position = readout_position
        self._position = {int(neuron_id): i for i, neuron_id in enumerate(ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, neuron_id: int) -> int | None:
        """The neuron's position 0..N-1, or None if this mouse has no such neuron."""
        return self._position.get(neuron_id)

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {
            "ids": self.ids.astype(np.int64),
            "coordinates": self.coordinates.astype(np.float32),
            "response_std": self.response_std.astype(np.float32),
        }
        arrays |= {f"{_SCORE}{name}": score.astype(np.float32) for name, score in self.scores.items()}
        if self.readout_position is not None:
            arrays[_READOUT_POSITION] = self.readout_position.astype(np.float32)
        np.savez(path, **arrays)


def load_neurons(folder: Path, mouse: MouseRecord) -> NeuronTable:
    """Reads a mouse's `neurons.npz` (without pickle).

    Args:
        folder: of the bundle.

    Raises:
        BundleError: an array is missing, or has another shape or type than documented, or values that it cannot have.
    """
    path = folder / mouse.neurons.path
    try:
        arrays = _read(path, most_bytes=_HEADER + _BYTES_PER_NEURON * mouse.n_neurons)
        table = NeuronTable(
            ids=arrays["ids"],
            coordinates=arrays["coordinates"],
            response_std=arrays["response_std"],
            scores={name.removeprefix(_SCORE): arrays[name] for name in arrays if name.startswith(_SCORE)},
            readout_position=arrays.get(_READOUT_POSITION),
        )
        _check(table, mouse.n_neurons)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise BundleError(
            f"{mouse.neurons.path}, of mouse {mouse.mouse_id!r}, cannot be read: {error}", hint="Export the twin again."
        ) from error
    return table


def _read(path: Path, most_bytes: int) -> dict[str, np.ndarray]:
    """The arrays of a .npz file. None may be larger, whatever it unpacks to or its header claims."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > most_bytes:
                raise ValueError(f"{member.filename} has {member.file_size} bytes, and its neurons {most_bytes}")
            stream = io.BytesIO(archive.read(member))
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            if math.prod(shape) * dtype.itemsize != len(stream.getbuffer()) - stream.tell():
                raise ValueError(f"the header of {member.filename} does not fit its data")
            stream.seek(0)
            arrays[member.filename.removesuffix(".npy")] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def _check(table: NeuronTable, n_neurons: int) -> None:
    """Raises ValueError if a value is one that no neuron can have."""
    scores = {f"{_SCORE}{name}": values for name, values in table.scores.items()}
    columns = {"ids": table.ids, "response_std": table.response_std, **scores}
    shapes = dict.fromkeys(columns, (n_neurons,)) | {"coordinates": (n_neurons, 3), _READOUT_POSITION: (n_neurons, 2)}
    columns["coordinates"] = table.coordinates
    if table.readout_position is not None:
        columns[_READOUT_POSITION] = table.readout_position
    for name, array in columns.items():
        if array.shape != shapes[name] or array.dtype.kind not in ("iu" if name == "ids" else "f"):
            kind = "integers" if name == "ids" else "floats"
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, not {kind} of shape {shapes[name]}")
        if array.dtype.kind == "f" and np.isinf(array).any():
            raise ValueError(f"{name} holds infinite values")
    if len(np.unique(table.ids)) < n_neurons:
        raise ValueError("ids holds one id twice")
    if (table.response_std <= 0).any():
        raise ValueError("response_std is not positive")
    if table.readout_position is not None and np.isnan(table.readout_position).any():
        raise ValueError(f"{_READOUT_POSITION} holds values that are not numbers")
