"""Kafka: a producer and a consumer that survive their broker, on the same spine as Redis."""

from __future__ import annotations

from .errors import (
    KafkaClosed,
    KafkaDeadlineExceeded,
    KafkaLoginRefused,
    KafkaOutcomeUnknown,
    KafkaOverloaded,
    KafkaUnavailable,
)

__all__ = [
    "KafkaClosed",
    "KafkaDeadlineExceeded",
    "KafkaLoginRefused",
    "KafkaOutcomeUnknown",
    "KafkaOverloaded",
    "KafkaUnavailable",
]
