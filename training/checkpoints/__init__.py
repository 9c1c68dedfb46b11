"""Checkpoints and ensembles on disk, and the import of weights from other projects."""
