"""The neurons of a mouse, one row each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["NeuronTable"]


@dataclass(frozen=True, eq=False, repr=False)
class NeuronTable:
    """Neurons of one mouse, in the order of the responses.

    Attributes:
        mouse: the mouse.
        model: name of the bundle.
        neuron_ids: (n,) int64, the recording's unit ids.
        coordinates_um: (n, 3) float32, cortical position [um], NaN where unknown.
        response_std: (n,) float32; a raw response is the standardized one times this. NaN where unknown.
        scores: name -> (n,) float32, per-neuron test scores, NaN where unknown.
        total: how many neurons passed the filters, also beyond a limit.
        model_hash: of the bundle; None where an older server does not say it.
    """

    mouse: str
    model: str
    neuron_ids: npt.NDArray[np.int64]
    coordinates_um: npt.NDArray[np.float32]
    response_std: npt.NDArray[np.float32]
    scores: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    total: int = 0
    model_hash: str | None = None

    def __len__(self) -> int:
        return len(self.neuron_ids)

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} median {np.nanmedian(values):.3f}" for name, values in self._known_scores())
        return (
            f"<NeuronTable: {len(self):,} of {self.total:,} neurons of mouse {self.mouse!r}, model {self.model}; "
            f"scores: {scores or 'none known'}>"
        )

    def _known_scores(self) -> list[tuple[str, npt.NDArray[np.float32]]]:
        return [(name, values) for name, values in self.scores.items() if np.isfinite(values).any()]
