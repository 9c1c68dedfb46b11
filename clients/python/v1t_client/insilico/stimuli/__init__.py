"""The monitor, the screen, and what is shown on it."""
