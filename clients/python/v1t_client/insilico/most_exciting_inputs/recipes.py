"""Recipes for most exciting inputs: the settings of the search, by name.

Pixels are those of the search's grid (see `canvas`). Pixel values are in standard deviations of the training images, 0
at their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from v1t_client._errors import InvalidArgument

__all__ = ["RECIPES", "Constraint", "Recipe", "StepUnit", "recipe"]

Constraint = Literal["norm", "contrast"]
StepUnit = Literal["gradient", "pixel"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Gradient ascent from noise: image + step x blurred gradient, projected onto the constraint, repeated.

    Attributes:
        source: whose procedure it is, and where it differs.
        steps: number of steps.
        first_step, last_step: the step size changes linearly from one to the other.
        step_unit: "gradient": the step size multiplies d response / d pixel; "pixel": it is the mean change of a pixel.
        first_blur, last_blur: std of the Gaussian that blurs the gradient [px], changing linearly; 0: no blur.
        constraint: "norm": the image's L2 norm is `size`; "contrast": its mean is 0 and its std is `size`. Levels
            beyond those of the training images are then clipped.
        size: see `constraint`.
    """

    source: str
    steps: int
    first_step: float
    last_step: float
    step_unit: StepUnit
    first_blur: float
    last_blur: float
    constraint: Constraint
    size: float

    @property
    def is_falling(self) -> bool:
        """Whether steps or blur change, so that the last steps find what the first ones cannot."""
        return self.first_step != self.last_step or self.first_blur != self.last_blur


RECIPES: dict[str, Recipe] = {
    "blur-norm": Recipe(
        source="the common recipe of the `mei` package for mice: plain gradient ascent, blurred gradient, fixed norm",
        steps=256,
        first_step=1.0,
        last_step=1.0,
        step_unit="gradient",
        first_blur=1.0,
        last_blur=1.0,
        constraint="norm",
        size=7.5,
    ),
    "walker2019": Recipe(
        source="Walker et al. 2019 (Nat. Neurosci. 22, 2060): 1,000 steps, step and blur falling, mean and contrast "
        "fixed. Ours: steps of 3 to 0.125 are taken as grey levels, at 60 to a std; the contrast, of the whole image",
        steps=1000,
        first_step=0.05,
        last_step=0.002,
        step_unit="pixel",
        first_blur=1.5,
        last_blur=0.01,
        constraint="contrast",
        size=0.25,
    ),
    "quick": Recipe(
        source="ours, for transformers on a CPU: blur-norm with steps that do not depend on the gradient's length",
        steps=60,
        first_step=0.03,
        last_step=0.002,
        step_unit="pixel",
        first_blur=1.5,
        last_blur=0.8,
        constraint="norm",
        size=7.5,
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        InvalidArgument: there is no such recipe.
    """
    if name not in RECIPES:
        raise InvalidArgument("no such recipe", got=name, expected=", ".join(RECIPES))
    return RECIPES[name]
