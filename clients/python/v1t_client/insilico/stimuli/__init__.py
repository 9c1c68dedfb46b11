"""Stimuli: the monitor, the screen that draws gratings, noise, and sets of images."""
