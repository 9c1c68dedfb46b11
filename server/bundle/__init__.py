"""The format of a bundle, which the exporter writes and the engine reads."""
