"""Kafka brokers to test against; the names to use are those of `resilient_io.testing`."""
