"""The producer: records wait in lines of our own and travel in batches of aiokafka's."""

from __future__ import annotations

from .client import ResilientKafkaProducer
from .options import DeliverySettings
from .records import OutgoingRecord
from .reports import DeliveryFailure, DeliveryReport, OffsetRange, ProducerStats
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
