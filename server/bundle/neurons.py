"""`neurons.npz`: the arrays that belong to the neurons of one mouse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from server.bundle.manifest import MouseRecord
from server.errors import BundleError

__all__ = ["NeuronTable", "load_neurons"]


class NeuronTable:
    """The neurons of a mouse, one row each.

    Attributes:
        ids: (N,) int64, the recording's unit ids, or 0..N-1 where there was no recording.
        coordinates: (N, 3) float32, cortical position [um], NaN where unknown.
        response_std: (N,) float32; a raw response is the standardised one times this. NaN where unknown.
        scores: name -> (N,) float32, per-neuron test scores, where known.
    """

    def __init__(
        self, ids: np.ndarray, coordinates: np.ndarray, response_std: np.ndarray, scores: dict[str, np.ndarray]
    ) -> None:
        self.ids = ids
        self.coordinates = coordinates
        self.response_std = response_std
        self.scores = scores
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
        arrays |= {f"score.{name}": score.astype(np.float32) for name, score in self.scores.items()}
        np.savez(path, **arrays)


def load_neurons(bundle: Path, mouse: MouseRecord) -> NeuronTable:
    """Reads a mouse's `neurons.npz` (without pickle).

    Raises:
        BundleError: an array is missing or has another length than the mouse has neurons.
    """
    try:
        with np.load(bundle / mouse.neurons.path, allow_pickle=False) as arrays:
            table = NeuronTable(
                ids=arrays["ids"],
                coordinates=arrays["coordinates"],
                response_std=arrays["response_std"],
                scores={
                    name.removeprefix("score."): arrays[name] for name in arrays.files if name.startswith("score.")
                },
            )
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"bundle {bundle.name!r}: {mouse.neurons.path} cannot be read: {error}") from error
    lengths = {len(table.ids), len(table.coordinates), len(table.response_std), *map(len, table.scores.values())}
    if lengths != {mouse.n_neurons}:
        raise BundleError(
            f"bundle {bundle.name!r}: {mouse.neurons.path} does not fit mouse {mouse.mouse_id!r}",
            got=f"rows {sorted(lengths)}",
            expected=f"{mouse.n_neurons} neurons",
        )
    return table
