"""The spans of records sent and handled, by OpenTelemetry's conventions for messaging."""

from __future__ import annotations

import contextlib
from asyncio import CancelledError
from typing import TYPE_CHECKING

from opentelemetry import propagate
from opentelemetry.trace import Link, SpanKind, get_current_span, set_span_in_context

from resilient_io.kafka.instrumentation import SendSpan, Tracing

from ._span import failed, is_suppressed, running

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from aiokafka.structs import RecordMetadata
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from resilient_io.kafka.record import Record

    Pairs = Sequence[tuple[str, bytes | None]]

__all__ = ["KafkaSpans"]

_SYSTEM: dict[str, AttributeValue] = {"messaging.system": "kafka"}


class KafkaSpans(Tracing):
    """Makes the spans of one producer or consumer.

    Args:
        tracer: OpenTelemetry's.
        group: The consumer's group.
    """

    def __init__(self, tracer: Tracer, *, group: str | None = None) -> None:
        self._tracer = tracer
        self._group = group

    def sending(self, topic: str, headers: Pairs) -> SendSpan:
        """Begin the span of a record that is being sent; its context goes into the headers.

        A record that brings a context with it keeps that one: it was created elsewhere.
        """
        if is_suppressed():
            return SendSpan()
        carried = _carried(headers)
        around = get_current_span().get_span_context().is_valid
        span = self._tracer.start_span(
            f"send {topic}",
            context=None if around else propagate.extract(carried),
            kind=SpanKind.PRODUCER,
            attributes=_SYSTEM
            | {
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": topic,
            },
        )
        injected: dict[str, str] = {}
        if not carried:
            propagate.inject(injected, context=set_span_in_context(span))
        return _OpenSpan(span, [(name, value.encode()) for name, value in injected.items()])

    def processing(self, records: Sequence[Record]) -> AbstractContextManager[object]:
        """Begin the span of a call of the handler: it continues the trace of its one record.

        Of several records, it is linked to the traces of all of them.
        """
        if is_suppressed():
            return contextlib.nullcontext()
        first = records[0]
        attributes = _SYSTEM | {
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": first.topic,
        }
        if self._group is not None:
            attributes["messaging.consumer.group.name"] = self._group
        around: Context | None = None
        links: list[Link] = []
        if len(records) == 1:
            attributes["messaging.destination.partition.id"] = str(first.partition)
            attributes["messaging.kafka.offset"] = first.offset
            around = propagate.extract(_carried(first.headers))
        else:
            attributes["messaging.batch.message_count"] = len(records)
            links = _links(records)
        span = self._tracer.start_span(
            f"process {first.topic}",
            context=around,
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=links,
        )
        return running(span)


class _OpenSpan(SendSpan):
    """The span of a record that is being sent.

    Args:
        span: The span.
        headers: Headers to add to the record.
    """

    __slots__ = ("_span",)

    def __init__(self, span: Span, headers: list[tuple[str, bytes]]) -> None:
        super().__init__(headers)
        self._span = span

    def ended(self, future: asyncio.Future[RecordMetadata]) -> None:
        """End it as the record's future ended."""
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
        """End it with an error."""
        failed(self._span, error)
        self._span.end()


def _carried(headers: Iterable[object] | None) -> dict[str, str]:
    """Return the context that a record brings with it."""
    wanted = propagate.get_global_textmap().fields
    carried: dict[str, str] = {}
    for pair in headers or ():
        match pair:
            # What is no header is for the producer to refuse, as it does without tracing.
            case (str() as name, bytes() as value) if name in wanted:
                carried[name] = value.decode("latin-1")
    return carried


def _links(records: Iterable[Record]) -> list[Link]:
    links = []
    for record in records:
        around = propagate.extract(_carried(record.headers))
        context = get_current_span(around).get_span_context()
        if context.is_valid:
            links.append(Link(context))
    return links
