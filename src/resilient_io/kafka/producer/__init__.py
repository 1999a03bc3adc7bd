"""The producer: records wait in one queue for each partition, and are sent in batches."""

from __future__ import annotations

from .client import ResilientKafkaProducer
from .options import DeliverySettings
from .records import DeliveryFailure, DeliveryReport, OffsetRange, OutgoingRecord, ProducerStats
from .transactions import Transaction

__all__ = [
    "DeliveryFailure",
    "DeliveryReport",
    "DeliverySettings",
    "OffsetRange",
    "OutgoingRecord",
    "ProducerStats",
    "ResilientKafkaProducer",
    "Transaction",
]
