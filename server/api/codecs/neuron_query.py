"""Which neurons: by position in cortex and by test score, from the query of GET /mice/{mouse}/neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from server.bundle.manifest import NeuronTable
from server.errors import InvalidInput, brief

__all__ = ["PARAMETERS", "NeuronQuery"]

_BOUNDS = tuple(f"{axis}_{end}" for axis in "xyz" for end in ("min", "max"))
_DEFAULT_SCORE = "single_trial_correlation"
PARAMETERS = ("model", *_BOUNDS, "score", "score_min", "limit", "offset")


@dataclass(frozen=True)
class NeuronQuery:
    """A selection; what is None or absent does not restrict it."""

    bounds: dict[str, float] = field(default_factory=dict)
    score: str | None = None
    score_min: float | None = None
    limit: int | None = None
    offset: int = 0

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Self:
        """Reads the query string's parameters, `model` aside."""
        bounds = {name: _finite(name, query[name]) for name in _BOUNDS if name in query}
        return cls(
            bounds=bounds,
            score=query.get("score"),
            score_min=_finite("score_min", query["score_min"]) if "score_min" in query else None,
            limit=_count("limit", query["limit"]) if "limit" in query else None,
            offset=_count("offset", query["offset"]) if "offset" in query else 0,
        )

    def select(self, neurons: NeuronTable) -> np.ndarray:
        """Positions of those that match, before limit and offset. What is unknown (NaN) matches no restriction."""
        matches = np.ones(len(neurons), dtype=bool)
        for name, bound in self.bounds.items():
            values = neurons.coordinates[:, "xyz".index(name[0])]
            matches &= values >= bound if name.endswith("min") else values <= bound
        if self.score is not None or self.score_min is not None:
            score = self.score or _DEFAULT_SCORE
            if score not in neurons.scores:
                raise InvalidInput(
                    "there is no such score for this mouse",
                    got=brief(score),
                    expected=" or ".join(neurons.scores) or "no score: none was measured",
                )
            if self.score_min is not None:
                matches &= neurons.scores[score] >= self.score_min
        return np.flatnonzero(matches)

    def answer(self, neurons: NeuronTable) -> dict[str, Any]:
        """The reply's columns."""
        matching = self.select(neurons)
        end = None if self.limit is None else self.offset + self.limit
        chosen = matching[self.offset : end]
        coordinates = neurons.coordinates[chosen]
        return {
            "total": len(matching),
            "neuron_ids": neurons.ids[chosen].tolist(),
            "coordinates_um": [xyz.tolist() if np.isfinite(xyz).all() else None for xyz in coordinates],
            "response_std": np.ascontiguousarray(neurons.response_std[chosen]),  # NaN becomes null
            "scores": {name: np.ascontiguousarray(score[chosen]) for name, score in neurons.scores.items()},
        }


def _finite(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidInput(f"{name} is not a number", got=brief(text), expected="a finite number")
    return value


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidInput(f"{name} is not a count", got=brief(text), expected="a whole number from 0")
    return int(text)
