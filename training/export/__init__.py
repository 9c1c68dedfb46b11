"""Export of checkpoints to bundles: ONNX graphs, their parity with torch, and the manifest."""

from training.export.bundle import export_bundle

__all__ = ["export_bundle"]
