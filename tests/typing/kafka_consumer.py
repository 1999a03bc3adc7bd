"""Types of `ResilientKafkaConsumer`. Never executed: mypy and pyright check this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_type

from resilient_io.health import Dependency
from resilient_io.kafka import (
    ConsumerStats,
    DeadLetter,
    HandlerPolicy,
    Record,
    ResilientKafkaConsumer,
    RetryTopic,
    RunStats,
    TopicPartition,
)


def options() -> None:
    ResilientKafkaConsumer("orders", group_id="billing", name="billing")
    ResilientKafkaConsumer("orders", auto_offset_reset="earliest", session_timeout_ms=6_000)
    ResilientKafkaConsumer("orders", auto_offset_rest="earliest")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    ResilientKafkaConsumer("orders", session_timeout_ms="6000")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    ResilientKafkaConsumer("orders", enable_auto_commit=True)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


async def records(consumer: ResilientKafkaConsumer) -> None:
    async for record in consumer:
        assert_type(record, Record)
        assert_type(record.key, Any)
        assert_type(record.value, Any)
        assert_type(record.offset, int)
        assert_type(record.headers, Sequence[tuple[str, bytes]])
        assert_type(record.raw_value, bytes | None)
        assert_type(record.topic_partition, TopicPartition)
        assert_type(record.value["amount"], Any)
        assert_type(record.key.decode(), Any)
    async for batch in consumer.batches(max_records=10):
        assert_type(batch, list[Record])


async def handlers(consumer: ResilientKafkaConsumer) -> None:
    async def one(record: Record) -> None:
        assert_type(record.value["amount"], Any)

    async def several(records: list[Record]) -> int:
        return len(records)

    def plain(record: Record) -> None:
        record.done()

    await consumer.run(one, dead_letter=DeadLetter(topic="dead"))
    await consumer.run(one, retry_topics=["orders.retry.10m", RetryTopic("orders.later", 60.0)])
    await consumer.run(one, retry_topics=[60.0])  # type: ignore[list-item] # pyright: ignore[reportArgumentType]
    await consumer.run(one, handler_policy=HandlerPolicy(attempts=5))
    await consumer.run(several, batch_size=10, requires=[consumer.health])
    await consumer.run(plain)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await consumer.run(one, order="keys")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def reports(consumer: ResilientKafkaConsumer) -> None:
    async with consumer as same:
        assert_type(same, ResilientKafkaConsumer)
    assert_type(consumer.health, Dependency)
    assert_type(consumer.name, str)
    assert_type(consumer.stats(), ConsumerStats)
    assert_type(consumer.run_stats(), RunStats | None)
    assert_type(consumer.assignment(), tuple[TopicPartition, ...])
    assert_type(await consumer.lag(), dict[TopicPartition, int])
