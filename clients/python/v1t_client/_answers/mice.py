"""Mice and neurons: sizes, statistics of the recording, positions and test scores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from v1t_client._answers.prediction import Model, count
from v1t_client._errors import InvalidArgument

__all__ = ["Channel", "Mouse", "MouseDetail", "NeuronTable"]


@dataclass(frozen=True)
class Channel:
    """One input channel: its unit, and its statistics over the training trials (None where unknown)."""

    name: str
    unit: str
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    median: float | None = None
    percentiles: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Mouse:
    """A mouse that a server serves.

    Attributes:
        mouse_id: the argument of `predict`, such as "A".
        model: name of the bundle that contains it.
        n_neurons: number of neurons.
        image_shape: (C, H, W), of the recording.
        uses: those inputs of image, behavior and pupil_center that affect the responses.
        simulated: True if the recording was simulated.
        data_key: the recording's name: animal-session-scan.
    """

    mouse_id: str
    model: str
    n_neurons: int
    image_shape: tuple[int, int, int]
    uses: tuple[str, ...] = ()
    simulated: bool = False
    data_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class MouseDetail(Mouse):
    """A mouse with its statistics and provenance.

    Attributes:
        bundle: the bundle, with its hash.
        image_channels, behavior, pupil_center: the input channels, in order.
        standardized_inputs: True if no statistics are known, so that inputs must be standardised.
        scores: mean test scores over neurons, where known.
        members: number of networks that are averaged.
    """

    bundle: Model
    image_channels: tuple[Channel, ...] = ()
    behavior: tuple[Channel, ...] = ()
    pupil_center: tuple[Channel, ...] = ()
    standardized_inputs: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    members: int = 1
    licence: str = ""
    citation: str = ""

    def channel(self, name: str) -> Channel:
        """The input channel of this name, such as `running_speed` or `pupil_center_x`.

        Raises:
            InvalidArgument: this mouse has no such channel.
        """
        channels = {channel.name: channel for channel in (*self.image_channels, *self.behavior, *self.pupil_center)}
        if name not in channels:
            raise InvalidArgument(
                f"mouse {self.mouse_id!r} has no such channel", got=name, expected=", ".join(channels)
            )
        return channels[name]


@dataclass(frozen=True, eq=False, repr=False)
class NeuronTable:
    """Neurons of one mouse, in the order of the responses.

    Attributes:
        mouse: mouse id.
        model: name of the bundle.
        neuron_ids: (n,) int64, the recording's unit ids.
        coordinates_um: (n, 3) float32, cortical position [um], NaN where unknown.
        response_std: (n,) float32; a raw response is the standardized one times this. NaN where unknown.
        scores: name -> (n,) float32, per-neuron test scores, NaN where unknown.
        total: number of neurons that pass the filters, regardless of `limit`.
        model_hash: hash of the bundle; None from older servers.
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
            f"<NeuronTable: {len(self):,} of {count(self.total, 'neuron')} of mouse {self.mouse!r}, "
            f"model {self.model}; scores: {scores or 'none known'}>"
        )

    def rows(self, rows: npt.NDArray[np.intp]) -> NeuronTable:
        """The neurons at these positions, in this order."""
        return replace(
            self,
            neuron_ids=self.neuron_ids[rows],
            coordinates_um=self.coordinates_um[rows],
            response_std=self.response_std[rows],
            scores={name: score[rows] for name, score in self.scores.items()},
            total=len(rows),
        )

    def _known_scores(self) -> list[tuple[str, npt.NDArray[np.float32]]]:
        return [(name, values) for name, values in self.scores.items() if np.isfinite(values).any()]
