"""Receptive fields as they are known after so many images: maps, fitted Gaussians, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from v1t_client.insilico.experiments.receptive_field_figures import size_bias
from v1t_client.insilico.fitting.gaussian import GaussianFit, fit_gaussians
from v1t_client.insilico.stimuli.noise import NoiseSums

__all__ = ["RELIABLE", "MappedFields"]

Array = npt.NDArray[np.float64]
RELIABLE = 6.0  # chance levels; the highest of 2,304 elements without a field is at 3.9
KNOWN = 0.9  # of the neurons with a field


@dataclass(frozen=True, eq=False)
class MappedFields:
    """Lengths are elements of the maps.

    Attributes:
        maps: (n, h, w), covariance of response and noise. scale: (n,), its noise; inf where a neuron does not respond.
        peak: (n,), the highest element of |map| / scale. fit: of a Gaussian to |map| / scale.
        half: (n,), mean of both sigmas with the noise of half as many images; NaN without a reliable field.
        bias, bias_error: of the sizes, relative; see `size_bias`.
    """

    sums: NoiseSums
    maps: Array
    scale: Array
    peak: Array
    fit: GaussianFit
    half: Array
    bias: float
    bias_error: float

    @classmethod
    def of(cls, sums: NoiseSums, chance: Array, *, seed: int, tick: Callable[[int], object]) -> MappedFields:
        maps = sums.weighted_average()
        scale = np.where(chance > 0, chance, np.inf)
        # Scored against chance, which has mean 0: subtracting the map's own mean would bias the surround of a field.
        z = maps / scale[:, None, None]
        peak = np.abs(z).max((1, 2))
        fit = fit_gaussians(np.abs(z), tick=tick)
        half = np.full(len(maps), np.nan)
        if (rows := fit.ok & (peak > RELIABLE)).any():
            rng = np.random.default_rng([seed, sums.n_images])
            noisier = fit_gaussians(np.abs(z[rows] + rng.standard_normal(z[rows].shape)) / np.sqrt(2))
            half[rows] = np.where(noisier.ok, (noisier.major + noisier.minor) / 2, np.nan)
        return cls(sums, maps, scale, peak, fit, half, *size_bias(half, (fit.major + fit.minor) / 2))

    @property
    def fitted(self) -> npt.NDArray[np.bool_]:
        return self.fit.ok & (self.peak > 0)

    @property
    def reliable(self) -> npt.NDArray[np.bool_]:
        return self.fitted & (self.peak > RELIABLE)

    @property
    def center_error(self) -> Array:
        return np.where(self.fitted, self.fit.center_error, np.nan)

    @property
    def size_error(self) -> Array:
        return np.where(self.fitted, self.fit.size_error, np.nan)

    def known(self, tolerance: float | None) -> bool:
        """Whether 9 of 10 neurons with a field are known to this share of their size; False without a field."""
        if tolerance is None or not self.reliable.any():
            return False
        size = (self.fit.major + self.fit.minor) / 2
        bound = tolerance * size
        is_known = (self.center_error <= bound) & (np.hypot(self.size_error, self.bias) <= tolerance)
        return bool(is_known[self.reliable].mean() >= KNOWN)
