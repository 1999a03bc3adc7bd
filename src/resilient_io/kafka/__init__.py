"""Kafka: a producer and a consumer that survive their broker, on the same spine as Redis."""

from __future__ import annotations

from .consumer import (
    ConsumerSettings,
    ConsumerStats,
    CooperativeStickyAssignor,
    KafkaRecordsLost,
    Record,
    RecordsLost,
    ResilientKafkaConsumer,
    TopicPartition,
    UnreadableRecord,
)
from .dead_letters import (
    DeadLetterFilter,
    ReplayReport,
    StoredDeadLetter,
    read_dead_letters,
    replay_dead_letters,
)
from .errors import (
    KafkaAuthenticationFailed,
    KafkaClosed,
    KafkaDeadlineExceeded,
    KafkaOutcomeUnknown,
    KafkaOverloaded,
    KafkaUnavailable,
)
from .processing import DeadLetter, Failure, HandlerPolicy, RetryTopic, RunLimits, RunStats
from .producer import (
    DeliveryFailure,
    DeliveryReport,
    DeliverySettings,
    OffsetRange,
    OutgoingRecord,
    ProducerStats,
    ResilientKafkaProducer,
    Transaction,
)

__all__ = [
    "ConsumerSettings",
    "ConsumerStats",
    "CooperativeStickyAssignor",
    "DeadLetter",
    "DeadLetterFilter",
    "DeliveryFailure",
    "DeliveryReport",
    "DeliverySettings",
    "Failure",
    "HandlerPolicy",
    "KafkaAuthenticationFailed",
    "KafkaClosed",
    "KafkaDeadlineExceeded",
    "KafkaOutcomeUnknown",
    "KafkaOverloaded",
    "KafkaRecordsLost",
    "KafkaUnavailable",
    "OffsetRange",
    "OutgoingRecord",
    "ProducerStats",
    "Record",
    "RecordsLost",
    "ReplayReport",
    "ResilientKafkaConsumer",
    "ResilientKafkaProducer",
    "RetryTopic",
    "RunLimits",
    "RunStats",
    "StoredDeadLetter",
    "TopicPartition",
    "Transaction",
    "UnreadableRecord",
    "read_dead_letters",
    "replay_dead_letters",
]
