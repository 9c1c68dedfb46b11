"""Query strings: which model, and which neurons, by position in cortex and by test score."""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from starlette.requests import Request

from server.api.codecs.parsing.validation import validated
from server.bundle.neurons import NeuronTable
from server.errors import InvalidInput, brief

__all__ = ["MouseQuery", "NeuronQuery", "NoQuery", "read_query"]

Q = TypeVar("Q", bound="NoQuery")

_POSITION = "cortical position in um; neurons without one do not match"


class NoQuery(BaseModel):
    """The query of a route that takes no parameters."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class MouseQuery(NoQuery):
    model: str | None = Field(default=None, description="the bundle's name, where several hold this mouse")


class NeuronQuery(MouseQuery):
    """A selection of neurons; parameters that are left out do not restrict it."""

    x_min: FiniteFloat | None = Field(default=None, description=_POSITION)
    x_max: FiniteFloat | None = Field(default=None, description=_POSITION)
    y_min: FiniteFloat | None = Field(default=None, description=_POSITION)
    y_max: FiniteFloat | None = Field(default=None, description=_POSITION)
    z_min: FiniteFloat | None = Field(default=None, description=_POSITION)
    z_max: FiniteFloat | None = Field(default=None, description=_POSITION)
    score: str = "single_trial_correlation"
    score_min: FiniteFloat | None = Field(default=None, description="of that score")
    limit: int | None = Field(default=None, ge=0)
    offset: int = Field(default=0, ge=0)

    def select(self, neurons: NeuronTable) -> np.ndarray:
        """Positions of the neurons that match, before limit and offset. An unknown value (NaN) does not match."""
        matches = np.ones(len(neurons), dtype=bool)
        for column, axis in zip(neurons.coordinates.T, "xyz", strict=True):
            if (least := getattr(self, f"{axis}_min")) is not None:
                matches &= column >= least
            if (most := getattr(self, f"{axis}_max")) is not None:
                matches &= column <= most
        if self.model_fields_set & {"score", "score_min"} and self.score not in neurons.scores:
            raise InvalidInput(
                "there is no such score for this mouse",
                got=brief(self.score),
                expected=" or ".join(neurons.scores) or "no score: none was measured",
            )
        if self.score_min is not None:
            matches &= neurons.scores[self.score] >= self.score_min
        return np.flatnonzero(matches)

    def columns(self, neurons: NeuronTable) -> dict[str, Any]:
        """The reply's columns."""
        matching = self.select(neurons)
        chosen = matching[self.offset :][: self.limit]
        coordinates, looks_at = neurons.coordinates[chosen], neurons.readout_position
        return {
            "total": len(matching),
            "neuron_ids": neurons.ids[chosen].tolist(),
            "coordinates_um": [xyz.tolist() if np.isfinite(xyz).all() else None for xyz in coordinates],
            "readout_position_px": None if looks_at is None else np.ascontiguousarray(looks_at[chosen]),
            "response_std": np.ascontiguousarray(neurons.response_std[chosen]),  # NaN becomes null
            "scores": {name: np.ascontiguousarray(score[chosen]) for name, score in neurons.scores.items()},
        }


def read_query(request: Request, model: type[Q]) -> Q:
    """The query's parameters; unknown and repeated ones are refused."""
    given = request.query_params.multi_items()
    for name, count in Counter(name for name, _ in given).items():
        if name not in model.model_fields:
            expected = ", ".join(model.model_fields) or "none"
            raise InvalidInput("unknown query parameter", got=brief(name), expected=expected)
        if count > 1:
            raise InvalidInput(f"{name} is given twice", expected="one value")
    return validated(model, dict(given))
