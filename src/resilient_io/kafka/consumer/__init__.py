"""The Kafka consumer: reads records at least once, whatever happens to the broker."""

from __future__ import annotations

from aiokafka import TopicPartition

from ..record import Record, UnreadableRecord
from ..stats import ConsumerStats
from .assignor import CooperativeStickyAssignor
from .client import ResilientKafkaConsumer
from .options import ConsumerOptions, ConsumerSettings
from .positions import KafkaRecordsLost, RecordsLost

__all__ = [
    "ConsumerOptions",
    "ConsumerSettings",
    "ConsumerStats",
    "CooperativeStickyAssignor",
    "KafkaRecordsLost",
    "Record",
    "RecordsLost",
    "ResilientKafkaConsumer",
    "TopicPartition",
    "UnreadableRecord",
]
