"""Checkpoints and ensembles on disk, and the importer of other people's weights."""
