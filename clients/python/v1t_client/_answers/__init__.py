"""The types that the client returns: predictions, gradients, attention maps, mice and neurons."""
