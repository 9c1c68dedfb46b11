"""The folders of the reference as test cases: weights to import, and their expected outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from support.checkout import REFERENCE
from support.reference_cases import CASES, ENSEMBLES, RUNS, SENSORIUM

from training.checkpoints.ensemble import Ensemble
from training.checkpoints.importer import import_weights
from training.export import export_bundle
from training.export.bundle import BundleOptions

__all__ = ["CASES", "ENSEMBLES", "RUNS", "SENSORIUM", "WITH_GRADIENTS", "Golden", "export_golden", "load_golden"]


# What each adds: attention, behaviour as channels, shifter and crop, convolution, CNN, LN.
WITH_GRADIENTS = (
    "v1t-small",
    "vit-behavior1",
    "v1t-behavior2-crop80-shift3",
    "cct",
    "sensorium_p_sota_model",
    "sensorium_ln_model",
)
WITH_HALF_CORES = ("v1t-small", "v1t-published-config")


@dataclass(frozen=True, eq=False)
class Golden:
    """Imported weights, and the inputs and outputs of the reference code.

    Attributes:
        arrays: `golden.npz`.
        suffixes: mouse_id -> the end of its arrays' names.
    """

    ensemble: Ensemble
    arrays: dict[str, np.ndarray]
    suffixes: dict[str, str]

    @property
    def inputs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """image (B, C, H, W), behavior (B, 3), pupil_center (B, 2), standardised."""
        return self.arrays["image"], self.arrays["behavior"], self.arrays["pupil_center"]

    def get(self, name: str, mouse_id: str) -> np.ndarray | None:
        """An output such as `response` of a mouse; None if the reference has none."""
        return self.arrays.get(f"{name}_{self.suffixes[mouse_id]}")

    def expect(self, name: str, mouse_id: str) -> np.ndarray:
        return self.arrays[f"{name}_{self.suffixes[mouse_id]}"]


def load_golden(reference: Path, case: str) -> Golden:
    """Imports a run, an ensemble of runs, or Sensorium weights."""
    if case in SENSORIUM:
        folder = reference / "sensorium-pretrained"
        sources = [folder / f"{case}.pth"]
    else:
        folder = reference / case
        sources = sorted(folder.glob("member*")) or [folder]
    ensemble = Ensemble([import_weights(source) for source in sources])
    with np.load(folder / "golden.npz") as arrays:
        content = dict(arrays)
    suffixes = {mouse_id: case if case in SENSORIUM else mouse_id for mouse_id in ensemble.mice}
    return Golden(ensemble, content, suffixes)


def export_golden(case: str, folder: Path) -> None:
    """Exports a case, with gradients and half cores where some test needs them."""
    options = BundleOptions(licence="MIT", gradients=case in WITH_GRADIENTS, half=case in WITH_HALF_CORES)
    export_bundle(load_golden(REFERENCE, case).ensemble, folder, options=options)
