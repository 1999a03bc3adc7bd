"""Spans of sent records and of handlers, in one trace."""

import asyncio
import uuid

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from resilient_io import (
    HandlerPolicy,
    ResilientKafkaConsumer,
    ResilientKafkaProducer,
)
from resilient_io.kafka.errors import KafkaClosed
from resilient_io.telemetry.tracing import trace

SOON = 40.0


class Spans:
    """A tracer provider, and its spans."""

    def __init__(self):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def named(self, name):
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def to_json(self):
        return "".join(span.to_json() for span in self._exporter.get_finished_spans())


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture
async def topic(shared_kafka):
    name = f"t{uuid.uuid4().hex[:12]}"
    await shared_kafka.create_topic(name, partitions=1)
    return name


@pytest.fixture
async def producer(shared_kafka, spans):
    client = ResilientKafkaProducer(shared_kafka.bootstrap_servers)
    trace(client, tracer_provider=spans.provider)
    async with client:
        yield client


async def handled(server, topic, spans, count, handle, **options):
    """Run a traced consumer until the handler was called `count` times."""
    calls = []
    enough = asyncio.Event()

    async def handler(given):
        calls.append(given)
        if len(calls) >= count:
            enough.set()
        await handle(given)

    consumer = ResilientKafkaConsumer(
        topic,
        bootstrap_servers=server.bootstrap_servers,
        group_id=topic,
        auto_offset_reset="earliest",
    )
    trace(consumer, tracer_provider=spans.provider)
    async with asyncio.timeout(SOON), consumer:
        running = asyncio.create_task(consumer.run(handler, **options), name="run of the test")
        await asyncio.wait(
            [running, asyncio.create_task(enough.wait())], return_when="FIRST_COMPLETED"
        )
        await consumer.aclose()
        await running
    return calls


async def nothing(_given):
    pass


async def test_record_has_one_trace_from_the_caller_to_the_handler(
    shared_kafka, topic, producer, spans
):
    async def handle(record):
        with spans.tracer.start_as_current_span("inside"):
            assert record.value == b"value"

    with spans.tracer.start_as_current_span("request") as request:
        sent = await producer.send_and_wait(topic, b"value", key=b"key", headers=[("h", b"1")])
    (record,) = await handled(shared_kafka, topic, spans, 1, handle)

    (send,), (process,), (inside,) = map(
        spans.named, (f"send {topic}", f"process {topic}", "inside")
    )
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert send.parent.span_id == request.get_span_context().span_id
    assert process.parent.span_id == send.context.span_id
    assert inside.parent.span_id == process.context.span_id
    assert process.context.trace_id == request.get_span_context().trace_id
    assert dict(send.attributes) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic,
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": sent.offset,
    }
    assert dict(process.attributes) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": topic,
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": sent.offset,
        "messaging.consumer.group.name": topic,
    }
    assert [name for name, _ in record.headers] == ["h", "traceparent"]


async def test_every_call_of_a_handler_has_a_span_with_its_outcome(
    shared_kafka, topic, producer, spans
):
    calls = []

    async def handle(record):
        calls.append(record)
        if len(calls) == 1:
            raise LookupError("secret")

    await producer.send_and_wait(topic, b"secret", key=b"secret")
    policy = HandlerPolicy(attempts=2, backoff=0.01)
    await handled(shared_kafka, topic, spans, 2, handle, handler_policy=policy)

    first, second = spans.named(f"process {topic}")
    assert first.attributes["error.type"] == "LookupError"
    assert first.status.status_code is StatusCode.ERROR
    assert second.status.status_code is StatusCode.UNSET
    assert first.context.trace_id == second.context.trace_id
    assert "secret" not in spans.to_json()


async def test_batch_is_linked_to_the_trace_of_each_record(shared_kafka, topic, producer, spans):
    for number in range(3):
        await producer.send_and_wait(topic, b"%d" % number)
    calls = await handled(shared_kafka, topic, spans, 1, nothing, batch_size=10)

    assert [record.value for record in calls[0]] == [b"0", b"1", b"2"]
    (process,) = spans.named(f"process {topic}")
    sends = spans.named(f"send {topic}")
    assert {link.context.span_id for link in process.links} == {
        span.context.span_id for span in sends
    }
    assert process.attributes["messaging.batch.message_count"] == 3


async def test_record_with_a_trace_keeps_it(shared_kafka, topic, producer, spans):
    origin = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await producer.send_and_wait(topic, b"v", headers=[("traceparent", origin.encode())])
    (record,) = await handled(shared_kafka, topic, spans, 1, nothing)

    assert record.headers == (("traceparent", origin.encode()),)
    (process,) = spans.named(f"process {topic}")
    assert f"{process.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"


async def test_handler_starts_a_trace_for_records_without_one(shared_kafka, topic, spans):
    async with ResilientKafkaProducer(shared_kafka.bootstrap_servers) as untraced:
        await untraced.send_and_wait(topic, b"value", headers=[("traceparent", None)])
    (record,) = await handled(shared_kafka, topic, spans, 1, nothing)

    assert record.headers == (("traceparent", None),)
    assert spans.named(f"send {topic}") == []
    (process,) = spans.named(f"process {topic}")
    assert process.parent is None


async def test_record_that_cannot_be_sent_ends_its_span(shared_kafka, topic, producer, spans):
    with pytest.raises(TypeError):
        await producer.send(topic, 5)
    pending = await producer.send(topic, b"cancelled")
    pending.cancel()
    await producer.flush()
    await producer.aclose()
    with pytest.raises(KafkaClosed):
        await producer.send(topic, b"late")

    wrong, cancelled, late = spans.named(f"send {topic}")
    assert wrong.attributes["error.type"] == "TypeError"
    assert cancelled.attributes["error.type"] == "asyncio.exceptions.CancelledError"
    assert late.attributes["error.type"] == "resilient_io.kafka.errors.KafkaClosed"


@pytest.mark.parametrize(
    "headers",
    [[("a",)], [("a", b"b", b"c")], [("traceparent", "text")], [(["a"], b"b")], {"traceparent": 1}],
)
async def test_invalid_headers_are_rejected_as_without_tracing(
    shared_kafka, topic, producer, spans, headers
):
    async with ResilientKafkaProducer(shared_kafka.bootstrap_servers) as untraced:
        with pytest.raises(TypeError) as expected:
            await untraced.send(topic, b"value", headers=headers)
    with pytest.raises(TypeError) as refused:
        await producer.send(topic, b"value", headers=headers)
    assert str(refused.value) == str(expected.value)
    (span,) = spans.named(f"send {topic}")
    assert span.attributes["error.type"] == "TypeError"


async def test_invalid_handler_is_rejected_as_without_tracing(shared_kafka, topic, producer, spans):
    await producer.send_and_wait(topic, b"value")
    consumer = ResilientKafkaConsumer(
        topic,
        bootstrap_servers=shared_kafka.bootstrap_servers,
        group_id=topic,
        auto_offset_reset="earliest",
    )
    trace(consumer, tracer_provider=spans.provider)

    async def two(_record, _more):
        pass

    async with asyncio.timeout(SOON), consumer:
        with pytest.raises(Exception, match="the handler cannot be called"):
            await consumer.run(two)
