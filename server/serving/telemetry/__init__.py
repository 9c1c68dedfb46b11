"""What a running server reports: logs, Prometheus metrics, statistics per model, and OpenTelemetry spans."""
