"""What a running server owns: the batcher, the loaded bundles, keys, metrics, logs and shutdown."""
