"""What a running server owns: the batcher, the loaded bundles, API keys, limits, and its orderly end."""
