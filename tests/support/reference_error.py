"""How near an answer must be to the reference's."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.golden import Golden, load_golden

__all__ = ["assert_the_references", "load", "tensors"]

load = cache(load_golden)


def tensors(golden: Golden, rows: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inputs of a case."""
    image, behavior, pupil_center = (torch.from_numpy(array[rows]) for array in golden.inputs)
    return image, behavior, pupil_center


def assert_the_references(
    reference: Path, case: str, name: str, mouse_id: str, found: Any, rows: slice, neurons: Any = slice(None)
) -> None:
    """Within 1e-5, and as much more as the reference's own float32 is off float64: other processors round otherwise.

    Args:
        name: "response" or "pre_activation".
        rows: of all images, those of which `found` has the answers.
        neurons: those that it has.
    """
    judge = _exact(reference, case, name, mouse_id)
    expected = load(reference, case).expect(name, mouse_id)[: len(judge)]
    off = np.abs(expected - judge)
    assert off.max() < 3e-5
    np.testing.assert_array_less(np.abs(np.asarray(found) - expected[rows][:, neurons]), 1e-5 + off[rows][:, neurons])


@cache
def _exact(reference: Path, case: str, name: str, mouse_id: str) -> np.ndarray:
    """What float64 makes of the same weights and inputs: a response (B, N), or a pre-activation."""
    golden = load(reference, case)
    ensemble = copy.deepcopy(golden.ensemble).double()
    rows = slice(None) if name == "response" else slice(2)  # what the tests compare
    inputs = tuple(x.double() for x in tensors(golden, rows))
    with torch.inference_mode():
        if name == "response":
            return ensemble(mouse_id, *inputs).numpy()
        return ensemble.pre_activations(mouse_id, *inputs).mean(0).numpy()
