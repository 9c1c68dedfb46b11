"""Batched least-squares fits of receptive fields and tuning curves."""
