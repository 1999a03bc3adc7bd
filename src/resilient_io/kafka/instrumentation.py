"""Tracing of records that are sent and handled: where it takes hold.

A producer and a consumer that nobody traces pay nothing: tracing puts itself in the way of one
producer's records and around one consumer's handler.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence
    from contextlib import AbstractContextManager

    from aiokafka.structs import RecordMetadata

    from .consumer.client import ResilientKafkaConsumer
    from .consumer.record import Record
    from .producer.client import ResilientKafkaProducer

    Written = asyncio.Future[RecordMetadata]


def observe_consumer(consumer: ResilientKafkaConsumer, tracing: Tracing) -> None:
    """Have the calls of the handler traced that a `run` makes which begins from now on."""
    consumer._tracing = tracing


def observe_producer(producer: ResilientKafkaProducer, tracing: Tracing) -> None:
    """Have every record traced that is sent from now on, but for those of `send_many`."""
    take = type(producer)._take

    def seen(  # noqa: PLR0917 (its twin)
        topic: str,
        value: Any,
        key: Any,
        partition: int | None,
        timestamp_ms: int | None,
        headers: Iterable[tuple[str, bytes | None]] | None,
        lifetime: float,
        operation: str,
    ) -> Written | Coroutine[Any, Any, Written]:
        pairs = list(headers or ())
        sending = tracing.sending(topic, pairs)
        pairs += sending.headers
        try:
            taken = take(
                producer, topic, value, key, partition, timestamp_ms, pairs, lifetime, operation
            )
        except Exception as error:
            sending.failed(error)
            raise
        if isinstance(taken, asyncio.Future):
            taken.add_done_callback(sending.ended)
            return taken
        return _admitted(taken, sending)

    vars(producer)["_take"] = seen


async def _admitted(admitting: Coroutine[Any, Any, Written], sending: Sending) -> Written:
    try:
        future = await admitting
    except (Exception, CancelledError) as error:
        sending.failed(error)
        raise
    future.add_done_callback(sending.ended)
    return future


class Sending(Protocol):
    """The span of a record on its way."""

    headers: list[tuple[str, bytes]]
    """What to add to the record's headers."""

    def ended(self, future: Written) -> None:
        """End it as the record's future ended."""

    def failed(self, error: BaseException) -> None:
        """End it with an error."""


class Tracing(Protocol):
    """What makes the spans of one producer or consumer."""

    def sending(self, topic: str, headers: Sequence[tuple[str, bytes | None]]) -> Sending:
        """Begin the span of a record."""
        raise NotImplementedError

    def processing(self, records: Sequence[Record]) -> AbstractContextManager[object]:
        """Begin the span of a call of the handler; leaving it ends the span."""
        raise NotImplementedError
