"""The training loop, runs and their state, devices, and transfer to new mice."""
