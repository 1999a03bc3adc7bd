"""The producer: records wait in lines of our own and travel in batches of aiokafka's."""

from __future__ import annotations

from .client import ResilientKafkaProducer
from .records import OutgoingRecord
from .report import DeliveryFailure, DeliveryReport, OffsetRange
from .settings import DeliverySettings
from .stats import ProducerStats
from .transaction import Transaction

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
