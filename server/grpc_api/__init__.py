"""The Open Inference Protocol v2 over gRPC: a call becomes the request that HTTP would have brought. Off by default."""
