"""The interface that experiments run against: `Client`, or any other object with these methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy.typing as npt

from v1t_client._answers.gradient import Gradient
from v1t_client._answers.mice import Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction
from v1t_client._images import Image
from v1t_client._protocol.arguments import GradientOptions, PredictOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DifferentiablePredictor", "Predictor"]


class Predictor(Protocol):
    """Predicts the responses of a mouse's neurons. `Client` is one; so is a bank of known Gabor neurons in a test."""

    def predict(self, mouse: str, image: Image, **options: Unpack[PredictOptions]) -> Prediction:
        """Responses of the neurons of `mouse` to `image`; see `Client.predict` for the options."""
        ...

    def mice(self) -> list[Mouse]:
        """The mice that can be predicted."""
        ...

    def mouse(self, mouse: str, *, model: str | None = None) -> MouseDetail:
        """One mouse: its image size, and the statistics that stimuli are scaled by."""
        ...

    def neurons(self, mouse: str, *, model: str | None = None) -> NeuronTable:
        """All neurons of a mouse, in the order of the responses."""
        ...


class DifferentiablePredictor(Predictor, Protocol):
    """A predictor with gradients, as most exciting inputs need."""

    def gradient(
        self, mouse: str, image: Image, *, weights: npt.ArrayLike, **options: Unpack[GradientOptions]
    ) -> Gradient:
        """The gradient of a weighted sum of responses; see `Client.gradient`."""
        ...
