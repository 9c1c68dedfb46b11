"""The twin and its parts: cropper -> core -> readout, one file each."""

from training.models.twin import Twin

__all__ = ["Twin"]
