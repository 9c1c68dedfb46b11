"""Every folder of the reference, imported and run by torch: what the reference code gave, to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.golden import CASES, ENSEMBLES, RUNS
from support.reference_error import assert_the_references, load, tensors

from training.models.vit import ViTCore


def cases(names: list[str]) -> list[Any]:
    """The published size takes seconds per pass, so it is for the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) if "published" in name else name for name in names]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("case", cases(CASES))
def test_responses_are_the_references(reference: Path, case: str) -> None:
    golden = load(reference, case)
    for mouse_id in golden.ensemble.mice:
        expected = golden.expect("response", mouse_id)
        assert np.ptp(expected) > 0.1  # an answer that a constant could not give
        found = golden.ensemble(mouse_id, *tensors(golden))
        assert_the_references(reference, case, "response", mouse_id, found, slice(None))


@pytest.mark.parametrize("case", cases(CASES))
def test_an_image_alone_gives_what_it_gives_in_a_batch(reference: Path, case: str) -> None:
    golden = load(reference, case)
    for mouse_id in golden.ensemble.mice:
        for i in range(len(golden.expect("response", mouse_id))):
            row = slice(i, i + 1)
            alone = golden.ensemble(mouse_id, *tensors(golden, row))
            assert_the_references(reference, case, "response", mouse_id, alone, row)


@pytest.mark.parametrize("case", cases([*RUNS, *ENSEMBLES]))
def test_pre_activations_are_the_references(reference: Path, case: str) -> None:
    golden = load(reference, case)
    first = next(iter(golden.ensemble.mice))
    members = golden.ensemble.pre_activations(first, *tensors(golden, slice(2)))
    assert_the_references(reference, case, "pre_activation", first, members.mean(0), slice(2))


@pytest.mark.parametrize("case", cases(CASES))
def test_positions_are_the_references(reference: Path, case: str) -> None:
    golden = load(reference, case)
    for mouse_id, mouse in golden.ensemble.mice.items():
        expected = golden.get("mu", mouse_id)
        if expected is None:
            assert case in ENSEMBLES  # whose members have no golden outputs of their own
            continue
        assert expected.shape == (mouse.n_neurons, 2)
        mu = golden.ensemble.members[0].twin.readout(mouse_id).mu
        np.testing.assert_allclose(mu, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", cases(RUNS))
def test_crops_are_the_references(reference: Path, case: str) -> None:
    golden = load(reference, case)
    twin = golden.ensemble.members[0].twin
    for mouse_id in twin.mice:
        cropped, _, _ = twin.stem(mouse_id, *tensors(golden))
        expected = golden.expect("cropped", mouse_id)
        assert twin.cropper.output_shape == expected.shape[1:]
        # Nearest neighbour: one pixel beside the right one would be far off.
        np.testing.assert_allclose(cropped, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", cases(RUNS))
def test_attention_rollouts_are_the_references(reference: Path, case: str) -> None:
    golden = load(reference, case)
    twin = golden.ensemble.members[0].twin
    for mouse_id in twin.mice:
        expected = golden.get("attention_rollout", mouse_id)
        if not isinstance(twin.core, ViTCore):
            assert expected is None
            continue
        assert expected is not None
        rows = slice(2)  # of one image each; two tell whether they are mixed up
        rollout = twin.attention_rollout(mouse_id, *tensors(golden, rows))
        np.testing.assert_allclose(rollout, expected[rows], rtol=0, atol=1e-4)
