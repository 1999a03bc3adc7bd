"""The consumer: records at least once, whatever happens to the broker."""

from __future__ import annotations

from .client import ResilientKafkaConsumer
from .options import ConsumerSettings
from .record import Record, TopicPartition, UnreadableRecord
from .stats import ConsumerStats

__all__ = [
    "ConsumerSettings",
    "ConsumerStats",
    "Record",
    "ResilientKafkaConsumer",
    "TopicPartition",
    "UnreadableRecord",
]
