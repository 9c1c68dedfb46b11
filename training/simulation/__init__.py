"""Simulated mice: recordings in the same layout, whose every neuron is known."""
