"""What the types of requests and replies have in common: words, arrays of numbers, and which fields they may have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

__all__ = [
    "Behavior",
    "ClosedModel",
    "Filled",
    "Pairs",
    "PerImage",
    "Plane",
    "RequestModel",
    "Resize",
    "Row",
    "State",
    "Units",
]

Units = Literal["standardized", "raw"]
Resize = Literal["fit", "fill", "crop"]
State = Literal["median", "mean", "rest", "running"]

Row = list[float]
Plane = list[Row]
PerImage = Annotated[float | list[float] | None, SkipValidation]
Behavior = Annotated[dict[str, float | list[float]] | None, SkipValidation]
Pairs = Annotated[list[float] | list[list[float]] | None, SkipValidation]


class ClosedModel(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class RequestModel(ClosedModel):
    """Checked as it is documented, by `validation.validated`. Fields that hold arrays have a reader of their own."""

    model_config = ConfigDict(strict=True, frozen=True)  # pydantic copies a default that is not frozen for each request


class Filled(RequestModel):
    state: State = Field(
        default="median",
        description="what fills in behaviour values and the pupil centre that are left out: the median or mean of the "
        "training trials, or the medians of those at rest or running, as listed by GET /mice/{mouse}",
    )
    strict: bool = Field(
        default=False, description="refuse inputs outside of what was recorded, instead of adding a note to the reply"
    )
