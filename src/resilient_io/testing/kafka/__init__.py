"""Kafka brokers to test against; the public names are in `resilient_io.testing`."""
