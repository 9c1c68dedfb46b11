"""The seam for experiments: whatever answers `predict` can be experimented on, a server or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy.typing as npt

from v1t_client._answers.gradient import Gradient
from v1t_client._answers.mice import Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction
from v1t_client._images import Image
from v1t_client._protocol.requests import Resize, Units

__all__ = ["DifferentiablePredictor", "Predictor"]


class Predictor(Protocol):
    """Answers what the neurons of a mouse would do. `Client` is one; so is a bank of known Gabor neurons in a test."""

    def predict(
        self,
        mouse: str,
        image: Image,
        *,
        pupil_dilation: npt.ArrayLike | None = None,
        pupil_dilation_derivative: npt.ArrayLike | None = None,
        running_speed: npt.ArrayLike | None = None,
        pupil_center: npt.ArrayLike | None = None,
        neuron_ids: Sequence[int] | npt.ArrayLike | None = None,
        units: Units = "standardized",
        spread: bool = False,
        resize: Resize | None = None,
        model: str | None = None,
    ) -> Prediction:
        """Responses of the neurons of `mouse` to `image`; see `Client.predict`."""
        ...

    def mice(self) -> list[Mouse]:
        """The mice that can be asked about."""
        ...

    def mouse(self, mouse: str, *, model: str | None = None) -> MouseDetail:
        """One mouse: image size, and the statistics that experiments are scaled by."""
        ...

    def neurons(self, mouse: str, *, model: str | None = None) -> NeuronTable:
        """All neurons of a mouse, in the order of the responses."""
        ...


class DifferentiablePredictor(Predictor, Protocol):
    """A predictor that also says how responses change with the image, which most exciting inputs need."""

    def gradient(
        self,
        mouse: str,
        image: Image,
        *,
        weights: npt.ArrayLike,
        pupil_dilation: npt.ArrayLike | None = None,
        pupil_dilation_derivative: npt.ArrayLike | None = None,
        running_speed: npt.ArrayLike | None = None,
        pupil_center: npt.ArrayLike | None = None,
        neuron_ids: Sequence[int] | npt.ArrayLike | None = None,
        units: Units = "standardized",
        resize: Resize | None = None,
        model: str | None = None,
    ) -> Gradient:
        """The derivative of a weighted sum of responses; see `Client.gradient`."""
        ...
