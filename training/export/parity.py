"""Parity: the difference between the exported graphs, as the server runs them, and torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from server.bundle.manifest import GradientParity, Manifest, Parity
from server.inference.engine import Engine, Gradient
from server.inference.graph_loader import GraphLoader
from training.checkpoints.ensemble import Ensemble
from training.data.metadata import InputStatistics
from training.data.mouse import Mouse

__all__ = [
    "PARITY_BOUND",
    "UNMEASURED",
    "float64_response",
    "measure_gradient_parity",
    "measure_parity",
    "open_engine",
    "random_inputs",
]

PARITY_BOUND = 1e-4
SAMPLES = 8
GRADIENT_SAMPLES = 2  # a gradient costs about four predictions
# Placeholder before parity is measured; it is never written.
UNMEASURED = Parity(max_abs_error=math.inf, bound=PARITY_BOUND, samples=SAMPLES, worst_neuron=0)


def open_engine(folder: Path, manifest: Manifest, *, max_batch: int = SAMPLES, threads: int | None = None) -> Engine:
    """The engine that a server would use for this bundle on a CPU; by default with a thread per physical core."""
    return Engine(GraphLoader(folder, manifest, folder, "cpu", "fp32", threads=threads), max_batch=max_batch)


def measure_parity(ensemble: Ensemble, engine: Engine) -> dict[str, Parity]:
    """Largest absolute difference in responses between the engine and torch, per mouse, on random inputs.

    If they differ by more than the bound, the reason may be torch's rounding in float32, for example for an LN model
    with responses of ten standard deviations. Then the engine is compared with torch in float64.
    """
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


def measure_gradient_parity(ensemble: Ensemble, engine: Engine) -> dict[str, GradientParity]:
    """Largest relative difference in derivatives between the engine and torch's autograd, per mouse.

    If they differ by more than the bound, the engine is compared with torch in float64: a derivative by the pupil
    centre is a sum over all neurons that nearly cancels, so float32 is inaccurate.
    """
    rng = np.random.default_rng(1)
    found = {}
    for mouse in ensemble.mice.values():
        inputs = random_inputs(mouse, GRADIENT_SAMPLES, rng)
        weights = rng.standard_normal((GRADIENT_SAMPLES, mouse.n_neurons)).astype(np.float32)
        gradient = engine.gradient(mouse.mouse_id, *inputs, weights)

        responses = [
            lambda *tensors: ensemble(mouse.mouse_id, *tensors),  # noqa: B023
            lambda *tensors: float64_response(ensemble, mouse.mouse_id, list(tensors)),  # noqa: B023
        ]
        error = math.inf
        for response in responses:
            error = min(error, _gradient_error(gradient, response, inputs, weights))
            if error <= PARITY_BOUND:
                break
        found[mouse.mouse_id] = GradientParity(max_relative_error=error, bound=PARITY_BOUND, samples=GRADIENT_SAMPLES)
    return found


def _gradient_error(
    gradient: Gradient, respond: Callable[..., torch.Tensor], inputs: Sequence[np.ndarray], weights: np.ndarray
) -> float:
    """The largest difference from autograd of `respond`, relative to the largest derivative of the same input."""
    tensors = [torch.from_numpy(array).requires_grad_() for array in inputs]
    total = (respond(*tensors) * torch.from_numpy(weights)).sum()
    expected = torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
    errors = [0.0]
    for got, exact in zip(gradient[1:], expected, strict=True):
        difference, largest = np.abs(got - exact.numpy()).max(), np.abs(exact.numpy()).max()
        errors.append(float(difference / largest) if largest > 0 else (math.inf if difference > 0 else 0.0))
    return max(error if math.isfinite(error) else math.inf for error in errors)


def _error(response: np.ndarray, expected: torch.Tensor) -> np.ndarray:
    error = np.abs(response - expected.numpy()).max(axis=0)
    return np.where(np.isfinite(error), error, math.inf)


def float64_response(ensemble: Ensemble, mouse_id: str, inputs: list[torch.Tensor]) -> torch.Tensor:
    """(B, N) float64. The stem runs in float32, as in float64 the crop could round to another pixel."""
    members = []
    for member in ensemble.members:
        image, behavior, pupil_center = member.twin.stem(mouse_id, *inputs)
        twin = copy.deepcopy(member.twin).double()
        feature_map = twin.core(image.double(), behavior.double(), twin.mouse_index(mouse_id, image))
        members.append(twin.read_out(mouse_id, feature_map, pupil_center.double()))
    return ensemble.combine(mouse_id, torch.stack(members))


def random_inputs(mouse: Mouse, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian image (n, C, H, W), behavior (n, K) and pupil_center (n, 2), with the mouse's means and stds."""

    def draw(statistics: InputStatistics | None, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape)
        if statistics is not None:
            per_channel = (-1,) + (1,) * (len(shape) - 2)
            values = values * statistics.std.reshape(per_channel) + statistics.mean.reshape(per_channel)
        return values.astype(np.float32)

    return (
        draw(mouse.images, (n, *mouse.image_shape)),
        draw(mouse.behavior, (n, mouse.n_behavior)),
        draw(mouse.pupil_center, (n, 2)),
    )
