"""How many Kafka records are delivered again after a fault or a shutdown."""
