"""Distillation: a small student that answers like an ensemble, and how far it agrees with it."""
