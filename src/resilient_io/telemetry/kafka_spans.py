"""Spans of Kafka records, by OpenTelemetry's conventions for messaging.

A module of its own, because importing it imports aiokafka.
"""

from __future__ import annotations

import contextlib
from asyncio import CancelledError
from typing import TYPE_CHECKING

from opentelemetry import propagate
from opentelemetry.trace import Link, SpanKind, get_current_span, set_span_in_context

from resilient_io.kafka.instrumentation import SendSpan, Tracing

from .spans import is_suppressed, record_failure, running

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from aiokafka.structs import RecordMetadata
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from resilient_io.kafka import Record

    Headers = Sequence[tuple[str, bytes | None]]

_KAFKA: dict[str, AttributeValue] = {"messaging.system": "kafka"}


class KafkaSpans(Tracing):
    """Creates the spans of one producer or consumer."""

    def __init__(self, tracer: Tracer, *, group: str | None = None) -> None:
        self._tracer = tracer
        self._group = group

    def sending(self, topic: str, headers: Headers) -> SendSpan:
        """Start the span of a record that is being sent; the headers carry its context.

        A record that has a context already keeps it, because it was created elsewhere.
        """
        if is_suppressed():
            return SendSpan()
        carried = _carried_context(headers)
        has_parent = get_current_span().get_span_context().is_valid
        span = self._tracer.start_span(
            f"send {topic}",
            context=None if has_parent else propagate.extract(carried),
            kind=SpanKind.PRODUCER,
            attributes=_KAFKA
            | {
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": topic,
            },
        )
        injected: dict[str, str] = {}
        if not carried:
            propagate.inject(injected, context=set_span_in_context(span))
        return RecordSpan(span, [(name, value.encode()) for name, value in injected.items()])

    def processing(self, records: Sequence[Record]) -> AbstractContextManager[object]:
        """Start the span of a call of the handler.

        The span of one record continues its trace; that of several is linked to all their traces.
        """
        if is_suppressed():
            return contextlib.nullcontext()
        first = records[0]
        attributes = _KAFKA | {
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": first.topic,
        }
        if self._group is not None:
            attributes["messaging.consumer.group.name"] = self._group
        parent: Context | None = None
        links: list[Link] = []
        if len(records) == 1:
            attributes["messaging.destination.partition.id"] = str(first.partition)
            attributes["messaging.kafka.offset"] = first.offset
            parent = propagate.extract(_carried_context(first.headers))
        else:
            attributes["messaging.batch.message_count"] = len(records)
            links = _links(records)
        span = self._tracer.start_span(
            f"process {first.topic}",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=links,
        )
        return running(span)


class RecordSpan(SendSpan):
    """The span of a record that is being sent."""

    __slots__ = ("_span",)

    def __init__(self, span: Span, headers: list[tuple[str, bytes]]) -> None:
        super().__init__(headers)
        self._span = span

    def ended(self, future: asyncio.Future[RecordMetadata]) -> None:
        """End the span with the outcome of the record's future."""
        if future.cancelled():
            self.failed(CancelledError())
        elif (error := future.exception()) is not None:
            self.failed(error)
        else:
            written = future.result()
            self._span.set_attribute("messaging.destination.partition.id", str(written.partition))
            if written.offset >= 0:
                self._span.set_attribute("messaging.kafka.offset", written.offset)
            self._span.end()

    def failed(self, error: BaseException) -> None:
        """End the span with an error."""
        record_failure(self._span, error)
        self._span.end()


def _carried_context(headers: Iterable[object] | None) -> dict[str, str]:
    """Return the trace context in a record's headers."""
    wanted = propagate.get_global_textmap().fields
    carried: dict[str, str] = {}
    for pair in headers or ():
        match pair:
            # The producer rejects anything that is not a header, as it does without tracing.
            case (str() as name, bytes() as value) if name in wanted:
                carried[name] = value.decode("latin-1")
    return carried


def _links(records: Iterable[Record]) -> list[Link]:
    links = []
    for record in records:
        parent = propagate.extract(_carried_context(record.headers))
        span_context = get_current_span(parent).get_span_context()
        if span_context.is_valid:
            links.append(Link(span_context))
    return links
