"""From a torch module to an ONNX file: traced once for all modules of equal structure."""
