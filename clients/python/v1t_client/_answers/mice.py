"""Mice and neurons: sizes, statistics of the recording, positions and test scores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from v1t_client._answers.prediction import Model, count
from v1t_client._errors import InvalidArgument

__all__ = ["SENSORIUM_BEHAVIOR", "BehaviorState", "Channel", "Mouse", "MouseDetail", "NeuronTable"]

# The behaviour channels of Sensorium 2022, in its order: those that `predict` also takes as keyword arguments.
SENSORIUM_BEHAVIOR: Final = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")


@dataclass(frozen=True)
class Channel:
    """One input channel: its unit, and its statistics over the training trials (None where unknown).

    `image_mean` and `image_contrast` are ranges of an image channel: the smallest and the largest mean, and std over
    pixels, of a training image.
    """

    name: str
    unit: str
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    median: float | None = None
    percentiles: dict[str, float] = field(default_factory=dict)
    image_mean: tuple[float, float] | None = None
    image_contrast: tuple[float, float] | None = None


@dataclass(frozen=True)
class BehaviorState:
    """A named behavioural state of a mouse, such as "rest".

    Attributes:
        name: the argument `state` of `predict`.
        definition: which training trials are in this state, in words.
        trials: how many.
        behavior: median of each behaviour channel over these trials, in the order of `MouseDetail.behavior`.
        pupil_center: median x and y; empty if the recording has none.
    """

    name: str
    definition: str = ""
    trials: int = 0
    behavior: tuple[float, ...] = ()
    pupil_center: tuple[float, ...] = ()


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
        standardized_inputs: True if no statistics are known, so that inputs must be standardised.
        data_key: the recording's name: animal-session-scan.
    """

    mouse_id: str
    model: str
    n_neurons: int
    image_shape: tuple[int, int, int]
    uses: tuple[str, ...] = ()
    simulated: bool = False
    standardized_inputs: bool = False
    data_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class MouseDetail(Mouse):
    """A mouse with its statistics and provenance.

    Attributes:
        bundle: the bundle, with its hash.
        image_channels, behavior, pupil_center: the input channels, in order.
        states: the named states of this mouse, beside "median" and "mean", which every mouse has.
        scores: mean test scores over neurons, where known.
        teacher: of a student, the hashes of the weights that it learned from.
        agreement: of a student, how far it answers like its teacher, such as {"natural_median": 0.98}.
        members: number of networks that are averaged.
    """

    bundle: Model
    image_channels: tuple[Channel, ...] = ()
    behavior: tuple[Channel, ...] = ()
    pupil_center: tuple[Channel, ...] = ()
    states: tuple[BehaviorState, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    teacher: tuple[str, ...] = ()
    agreement: dict[str, float] = field(default_factory=dict)
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

    def state_values(self, state: str) -> dict[str, float]:
        """What a named state is for this mouse: channel -> value, without channels whose value is not known.

        Raises:
            InvalidArgument: this mouse has no such state.
        """
        channels = (*self.behavior, *self.pupil_center)
        if state in ("median", "mean"):
            # Without a median the server uses the mean, and says so in its reply.
            values = [c.mean if state == "mean" or c.median is None else c.median for c in channels]
        else:
            known = {known.name: known for known in self.states}
            if state not in known:
                raise InvalidArgument(
                    f"mouse {self.mouse_id!r} has no such state",
                    got=state,
                    expected=", ".join(["median", "mean", *known]),
                )
            values = [*known[state].behavior, *known[state].pupil_center]
        return {c.name: float(value) for c, value in zip(channels, values, strict=False) if value is not None}


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
        readout_position_px: (n, 2) float32, where each neuron's readout looks: x and y [px of the mouse's images; the
            middle of the top left pixel is (0, 0)] while behaviour and gaze are at their training medians. It can lie
            outside of the image. None where the bundle does not say.
    """

    mouse: str
    model: str
    neuron_ids: npt.NDArray[np.int64]
    coordinates_um: npt.NDArray[np.float32]
    response_std: npt.NDArray[np.float32]
    scores: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    total: int = 0
    model_hash: str | None = None
    readout_position_px: npt.NDArray[np.float32] | None = None

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
            readout_position_px=None if self.readout_position_px is None else self.readout_position_px[rows],
            response_std=self.response_std[rows],
            scores={name: score[rows] for name, score in self.scores.items()},
            total=len(rows),
        )

    def _known_scores(self) -> list[tuple[str, npt.NDArray[np.float32]]]:
        return [(name, values) for name, values in self.scores.items() if np.isfinite(values).any()]
