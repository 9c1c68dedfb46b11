"""How far the exported graphs, as the server runs them, are from torch."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import torch

from server.contract import Manifest, Parity
from server.engine import Engine
from server.graphs import Graphs
from training.ensemble import Ensemble
from training.metadata import InputStatistics
from training.mouse import Mouse

__all__ = ["PARITY_BOUND", "UNMEASURED", "float64_response", "measure_parity", "random_inputs"]

PARITY_BOUND = 1e-4
SAMPLES = 8
# What a manifest says before it was measured; nothing with it is ever written.
UNMEASURED = Parity(max_abs_error=math.inf, bound=PARITY_BOUND, samples=SAMPLES, worst_neuron=0)


def measure_parity(ensemble: Ensemble, folder: Path, manifest: Manifest) -> dict[str, Parity]:
    """Largest absolute difference in responses between the engine and torch, per mouse, on random inputs.

    Where the two differ by more than the bound, the fault may be torch's own rounding in float32, as of an LN model
    with responses of ten standard deviations: then torch in float64 is the judge.
    """
    engine = Engine(Graphs(folder, manifest, "cpu", "fp32", threads=None), max_batch=SAMPLES)
    rng = np.random.default_rng(0)
    found = {}
    for mouse in ensemble.mice.values():
        inputs = random_inputs(mouse, SAMPLES, rng)
        response = engine.predict(mouse.mouse_id, *inputs)
        tensors = [torch.from_numpy(array) for array in inputs]
        with torch.inference_mode():
            error = _error(response, ensemble(mouse.mouse_id, *tensors))  # (N,)
            if error.max() > PARITY_BOUND:
                error = _error(response, float64_response(ensemble, mouse.mouse_id, tensors))
        worst = int(error.argmax())
        found[mouse.mouse_id] = Parity(
            max_abs_error=float(error[worst]), bound=PARITY_BOUND, samples=SAMPLES, worst_neuron=worst
        )
    return found


def _error(response: np.ndarray, expected: torch.Tensor) -> np.ndarray:
    error = np.abs(response - expected.numpy()).max(axis=0)
    return np.where(np.isfinite(error), error, math.inf)


def float64_response(ensemble: Ensemble, mouse_id: str, inputs: list[torch.Tensor]) -> torch.Tensor:
    """(B, N) float64. The stem stays in float32: where it crops, float64 could round to another pixel."""
    members = []
    for member in ensemble.members:
        image, behavior, pupil_center = member.twin.stem(mouse_id, *inputs)
        twin = copy.deepcopy(member.twin).double()
        feature_map = twin.core(image.double(), behavior.double(), twin.mouse_index(mouse_id, image))
        members.append(twin.read_out(mouse_id, feature_map, pupil_center.double()))
    return ensemble.combine(mouse_id, torch.stack(members))


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
