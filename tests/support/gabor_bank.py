"""A bank of known Gabor neurons with the interface of the client's `Predictor`, for tests of in-silico experiments.

The drive of a neuron is 1 for its preferred grating at contrast 1, whatever its other parameters:

    even, odd = <image contrast, Gabor and its quadrature>    drive = [even]+ (simple) or sqrt(even^2 + odd^2) (complex)
    response  = (baseline + amplitude drive^n / (drive^n + c50^n) / (1 + suppression surround)) gain(behavior)
    surround  = contrast energy under a Gaussian of surround_sigma outside of the centre's, 1 for a full-field grating
    gain      = exp(running_gain z(speed) + pupil_gain z(dilation))

Written from these formulas, independently of `v1t_client.insilico`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from v1t_client import Channel, Gradient, InvalidArgument, Model, Mouse, MouseDetail, NeuronTable, Prediction

__all__ = ["GaborBank"]

MODEL = Model(name="bank", hash="ba" * 32)
STATISTICS = {
    "pupil_dilation": ("eye-camera px", 40.0, 8.0),
    "pupil_dilation_derivative": ("eye-camera px/s", 0.0, 2.0),
    "running_speed": ("cm/s", 3.0, 5.0),
    "pupil_center_x": ("eye-camera px", 330.0, 10.0),
    "pupil_center_y": ("eye-camera px", 220.0, 6.0),
}


@dataclass(eq=False)
class GaborBank:
    """`n` neurons. Positions and lengths are in pixels, x right, y down; angles in radians."""

    n: int = 24
    shape: tuple[int, int] = (36, 64)
    seed: int = 0
    luminance: float = 110.0
    model: Model = MODEL
    limit: int | None = None  # number of images after which the connection fails
    asked: int = 0  # images so far
    center: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng, n, (H, W) = np.random.default_rng(self.seed), self.n, self.shape
        self.ids = rng.permutation(np.arange(100, 100 + 3 * n))[:n].astype(np.int64)
        self.center = np.stack([rng.uniform(0.3 * W, 0.7 * W, n), rng.uniform(0.35 * H, 0.65 * H, n)], axis=1)
        self.orientation = rng.uniform(0, np.pi, n)
        self.sigma = H / 36 * rng.uniform(2.0, 3.0, n)
        self.frequency = rng.uniform(0.3, 0.45, n) / self.sigma
        self.phase = rng.uniform(0, 2 * np.pi, n)
        self.aspect = np.ones(n)
        self.is_complex = np.ones(n, dtype=bool)
        self.exponent = rng.uniform(1.5, 3.0, n)
        self.c50 = rng.uniform(0.2, 0.5, n)
        self.baseline = rng.uniform(0.0, 0.3, n)
        self.amplitude = rng.uniform(1.0, 3.0, n)
        self.suppression = np.zeros(n)
        self.surround_sigma = 2.5 * self.sigma
        self._filters_of = b""
        self.running_gain = rng.uniform(0.1, 0.4, n) * rng.choice([-1, 1], n)
        self.pupil_gain = rng.uniform(0.05, 0.2, n)
        self.coordinates = rng.uniform(-300, 300, (n, 3)).astype(np.float32)
        self.scores = rng.uniform(0, 0.8, n).astype(np.float32)

    def filters(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(H W, n) each: Gabor, quadrature, surround pool. Computed again only when a parameter has changed."""
        parameters = (self.center, self.orientation, self.sigma, self.frequency, self.phase, self.aspect)
        key = b"".join(values.tobytes() for values in (*parameters, self.surround_sigma))
        if key != self._filters_of:
            self._filters_of, self._filters = key, self._made_filters()
        return self._filters

    def _made_filters(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        H, W = self.shape
        y, x = np.mgrid[:H, :W].reshape(2, -1, 1)  # (H W, 1)
        dx, dy = x - self.center[:, 0], y - self.center[:, 1]
        c, s = np.cos(self.orientation), np.sin(self.orientation)
        a, b = dx * c + dy * s, dy * c - dx * s
        envelope = np.exp(-0.5 * (a**2 + (b / self.aspect) ** 2) / self.sigma**2)
        k = 2 * np.pi * self.frequency
        even, odd = envelope * np.cos(k * a + self.phase), envelope * np.sin(k * a + self.phase)
        # a grating cos(k a + phase) of contrast 1 drives the pair to half the integral of the envelope
        norm = 0.5 * envelope.sum(0)
        pool = np.exp(-0.5 * (dx**2 + dy**2) / self.surround_sigma**2) * (1 - envelope)
        return even / norm, odd / norm, pool / pool.sum(0)

    def responses(self, images: np.ndarray, speed: Any = None, dilation: Any = None) -> np.ndarray:
        """(B, n) of images (B, H, W)."""
        even, odd, pool = self.filters()
        seen = (images.reshape(len(images), -1) / self.luminance - 1).astype(np.float64)
        e, o = seen @ even, seen @ odd
        drive = np.where(self.is_complex, np.hypot(e, o), np.maximum(e, 0))
        surround = np.sqrt(2 * (seen**2 @ pool))
        power = drive**self.exponent
        evoked = self.amplitude * power / (power + self.c50**self.exponent) / (1 + self.suppression * surround)
        gain = np.ones((len(images), self.n))
        for name, value, slope in (
            ("running_speed", speed, self.running_gain),
            ("pupil_dilation", dilation, self.pupil_gain),
        ):
            _, mean, std = STATISTICS[name]
            z = (np.broadcast_to(mean if value is None else value, len(images)) - mean) / std
            gain = gain * np.exp(z[:, None] * slope)
        return (self.baseline + evoked) * gain

    def slopes(self, images: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """d(sum over n of weights (B, n) times responses) / d(image), (B, H, W), at the mean behaviour; by hand."""
        even, odd, pool = self.filters()
        seen = (images.reshape(len(images), -1) / self.luminance - 1).astype(np.float64)
        e, o = seen @ even, seen @ odd
        drive = np.where(self.is_complex, np.hypot(e, o), np.maximum(e, 0))
        surround = np.sqrt(2 * (seen**2 @ pool))
        k, c = self.exponent, self.c50**self.exponent
        saturated = drive**k / (drive**k + c)
        divisor = 1 + self.suppression * surround
        safe = np.maximum(drive, 1e-12)
        d_drive = weights * self.amplitude * c * k * safe ** (k - 1) / (safe**k + c) ** 2 / divisor  # (B, n)
        d_even = d_drive * np.where(self.is_complex, e / safe, e > 0)
        d_odd = d_drive * np.where(self.is_complex, o / safe, 0)
        d_surround = -weights * self.amplitude * saturated * self.suppression / divisor**2
        d_seen = d_even @ even.T + d_odd @ odd.T + 2 * seen * ((d_surround / np.maximum(surround, 1e-12)) @ pool.T)
        return (d_seen / self.luminance).reshape(images.shape)

    # The Predictor

    def predict(
        self,
        mouse: str,
        image: Any,
        *,
        pupil_dilation: Any = None,
        pupil_dilation_derivative: Any = None,
        running_speed: Any = None,
        pupil_center: Any = None,
        neuron_ids: Any = None,
        units: str = "standardized",
        spread: bool = False,
        resize: Any = None,
        model: str | None = None,
        state: str | None = None,
        strict: bool = False,
    ) -> Prediction:
        images = np.asarray(image)
        assert mouse == "BANK"
        assert images.shape[1:] == (1, *self.shape)
        self.asked += len(images)
        if self.limit is not None and self.asked > self.limit:
            from v1t_client import ConnectionFailed

            raise ConnectionFailed("no answer from the bank")
        responses = self.responses(images[:, 0], running_speed, pupil_dilation).astype(np.float32)
        columns = np.arange(self.n)
        if neuron_ids is not None:
            columns = np.array([int(np.flatnonzero(self.ids == i)[0]) for i in neuron_ids])
        left_out = running_speed is None
        assumed = [f"running_speed left out: the training {state or 'median'} was used"] if left_out else []
        return Prediction(
            responses=responses[:, columns],
            neuron_ids=self.ids[columns],
            mouse=mouse,
            units=units,
            model=self.model,
            assumed=tuple(assumed),
            state=state or "median",
        )

    def gradient(self, mouse: str, image: Any, *, weights: Any, neuron_ids: Any = None, **state: Any) -> Gradient:
        assert not {name for name, value in state.items() if value is not None} - {"model", "state"}
        prediction = self.predict(mouse, image, neuron_ids=neuron_ids, state=state.get("state"))
        columns = [int(np.flatnonzero(self.ids == i)[0]) for i in prediction.neuron_ids]
        images = np.asarray(image)
        of_all = np.zeros((len(images), self.n))
        of_all[:, columns] = weights
        return Gradient(
            image=self.slopes(images[:, 0], of_all)[:, None].astype(np.float32),
            behavior=np.zeros((len(images), 3), np.float32),
            pupil_center=np.zeros((len(images), 2), np.float32),
            responses=prediction.responses,
            neuron_ids=prediction.neuron_ids,
            mouse=mouse,
            units=prediction.units,
            model=self.model,
            assumed=prediction.assumed,
        )

    def mice(self) -> list[Mouse]:
        return [self.mouse("BANK")]

    def mouse(self, mouse: str, *, model: str | None = None) -> MouseDetail:
        if mouse != "BANK":
            raise InvalidArgument("no such mouse", got=mouse)
        channels = {
            name: Channel(
                name=name,
                unit=unit,
                mean=mean,
                std=std,
                min=mean - 3 * std,
                max=mean + 3 * std,
                median=mean,
                percentiles={
                    str(p): mean + z * std for p, z in ((5, -1.64), (25, -0.67), (50, 0), (75, 0.67), (95, 1.64))
                },
            )
            for name, (unit, mean, std) in STATISTICS.items()
        }
        return MouseDetail(
            mouse_id="BANK",
            model=self.model.name,
            n_neurons=self.n,
            image_shape=(1, *self.shape),
            uses=("image", "behavior", "pupil_center"),
            bundle=self.model,
            image_channels=(Channel(name="gray", unit="grey level", mean=self.luminance, std=60.0, min=0, max=255),),
            behavior=tuple(channels[name] for name in list(STATISTICS)[:3]),
            pupil_center=tuple(channels[name] for name in list(STATISTICS)[3:]),
        )

    def neurons(self, mouse: str, *, model: str | None = None) -> NeuronTable:
        return NeuronTable(
            mouse=mouse,
            model=self.model.name,
            neuron_ids=self.ids,
            coordinates_um=self.coordinates,
            response_std=np.ones(self.n, dtype=np.float32),
            scores={"single_trial_correlation": self.scores},
            total=self.n,
        )
