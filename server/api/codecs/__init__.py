"""Bytes to checked arrays, and results to bytes."""
