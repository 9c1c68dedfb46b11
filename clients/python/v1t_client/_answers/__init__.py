"""What the client returns: predictions, gradients, attention maps and mice."""
