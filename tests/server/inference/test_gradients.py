"""Gradients through the exported graphs, against float64 torch autograd and finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from support.golden import WITH_GRADIENTS, load_golden
from support.shared_export import built_once
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_mouse
from torch import nn

from server.errors import InvalidInput, NotFound
from server.inference.engine import Engine, Gradient
from training.checkpoints.ensemble import Combination, Ensemble
from training.checkpoints.importer import import_weights
from training.export import export_bundle
from training.export.bundle import BundleOptions

pytestmark = pytest.mark.slow

# Relative to the largest value of each derivative in several samples: the two numbers of one sample's pupil centre can
# cancel over neurons to nearly nothing, and then float32 torch itself is further off than this.
BOUND = 1e-5
SAMPLES = 4


@dataclass
class Case:
    """An exported ensemble, and the same ensemble in float64."""

    engine: Engine
    exact: Ensemble
    folder: Path

    def inputs(self, mouse_id: str, batch: int, rng: np.random.Generator) -> list[np.ndarray]:
        shape = self.engine.manifest.mice[mouse_id].image_shape
        return [rng.standard_normal((batch, *s)).astype(np.float32) for s in (shape, (3,), (2,))]

    def expected(
        self, mouse_id: str, inputs: list[np.ndarray], weights: np.ndarray, neurons: np.ndarray
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Responses and gradients from autograd, in float64."""
        tensors = [torch.from_numpy(x).double().requires_grad_() for x in inputs]
        response = self.exact(mouse_id, *tensors)[:, torch.from_numpy(neurons)]
        total = (response * torch.from_numpy(weights)).sum()
        gradients = torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
        return response.detach().numpy(), [gradient.numpy() for gradient in gradients]


@pytest.fixture(scope="module", params=[*WITH_GRADIENTS, "ensemble"])
def case(
    request: pytest.FixtureRequest, reference: Path, reference_bundle: Callable[[str], Path], shared_tmp: Path
) -> Case:
    if request.param == "ensemble":  # learned, of different signs
        members = [tiny_checkpoint(tiny_config({"n_blocks": 1}), [tiny_mouse("A")], seed=seed) for seed in range(2)]
        ensemble = Ensemble(members, {"A": Combination((0.9, -0.35), bias=0.2)}).eval()
        folder = shared_tmp / "learned-ensemble"
        built_once(folder, lambda folder: export_bundle(ensemble, folder, options=BundleOptions(licence="MIT")))
    else:
        ensemble, folder = load_golden(reference, request.param).ensemble.eval(), reference_bundle(request.param)
    exact = copy.deepcopy(ensemble).double().requires_grad_(False)
    return Case(Engine.load(folder, provider="cpu", threads=1, max_batch=4), exact, folder)


def assert_close(got: Gradient, response: np.ndarray, gradients: list[np.ndarray]) -> None:
    np.testing.assert_allclose(got.response, response, rtol=0, atol=1e-4)
    for name, one, expected in zip(("image", "behavior", "pupil_center"), got[1:], gradients, strict=True):
        assert one.dtype == np.float32
        assert one.shape == expected.shape
        largest = np.abs(expected).max()
        error = np.abs(one - expected).max()
        assert error <= BOUND * largest, f"{name}: {error:.1e} of {largest:.1e}"


def test_gradients_of_one_image_are_autograds_for_all_neurons(case: Case) -> None:
    rng = np.random.default_rng(0)
    for mouse_id, mouse in case.engine.manifest.mice.items():
        inputs = case.inputs(mouse_id, SAMPLES, rng)
        weights = rng.standard_normal(mouse.n_neurons).astype(np.float32)
        parts = [case.engine.gradient(mouse_id, *(x[i : i + 1] for x in inputs), weights) for i in range(SAMPLES)]
        got = Gradient(*map(np.concatenate, zip(*parts, strict=True)))
        assert_close(got, *case.expected(mouse_id, inputs, weights, np.arange(mouse.n_neurons)))


def test_gradients_are_autograds_for_a_batch_and_some_neurons(case: Case) -> None:
    rng = np.random.default_rng(1)
    for mouse_id, mouse in case.engine.manifest.mice.items():
        inputs = case.inputs(mouse_id, SAMPLES, rng)
        neurons = rng.permutation(mouse.n_neurons)[:5]
        weights = rng.standard_normal((SAMPLES, len(neurons))).astype(np.float32)
        got = case.engine.gradient(mouse_id, *inputs, weights, neurons)
        assert_close(got, *case.expected(mouse_id, inputs, weights, neurons))


def test_the_gradient_of_one_neuron_matches_finite_differences(case: Case) -> None:
    """Along a random direction, in float64 torch. Only the image moves, as a crop that follows the gaze jumps."""
    rng = np.random.default_rng(2)
    mouse_id = next(iter(case.engine.manifest.mice))
    inputs = case.inputs(mouse_id, 1, rng)
    neuron = np.array([3])
    got = case.engine.gradient(mouse_id, *inputs, np.ones(1, np.float32), neuron)
    direction, step = rng.standard_normal(inputs[0].shape), 1e-4
    ends = []
    for sign in (1, -1):
        image, behavior, pupil_center = map(torch.from_numpy, [inputs[0] + sign * step * direction, *inputs[1:]])
        with torch.no_grad():
            ends.append(case.exact(mouse_id, image, behavior.double(), pupil_center.double())[0, 3].item())
    slope = (ends[0] - ends[1]) / (2 * step)
    assert float((got.image * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_the_responses_are_the_predictions(case: Case) -> None:
    rng = np.random.default_rng(3)
    mouse_id = next(iter(case.engine.manifest.mice))
    inputs = case.inputs(mouse_id, 5, rng)  # more than fit one run
    neurons = np.array([4, 0, 4])
    got = case.engine.gradient(mouse_id, *inputs, np.ones(3), neurons)
    np.testing.assert_allclose(got.response, case.engine.predict(mouse_id, *inputs, neurons), rtol=0, atol=1e-5)


def test_wrong_weights_are_refused(case: Case) -> None:
    mouse_id = next(iter(case.engine.manifest.mice))
    inputs = case.inputs(mouse_id, 2, np.random.default_rng(4))
    for weights in (np.ones(3), np.ones((3, 2)), np.array([1.0, np.nan]), np.ones((2, 2, 1))):
        with pytest.raises(InvalidInput, match="weights"):
            case.engine.gradient(mouse_id, *inputs, weights, np.array([0, 1]))


def test_a_bundle_without_gradients_says_so(reference: Path, tmp_path: Path) -> None:
    ensemble = Ensemble([import_weights(reference / "sensorium-pretrained/sensorium_ln_model.pth")])
    manifest = export_bundle(ensemble, tmp_path / "plain", options=BundleOptions(gradients=False))
    assert not manifest.has_gradients
    engine = Engine.load(tmp_path / "plain", provider="cpu", threads=1)
    ((mouse_id, mouse),) = manifest.mice.items()
    with pytest.raises(NotFound, match="exported without gradients"):
        engine.gradient(
            mouse_id, np.zeros((1, *mouse.image_shape)), np.zeros((1, 3)), np.zeros((1, 2)), np.ones(mouse.n_neurons)
        )


def test_kept_heads_give_the_gradients_of_attention() -> None:
    from training.export.modules.gradients import _KnownHeads

    torch.manual_seed(0)
    queries, tokens = (torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (6, 5))
    heads = (queries @ tokens.transpose(1, 2)).softmax(-1) @ tokens
    cotangent = torch.randn_like(heads)
    expected = torch.autograd.grad(heads, (queries, tokens), cotangent)
    got = torch.autograd.grad(_KnownHeads.apply(queries, tokens, heads.detach(), 3), (queries, tokens), cotangent)
    torch.testing.assert_close(got, expected)


def test_a_max_of_slices_is_a_max_pool() -> None:
    from training.export.modules.gradients import _MaxOfSlices

    pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    x = torch.randn(2, 3, 9, 12).relu()
    torch.testing.assert_close(_MaxOfSlices(pool)(x), pool(x))
