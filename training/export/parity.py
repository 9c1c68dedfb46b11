"""How far the exported graphs, as the server runs them, are from torch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from server.contract import Manifest, Parity
from server.engine import Engine
from training.ensemble import Ensemble
from training.metadata import InputStatistics
from training.mouse import Mouse

__all__ = ["PARITY_BOUND", "UNMEASURED", "measure_parity", "random_inputs"]

PARITY_BOUND = 1e-4
SAMPLES = 8
# What a manifest says before it was measured; nothing with it is ever written.
UNMEASURED = Parity(max_abs_error=math.inf, bound=PARITY_BOUND, samples=SAMPLES, worst_neuron=0)


def measure_parity(ensemble: Ensemble, folder: Path, manifest: Manifest) -> dict[str, Parity]:
    """Largest absolute difference in responses between the engine and torch, per mouse, on random inputs."""
    engine = Engine(folder, manifest, provider="cpu", threads=None, max_batch=SAMPLES)
    rng = np.random.default_rng(0)
    found = {}
    for mouse in ensemble.mice.values():
        inputs = random_inputs(mouse, SAMPLES, rng)
        with torch.inference_mode():
            expected = ensemble(mouse.mouse_id, *map(torch.from_numpy, inputs)).numpy()
        error = np.abs(engine.predict(mouse.mouse_id, *inputs) - expected).max(axis=0)  # (N,)
        error = np.where(np.isfinite(error), error, math.inf)
        worst = int(error.argmax())
        found[mouse.mouse_id] = Parity(
            max_abs_error=float(error[worst]), bound=PARITY_BOUND, samples=SAMPLES, worst_neuron=worst
        )
    return found


def random_inputs(mouse: Mouse, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian image (n, C, H, W), behavior (n, 3), pupil_center (n, 2), with the mouse's own means and stds."""

    def draw(statistics: InputStatistics | None, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape)
        if statistics is not None:
            per_channel = (-1,) + (1,) * (len(shape) - 2)
            values = values * statistics.std.reshape(per_channel) + statistics.mean.reshape(per_channel)
        return values.astype(np.float32)

    return (
        draw(mouse.images, (n, *mouse.image_shape)),
        draw(mouse.behavior, (n, 3)),
        draw(mouse.pupil_center, (n, 2)),
    )
