"""A mouse as a twin knows it: what was recorded from, in which units, with which statistics."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

__all__ = ["PAPER_MICE", "InputStatistics", "Mouse", "paper_mouse_id"]

# Table A.1: data key -> the paper's name. S0 and S1 are the competition's mice.
PAPER_MICE = {
    "26872-17-20": "S0",
    "27204-5-13": "S1",
    "21067-10-18": "A",
    "22846-10-16": "B",
    "23343-5-17": "C",
    "23656-14-22": "D",
    "23964-4-22": "E",
    "25311-10-26": "F",
    "25340-3-19": "G",
    "25704-2-12": "H",
    "25830-10-4": "I",
    "26085-6-3": "J",
    "26142-2-11": "K",
    "26426-18-13": "L",
    "26470-4-5": "M",
    "26644-6-2": "N",
    "26872-21-6": "O",
}


def paper_mouse_id(data_key: str) -> str:
    """The paper's name of a recording, or the data key itself where the paper has none."""
    return PAPER_MICE.get(data_key, data_key)


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """One input over the training trials, in the recording's own units. Scalars or one value per channel.

    `percentiles` maps such as "5" to one value per channel.
    """

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray | None = None
    max: np.ndarray | None = None
    median: np.ndarray | None = None
    percentiles: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Mouse:
    """Everything about a mouse that a twin must know without its recording.

    Attributes:
        image_shape: (C, H, W) of the recording's images.
        neuron_ids: (N,) int64.
        neuron_coordinates: (N, 3) float32, cortical position [um]; NaN where unknown.
        images, behavior, pupil_center: statistics, or None where inputs are standardised already.
        response_mean, response_std: (N,) float32, or None; the std after the reference's floor at 1 % of its mean.
    """

    mouse_id: str
    image_shape: tuple[int, int, int]
    neuron_ids: np.ndarray
    neuron_coordinates: np.ndarray
    data_key: str | None = None
    image_channels: tuple[str, ...] = ("gray",)
    images: InputStatistics | None = None
    behavior: InputStatistics | None = None
    pupil_center: InputStatistics | None = None
    response_mean: np.ndarray | None = None
    response_std: np.ndarray | None = None
    simulated: bool = False
    data_hash: str | None = None

    @property
    def n_neurons(self) -> int:
        return len(self.neuron_ids)

    @property
    def standardized_inputs(self) -> bool:
        """True: no statistics are known, so the twin takes inputs that are standardised already."""
        return self.images is None

    @classmethod
    def without_recording(
        cls, mouse_id: str, image_shape: tuple[int, int, int], n_neurons: int, data_key: str | None = None
    ) -> Mouse:
        """A mouse of which only the weights are known: neurons are numbered, inputs are standardised already."""
        return cls(
            mouse_id=mouse_id,
            data_key=data_key,
            image_shape=image_shape,
            image_channels=channel_names(image_shape[0]),
            neuron_ids=np.arange(n_neurons, dtype=np.int64),
            neuron_coordinates=np.full((n_neurons, 3), np.nan, np.float32),
        )

    def to_json(self) -> dict[str, Any]:
        """What is not an array."""
        return {
            "mouse_id": self.mouse_id,
            "data_key": self.data_key,
            "image_shape": list(self.image_shape),
            "image_channels": list(self.image_channels),
            "simulated": self.simulated,
            "data_hash": self.data_hash,
        }

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays, by flat names."""
        arrays = {"neuron_ids": self.neuron_ids, "neuron_coordinates": self.neuron_coordinates}
        for name in ("response_mean", "response_std"):
            if (value := getattr(self, name)) is not None:
                arrays[name] = value
        for name in ("images", "behavior", "pupil_center"):
            statistics = getattr(self, name)
            if statistics is None:
                continue
            for key in ("mean", "std", "min", "max", "median"):
                if (value := getattr(statistics, key)) is not None:
                    arrays[f"{name}.{key}"] = value
            for key, value in statistics.percentiles.items():
                arrays[f"{name}.percentiles.{key}"] = value
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    @classmethod
    def from_parts(cls, content: dict[str, Any], arrays: dict[str, np.ndarray]) -> Mouse:
        """The inverse of `to_json` and `to_arrays`."""
        channels, height, width = content["image_shape"]
        mouse = cls(
            mouse_id=content["mouse_id"],
            data_key=content["data_key"],
            image_shape=(channels, height, width),
            image_channels=tuple(content["image_channels"]),
            simulated=content["simulated"],
            data_hash=content["data_hash"],
            neuron_ids=arrays["neuron_ids"],
            neuron_coordinates=arrays["neuron_coordinates"],
            response_mean=arrays.get("response_mean"),
            response_std=arrays.get("response_std"),
        )
        statistics = {name: _statistics(arrays, name) for name in ("images", "behavior", "pupil_center")}
        return replace(mouse, **statistics)


def channel_names(n_channels: int) -> tuple[str, ...]:
    """Names of a recording's image channels.

    Dataset F has a UV and a green channel; public code contradicts itself on their order, so none is claimed.
    """
    return ("gray",) if n_channels == 1 else tuple(f"channel_{i}" for i in range(n_channels))


def _statistics(arrays: dict[str, np.ndarray], name: str) -> InputStatistics | None:
    if f"{name}.mean" not in arrays:
        return None
    prefix = f"{name}.percentiles."
    return InputStatistics(
        mean=arrays[f"{name}.mean"],
        std=arrays[f"{name}.std"],
        min=arrays.get(f"{name}.min"),
        max=arrays.get(f"{name}.max"),
        median=arrays.get(f"{name}.median"),
        percentiles={key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)},
    )
