"""Metrics and spans: `prometheus`, `otel` and `tracing`, each imported only by who uses it."""
