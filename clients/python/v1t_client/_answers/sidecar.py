"""The JSON beside a file of responses that says how it was made."""

from __future__ import annotations

import json
from pathlib import Path

from v1t_client._answers.prediction import Prediction
from v1t_client._replacing import replacing

__all__ = ["sidecar_of", "write_sidecar"]


def sidecar_of(path: Path) -> Path:
    """`responses.csv.json` for `responses.csv`."""
    return path.with_name(f"{path.name}.json")


def write_sidecar(prediction: Prediction, path: Path) -> None:
    """Writes what a file of responses cannot hold: mouse, model, whether it is simulated, neurons, images, notes."""
    with replacing(sidecar_of(path)) as beside:
        beside.write_text(json.dumps(prediction.metadata(), indent=1) + "\n", encoding="utf-8")
