"""The graphs of a bundle, forward and backward, each with examples of its inputs."""
