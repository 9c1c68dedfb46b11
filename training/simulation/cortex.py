"""Simulated neurons of visual cortex with known parameters.

A neuron's drive is a Gabor filter's response to the image, divided by the local contrast. Pupil dilation and running
speed scale the response, and the receptive field moves with the eye:

    even, odd = <image shifted by the gaze, Gabor>               contrast of the image, (pixel - 110) / 60
    drive     = [even]+ (simple) or sqrt(even^2 + odd^2) (complex), over (semisaturation + local contrast)
    expected  = noise_floor + (baseline + amplitude drive^exponent) exp(pupil_gain d + running_gain s)
    response  = half-normal noise with mean noise_floor + gamma noise with variance fano x mean

`Cortex.expected_responses` is the best prediction that any model can make.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from training.simulation.stimuli import MEAN_LUMINANCE

__all__ = ["Cortex", "load_cortex"]

CONTRAST = 60.0  # grey levels, about the std of natural images
GRID_ROWS = 36  # filters work on block means with about this many rows, like the published models
COMPLEX_SHARE, SUPPRESSED_SHARE, UNRESPONSIVE_SHARE = 0.35, 0.25, 0.05
CORTEX_UM = 350.0  # half the side of the imaged field
RUNNING_HALF, RUNNING_REST = 8.0, 0.2  # [cm/s] at which running's effect saturates; its typical value, subtracted
FLOOR_SHARE = 0.1  # share of the noise variance that does not depend on the response
HALF_NORMAL_MEAN, HALF_NORMAL_VARIANCE = np.sqrt(2 / np.pi), 1 - 2 / np.pi


@dataclass(frozen=True, eq=False)
class Cortex:
    """The neurons of one mouse. Positions and lengths are pixels of the recording's own images; x right, y down.

    Attributes:
        image_shape: (C, H, W).
        coordinates: (N, 3) cortical position [um].
        center: (N, 2) receptive field centre (x, y) [px] at the resting gaze; pixel (0, 0) has its middle at 0.
        orientation: (N,) [rad, 0 to pi], the direction along which the Gabor's wave runs; its bars are perpendicular:
            g = exp(-a^2 / 2 sigma^2 - b^2 / 2 (aspect sigma)^2) cos(2 pi frequency a + phase),
            a = (x - cx) cos(orientation) + (y - cy) sin(orientation), b = (y - cy) cos(..) - (x - cx) sin(..).
        frequency: (N,) [cycles/px]. phase: (N,) [rad]. sigma: (N,) [px]. aspect: (N,) length over width.
        channel_weights: (N, C), sum 1.
        is_complex, responsive: (N,) bool; a neuron that is not responsive has amplitude and gains 0.
        semisaturation, exponent, baseline, amplitude, fano, noise_floor: (N,).
        pupil_gain: (N,) per std of dilation. running_gain: (N,) negative: suppressed by running.
        gaze_gain: (2, 2) receptive field shift [px] = gaze_gain @ (pupil_center - gaze_rest).
        gaze_rest: (2,) [eye-camera px]. dilation_scale: (2,) mean and std of dilation [eye-camera px].
    """

    image_shape: np.ndarray
    coordinates: np.ndarray
    center: np.ndarray
    orientation: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray
    sigma: np.ndarray
    aspect: np.ndarray
    channel_weights: np.ndarray
    is_complex: np.ndarray
    responsive: np.ndarray
    semisaturation: np.ndarray
    exponent: np.ndarray
    baseline: np.ndarray
    amplitude: np.ndarray
    fano: np.ndarray
    noise_floor: np.ndarray
    pupil_gain: np.ndarray
    running_gain: np.ndarray
    gaze_gain: np.ndarray
    gaze_rest: np.ndarray
    dilation_scale: np.ndarray

    @classmethod
    def grow(cls, n_neurons: int, *, image_shape: tuple[int, int, int], rng: np.random.Generator) -> Cortex:
        """Draws neurons. `calibrated` then sets amplitudes and noise from the images that they see."""
        N, (C, H, W) = n_neurons, image_shape
        scale = H / 144  # lengths below are px of 144 rows, about 0.5 degrees each
        coordinates = rng.uniform(-CORTEX_UM, CORTEX_UM, (N, 3))
        coordinates[:, 2] = rng.choice(np.arange(150, 400, 25), N)  # imaging planes below the surface
        sigma = scale * np.clip(rng.lognormal(np.log(11), 0.22, N), 6, 18)
        cycles = np.clip(rng.lognormal(np.log(0.27), 0.25, N), 0.14, 0.5)  # frequency x sigma: about 1.5 octaves wide
        suppressed = rng.random(N) < SUPPRESSED_SHARE
        responsive = rng.random(N) >= UNRESPONSIVE_SHARE
        running_gain = np.where(suppressed, -1, 1) * np.clip(rng.normal(0.6, 0.2, N), 0.2, 1.2)
        ones = np.ones(N)
        return cls(
            image_shape=np.array(image_shape),
            coordinates=coordinates,
            center=_retinotopy(coordinates, H, W, rng) + rng.normal(0, 3 * scale, (N, 2)),
            orientation=rng.uniform(0, np.pi, N),
            frequency=cycles / sigma,
            phase=rng.uniform(0, 2 * np.pi, N),
            sigma=sigma,
            aspect=rng.uniform(1, 1.5, N),
            channel_weights=rng.dirichlet(np.full(C, 2.0), N),
            is_complex=rng.random(N) < COMPLEX_SHARE,
            responsive=responsive,
            semisaturation=rng.uniform(0.2, 0.5, N),
            exponent=rng.uniform(1.0, 1.6, N),
            baseline=0 * ones,
            amplitude=ones,
            fano=ones,
            noise_floor=0 * ones,
            pupil_gain=responsive * np.clip(rng.normal(0.12, 0.08, N), -0.1, 0.3),
            running_gain=responsive * running_gain,
            gaze_gain=scale * (np.diag([0.6, 0.6]) + rng.normal(0, 0.08, (2, 2))),
            gaze_rest=np.zeros(2),
            dilation_scale=np.array([40.0, 8.0]),
        )

    @property
    def n_neurons(self) -> int:
        return len(self.orientation)

    def drive(self, images: np.ndarray, pupil_center: np.ndarray) -> np.ndarray:
        """(T, N) the drive of the image. images: (T, C, H, W) grey levels; pupil_center: (T, 2)."""
        even, odd, pool = self.filters()
        shifts = (pupil_center - self.gaze_rest) @ self.gaze_gain.T  # (T, 2) px
        seen = np.stack([self._grid(_moved(image, *shift)) for image, shift in zip(images, shifts, strict=True)])
        seen = ((seen - MEAN_LUMINANCE) / CONTRAST).reshape(len(images), -1)  # (T, C h w)
        wave = seen @ even
        linear = np.where(self.is_complex, np.hypot(wave, seen @ odd), np.maximum(wave, 0))  # (T, N)
        contrast = np.sqrt(np.maximum(seen**2 @ pool - (seen @ pool) ** 2, 0))
        return linear / (self.semisaturation + contrast)

    def gain(self, behavior: np.ndarray) -> np.ndarray:
        """(T, N) factor from behavior (T, 3): dilation, its derivative (has no effect), speed."""
        mean, std = self.dilation_scale
        dilation = (behavior[:, :1] - mean) / std  # (T, 1)
        running = np.tanh(behavior[:, 2:] / RUNNING_HALF) - RUNNING_REST
        return np.exp(self.pupil_gain * dilation + self.running_gain * running)

    def expected_responses(self, images: np.ndarray, behavior: np.ndarray, pupil_center: np.ndarray) -> np.ndarray:
        """(T, N) float32 mean over noise, which a perfect model predicts."""
        return self.combine(self.drive(images, pupil_center), behavior)

    def combine(self, drive: np.ndarray, behavior: np.ndarray) -> np.ndarray:
        evoked = self.baseline + self.amplitude * drive**self.exponent
        return (self.noise_floor + evoked * self.gain(behavior)).astype(np.float32)

    def respond(self, expected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(T, N) float32 noisy responses around the expected ones: not negative, many near zero, few large."""
        evoked = np.maximum(expected - self.noise_floor, 0)
        counts = rng.gamma(evoked / self.fano + 1e-9) * self.fano
        floor = np.abs(rng.normal(size=expected.shape)) * (self.noise_floor / HALF_NORMAL_MEAN)
        return (counts + floor).astype(np.float32)

    def calibrated(self, drive: np.ndarray, behavior: np.ndarray, rng: np.random.Generator) -> Cortex:
        """Sets amplitudes and noise so that rates and noise ceilings over these trials are realistic.

        The ceiling of a neuron is the correlation between expected and recorded single trials. It is drawn around 0.63
        and determines the noise: Var(noise) = Var(expected) (1 / ceiling^2 - 1).
        """
        N = self.n_neurons
        mean_response = rng.lognormal(np.log(4), 0.5, N)
        ceiling = np.clip(rng.normal(0.63, 0.1, N), 0.3, 0.9)
        modulation = self.gain(behavior)
        driven = (drive**self.exponent * modulation).mean(0)
        share = np.where(self.responsive, rng.uniform(0.8, 0.95, N), 0)  # share of the mean that the image evokes
        tuned = replace(
            self,
            baseline=(1 - share) * mean_response / modulation.mean(0),
            amplitude=share * mean_response / driven,
        )
        evoked = tuned.combine(drive, behavior).astype(np.float64)
        noise = np.where(self.responsive, evoked.var(0) * (ceiling**-2 - 1), mean_response**2)
        spread = np.sqrt(FLOOR_SHARE * noise / HALF_NORMAL_VARIANCE)
        return replace(tuned, fano=(1 - FLOOR_SHARE) * noise / evoked.mean(0), noise_floor=spread * HALF_NORMAL_MEAN)

    def filters(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(C h w, N) each: the Gabor, the Gabor a quarter wave further, and the contrast pool (of twice the size)."""
        _, H, W = self.image_shape.tolist()
        f = _block(H, W)
        y, x = np.meshgrid(*((np.arange(n // f) + 0.5) * f - 0.5 for n in (H, W)), indexing="ij")  # px of the image
        dx, dy = x.reshape(-1, 1) - self.center[:, 0], y.reshape(-1, 1) - self.center[:, 1]  # (h w, N)
        along = dx * np.cos(self.orientation) + dy * np.sin(self.orientation)
        across = dy * np.cos(self.orientation) - dx * np.sin(self.orientation)
        envelope = np.exp(-0.5 * (along**2 + (across / self.aspect) ** 2) / self.sigma**2)
        wave = 2 * np.pi * self.frequency * along + self.phase
        even, odd = (_balanced(envelope, np.cos(wave + quarter)) for quarter in (0, -np.pi / 2))
        pool = np.exp(-0.5 * (dx**2 + dy**2) / (2 * self.sigma) ** 2)
        pool /= pool.sum(0)
        channels = self.channel_weights.T[:, None, :]  # (C, 1, N)
        even, odd, pool = ((channels * kernel).reshape(-1, self.n_neurons) for kernel in (even, odd, pool))
        return even, odd, pool

    def _grid(self, image: np.ndarray) -> np.ndarray:
        """(C, h, w) block means of (C, H, W)."""
        C, H, W = image.shape
        f = _block(H, W)
        return image.reshape(C, H // f, f, W // f, f).mean((2, 4))

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def load_cortex(path: Path) -> Cortex:
    """Reads the neurons of a `simulated_truth.npz`."""
    with np.load(path) as truth:
        return Cortex(**{field.name: truth[field.name] for field in fields(Cortex)})


def _block(H: int, W: int) -> int:
    """Side of the blocks for block means: 4 for 144x256, 1 for 36x64."""
    f = max(H // GRID_ROWS, 1)
    return f if H % f == 0 and W % f == 0 else 1


def _retinotopy(coordinates: np.ndarray, H: int, W: int, rng: np.random.Generator) -> np.ndarray:
    """(N, 2) smooth map from cortex to image: a rotated, mirrored, slightly bent plane over the middle half."""
    u, v = (coordinates[:, :2] / CORTEX_UM).T  # -1 to 1
    angle = rng.uniform(-0.4, 0.4)
    u, v = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)
    v = v * rng.choice([-1, 1])  # lens and window differ between experiments
    bend = rng.uniform(-0.12, 0.12, 2)
    x = W / 2 * (1 + 0.5 * u + bend[0] * u * v)
    y = H / 2 * (1 + 0.5 * v + bend[1] * (u**2 - 0.33))
    return np.stack([x, y], axis=1) - 0.5


def _balanced(envelope: np.ndarray, wave: np.ndarray) -> np.ndarray:
    """A filter with sum 0, whose absolute weights sum to 1."""
    kernel = envelope * (wave - (envelope * wave).sum(0) / envelope.sum(0))
    return kernel / np.abs(kernel).sum(0)


def _moved(image: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """(C, H, W) the image at (x + dx, y + dy), bilinear, with repeated edges: moves receptive fields by (dx, dy)."""
    moved = image.astype(np.float32)
    for axis, shift in ((1, dy), (2, dx)):
        whole = int(np.floor(shift))
        part = np.float32(shift - whole)
        places = np.arange(image.shape[axis]) + whole
        last = image.shape[axis] - 1
        near = moved.take(np.clip(places, 0, last), axis)
        moved = near + part * (moved.take(np.clip(places + 1, 0, last), axis) - near)
    return moved
