"""Every folder of the reference, exported and run by the engine: what the reference code gave, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.golden import CASES, RUNS
from support.reference_error import assert_the_references, load

from server.bundle.manifest import load_manifest
from server.inference.engine import Engine
from training.export import export_bundle
from training.export.bundle import BundleOptions
from training.export.graphs.forward import has_attention
from training.export.parity import PARITY_BOUND

pytestmark = pytest.mark.slow

BOUND = 1e-5


class Exported:
    """A case's golden outputs and its bundle, loaded."""

    def __init__(self, reference: Path, case: str, folder: Path) -> None:
        self._reference = reference
        self._case = case
        self.golden = load(reference, case)
        self.folder = folder
        self.engine = Engine.load(folder, provider="cpu", threads=1, max_batch=4)  # fewer than there are images
        self.manifest = self.engine.manifest

    def check(self, mouse_id: str, response: np.ndarray, rows: slice, neurons: Any = slice(None)) -> None:
        assert_the_references(self._reference, self._case, "response", mouse_id, response, rows, neurons)


@pytest.fixture(scope="module", params=CASES)
def exported(request: pytest.FixtureRequest, reference: Path, reference_bundle: Callable[[str], Path]) -> Exported:
    return Exported(reference, request.param, reference_bundle(request.param))


def test_responses_are_the_references(exported: Exported) -> None:
    golden = exported.golden
    for mouse_id in golden.ensemble.mice:
        exported.check(mouse_id, exported.engine.predict(mouse_id, *golden.inputs), slice(None))


def test_an_image_alone_with_some_neurons_gives_the_same(exported: Exported) -> None:
    golden = exported.golden
    rng = np.random.default_rng(1)
    for mouse_id, mouse in golden.ensemble.mice.items():
        some = rng.permutation(mouse.n_neurons)[: max(1, mouse.n_neurons // 3)]
        for i in range(len(golden.inputs[0])):
            one = [array[i : i + 1] for array in golden.inputs]
            response = exported.engine.predict(mouse_id, *one, neurons=some)
            exported.check(mouse_id, response, slice(i, i + 1), some)


def test_mixed_mice_in_any_order_get_their_own_answers(exported: Exported) -> None:
    golden, engine = exported.golden, exported.engine
    asked = [(mouse_id, i) for i in range(len(golden.inputs[0])) for mouse_id in golden.ensemble.mice]
    asked = [asked[i] for i in np.random.default_rng(2).permutation(len(asked))]
    stimuli = [engine.check(mouse_id, *(a[i : i + 1] for a in golden.inputs)) for mouse_id, i in asked]
    for (mouse_id, i), prediction in zip(asked, engine.predict_many(stimuli), strict=True):
        exported.check(mouse_id, prediction.response, slice(i, i + 1))
        # Members answer differently, and one alone has no spread.
        assert ((prediction.spread > 0) == (len(golden.ensemble.members) > 1)).all()


def test_attention_rollouts_are_the_references(exported: Exported) -> None:
    golden = exported.golden
    twins = [member.twin for member in golden.ensemble.members]
    assert len(exported.manifest.attention) == sum(has_attention(twin) for twin in twins)
    for mouse_id in golden.ensemble.mice if exported.manifest.attention else ():
        inputs = [array[:2] for array in golden.inputs]
        rollout = exported.engine.attention_rollout(mouse_id, *inputs)
        expected = golden.get("attention_rollout", mouse_id)
        if expected is not None:
            np.testing.assert_allclose(rollout[0], expected[:2], rtol=0, atol=BOUND)
            continue
        for member, twin in zip(rollout, twins, strict=True):  # the reference has no maps of an ensemble
            with torch.inference_mode():
                mine = twin.attention_rollout(mouse_id, *map(torch.from_numpy, inputs))
            np.testing.assert_allclose(member, mine, rtol=0, atol=BOUND)


def test_the_manifest_states_a_parity_within_the_bound(exported: Exported) -> None:
    assert load_manifest(exported.folder) == exported.manifest
    assert exported.manifest.mice.keys() == exported.golden.ensemble.mice.keys()
    for mouse in exported.manifest.mice.values():
        assert mouse.parity.max_abs_error <= mouse.parity.bound == PARITY_BOUND
        assert mouse.standardized_inputs


@pytest.mark.parametrize("case", [name for name in RUNS if name in ("v1t-spt", "no-reference")])
def test_a_portable_bundle_gives_the_same_with_standard_operators_only(
    reference: Path, case: str, tmp_path: Path
) -> None:
    golden = load(reference, case)
    manifest = export_bundle(
        golden.ensemble, tmp_path / "portable", options=BundleOptions(portable=True, gradients=False)
    )
    for file in manifest.files():
        if file.path.endswith(".onnx"):
            nodes = onnx.load(tmp_path / "portable" / file.path).graph.node
            assert {node.domain for node in nodes} <= {"", "ai.onnx"}
    engine = Engine.load(tmp_path / "portable", provider="cpu", threads=1)
    for mouse_id in golden.ensemble.mice:
        response = engine.predict(mouse_id, *golden.inputs)
        assert_the_references(reference, case, "response", mouse_id, response, slice(None))
