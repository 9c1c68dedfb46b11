"""Finished results compared: the receptive fields of two twins, and attention and gaze over several mice."""
