"""What is private in aiokafka 0.14's producer and leant on all the same.

`tests/unit/kafka/test_producer_driver_contract.py` fails when a new aiokafka changes any of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiokafka.producer.transaction_manager import TransactionState

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka import TopicPartition
    from aiokafka.producer.message_accumulator import BatchBuilder

    from resilient_io.kafka.protocols import ProducerDriver

__all__ = [
    "attempts_of",
    "is_idempotent",
    "is_in_transaction",
    "newest_batch",
    "take_back",
    "told_count",
    "writer_of",
]


def writer_of(batch: BatchBuilder) -> Callable[..., object]:
    """Give what writes a record into a batch: place, timestamp (ms), key, value, list of headers.

    It returns None when the batch is full. `BatchBuilder._builder`: `BatchBuilder.append` costs
    as much again as this, which it calls. Tell the batch afterwards how many it has.
    """
    owner: Any = batch
    write: Callable[..., object] = owner._builder.append
    return write


def told_count(batch: BatchBuilder, count: int) -> None:
    """Tell a batch how many records it has (`BatchBuilder._relative_offset`)."""
    owner: Any = batch
    owner._relative_offset = count


def newest_batch(instance: ProducerDriver, tp: TopicPartition) -> object:
    """Give the driver's record of the batch that was just handed over.

    `MessageAccumulator._batches`: it stands there from `send_batch` until a request takes it.
    """
    owner: Any = instance
    queued = owner._message_accumulator._batches.get(tp)
    return queued[-1] if queued else None


def attempts_of(batch: object) -> int | None:
    """Tell how many requests took a batch (`MessageBatch.retry_count`); None if unknown."""
    known: Any = batch
    return None if known is None else int(known.retry_count)


def is_idempotent(instance: ProducerDriver) -> bool:
    """Tell whether its batches are numbered (`AIOKafkaProducer._txn_manager`)."""
    owner: Any = instance
    return owner._txn_manager is not None


def is_in_transaction(instance: ProducerDriver) -> bool:
    """Tell whether a transaction is open, or failed, that has to be aborted.

    `TransactionManager.state`: after a cancelled `begin_transaction` it may be or not.
    """
    owner: Any = instance
    return owner._txn_manager.state in (
        TransactionState.IN_TRANSACTION,
        TransactionState.ABORTABLE_ERROR,
        TransactionState.FATAL_ERROR,
    )


def take_back(instance: ProducerDriver, tp: TopicPartition, count: int) -> None:
    """Give back the numbers of a batch that the broker refused at its only attempt.

    aiokafka numbers a batch when it first goes out, and never rolls that back
    (`TransactionManager._sequence_numbers`): every later one would be out of order.
    """
    owner: Any = instance
    if owner._txn_manager is not None:
        owner._txn_manager.increment_sequence_number(tp, -count)
