"""Tracing of sent and handled records: clients call these hooks when `trace_with` was called."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence
    from contextlib import AbstractContextManager

    from aiokafka.structs import RecordMetadata

    from .record import Record

    Written = asyncio.Future[RecordMetadata]


class SendSpan:
    """The span of a record that is being sent. This class is a span that records nothing."""

    __slots__ = ("headers",)

    def __init__(self, headers: Iterable[tuple[str, bytes]] = ()) -> None:
        self.headers = list(headers)

    def ended(self, future: Written) -> None:
        """End the span with the outcome of the record's future."""

    def failed(self, error: BaseException) -> None:
        """End the span with an error."""


class Tracing:
    """Creates the spans of one producer or consumer. This class creates none."""

    def sending(self, topic: str, headers: Sequence[tuple[str, bytes | None]]) -> SendSpan:
        """Start the span of a record."""
        del topic, headers
        return SendSpan()

    def processing(self, records: Sequence[Record]) -> AbstractContextManager[object]:
        """Start the span of a handler's call. Leaving the context manager ends it."""
        del records
        return contextlib.nullcontext()


def trace_send(
    tracing: Tracing,
    accept: Callable[..., Written | Coroutine[Any, Any, Written]],
    record: tuple[Any, ...],
) -> Written | Coroutine[Any, Any, Written]:
    """Return `accept(*record)`, with a span that ends when the record's future is done.

    The arguments of `accept` begin with those of `ResilientKafkaProducer.send`.
    """
    topic, value, key, partition, timestamp_ms, headers, *others = record
    pairs = list(headers or ())
    span = tracing.sending(topic, pairs)
    pairs += span.headers
    try:
        taken = accept(topic, value, key, partition, timestamp_ms, pairs, *others)
    except Exception as error:
        span.failed(error)
        raise
    if isinstance(taken, asyncio.Future):
        taken.add_done_callback(span.ended)
        return taken
    return _when_accepted(taken, span)


async def _when_accepted(accepting: Coroutine[Any, Any, Written], span: SendSpan) -> Written:
    try:
        future = await accepting
    except (Exception, CancelledError) as error:
        span.failed(error)
        raise
    future.add_done_callback(span.ended)
    return future
