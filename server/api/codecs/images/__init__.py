"""Images of a request to (B, C, H, W), and what decoding them takes."""
