"""The second part: a service between Kafka and Redis, both of which are taken from it in turn."""
