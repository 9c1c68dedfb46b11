"""Where things are in this checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["REFERENCE", "ROOT"]

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT.parent / "shared" / "reference"  # the reference code's checkpoints and golden outputs
