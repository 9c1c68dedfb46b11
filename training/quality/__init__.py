"""Whether a recording is worth training on: its checks, its report, and `inspect`."""
