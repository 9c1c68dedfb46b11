"""Simulated mice: recordings in the same layout as real ones, from neurons with known parameters."""
