"""The geometry of the recording's monitor, which converts degrees of visual angle to pixels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument

__all__ = ["Monitor"]

_FORM = "WIDTHxHEIGHT@DISTANCE in cm, such as 56.5x31.8@15"
_SQUARE = 0.05  # how far from square pixels may be, because image sizes are whole numbers


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """A flat screen, perpendicular to the line from the eye to its centre, filled by an image.

    Degrees are converted as at the centre of the screen, the point closest to the eye: 1 degree is
    `distance_cm tan(1 deg) / pixel_cm` pixels there, and by convention everywhere (`pixels_per_degree`). On a close,
    flat screen the same number of pixels covers a smaller angle towards the edges; `angles` gives the true angles.

    Attributes:
        width_cm, height_cm: size of the area that the recording's images filled.
        distance_cm: from the eye to the centre of the screen.
        width_px, height_px: size of those images; None until it is known (`fitted`).
    """

    width_cm: float
    height_cm: float
    distance_cm: float
    width_px: int | None = None
    height_px: int | None = None

    def __post_init__(self) -> None:
        for name in ("width_cm", "height_cm", "distance_cm", "width_px", "height_px"):
            value = getattr(self, name)
            if value is None and name.endswith("px"):
                continue
            if not isinstance(value, (int, float)) or not (0 < value < math.inf):
                raise InvalidArgument(f"the monitor's {name} is not a length", got=repr(value), expected="above 0")
        if (self.width_px is None) != (self.height_px is None):
            raise InvalidArgument("the monitor has only one of width_px and height_px", expected="both or neither")

    @classmethod
    def parse(cls, text: str) -> Monitor:
        """Reads `56.5x31.8@15`: width x height @ distance, in cm.

        >>> Monitor.parse("56.5x31.8@15").distance_cm
        15.0
        """
        number = r"(\d+(?:\.\d+)?)"
        found = re.fullmatch(rf"{number}\s*x\s*{number}\s*(?:cm)?\s*@\s*{number}\s*(?:cm)?", text.strip())
        if not found:
            raise InvalidArgument("the monitor cannot be read", got=repr(text), expected=_FORM)
        width, height, distance = map(float, found.groups())
        return cls(width_cm=width, height_cm=height, distance_cm=distance)

    def fitted(self, height_px: int, width_px: int) -> Monitor:
        """This monitor with images of this size.

        Raises:
            InvalidArgument: pixels would not be square, or the monitor was described for images of another size.
        """
        if self.width_px is not None and (self.width_px, self.height_px) != (width_px, height_px):
            raise InvalidArgument(
                "the monitor was described for images of another size",
                got=f"{self.height_px} x {self.width_px} px",
                expected=f"{height_px} x {width_px} px (H x W)",
            )
        across, down = self.width_cm / width_px, self.height_cm / height_px
        if abs(math.log(across / down)) > _SQUARE:
            raise InvalidArgument(
                f"images of {height_px} x {width_px} px would not have square pixels on this monitor",
                got=f"{across:.4g} x {down:.4g} cm",
                expected="a lit area of the images' proportions",
                hint="Width comes first: " + _FORM,
            )
        return replace(self, width_px=width_px, height_px=height_px)

    @property
    def pixel_cm(self) -> float:
        """The side of a pixel in cm."""
        if self.width_px is None or self.height_px is None:
            raise InvalidArgument("the monitor's pixels are not known yet", hint="monitor.fitted(height_px, width_px)")
        return math.sqrt(self.width_cm / self.width_px * self.height_cm / self.height_px)

    @property
    def pixels_per_degree(self) -> float:
        """At the centre of the screen, and by convention everywhere."""
        return self.distance_cm * math.tan(math.radians(1.0)) / self.pixel_cm

    def pixels(self, degrees: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Converts lengths from degrees to pixels."""
        return np.asarray(degrees, dtype=np.float64) * self.pixels_per_degree

    def degrees(self, pixels: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Converts lengths from pixels to degrees."""
        return np.asarray(pixels, dtype=np.float64) / self.pixels_per_degree

    def angles(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The true azimuth (right) and elevation (up), degrees, of image positions (x right, y down, pixels)."""
        assert self.width_px is not None
        assert self.height_px is not None
        right = (np.asarray(x, dtype=np.float64) - (self.width_px - 1) / 2) * self.pixel_cm
        up = ((self.height_px - 1) / 2 - np.asarray(y, dtype=np.float64)) * self.pixel_cm
        azimuth = np.degrees(np.arctan2(right, self.distance_cm))
        elevation = np.degrees(np.arctan2(up, np.hypot(right, self.distance_cm)))
        return azimuth, elevation

    def to_dict(self) -> dict[str, Any]:
        """JSON for a receipt, including the conversion that was used."""
        content: dict[str, Any] = {
            name: getattr(self, name) for name in ("width_cm", "height_cm", "distance_cm", "width_px", "height_px")
        }
        if self.width_px is not None:
            content["pixels_per_degree"] = self.pixels_per_degree
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Monitor:
        return cls(**{name: value for name, value in content.items() if name != "pixels_per_degree"})
