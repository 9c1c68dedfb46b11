"""From most exciting inputs to a recording session and its score."""
