"""Reads both stores back past our clients, with plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from resilient_io.demo.service.ledger import Stores
from resilient_io.demo.service.service import (
    BOOKED,
    DEAD_LETTERS,
    GROUP,
    PARTITIONS,
    TIMES,
    TOPIC,
)

if TYPE_CHECKING:
    from resilient_io.testing import KafkaBroker, RedisServer


async def read_stores(redis: RedisServer, kafka: KafkaBroker) -> Stores:
    """Return what is in both.

    Raises:
        OSError: Redis does not answer.
        KafkaError: Kafka does not.
    """
    booked = await _pairs(redis, BOOKED)
    times = await _pairs(redis, TIMES)
    return Stores(
        in_kafka=await read_orders(kafka, TOPIC),
        dead_letters=await read_orders(kafka, DEAD_LETTERS),
        booked=list(booked),
        times={number: int(count) for number, count in times.items()},
        uncommitted=await _uncommitted(kafka),
    )


async def read_orders(kafka: KafkaBroker, topic: str) -> list[str]:
    """Return the ids of all orders of a topic, as often as they are there."""
    partitions = _partitions(topic)
    consumer: Any = AIOKafkaConsumer(  # type: ignore[no-untyped-call]
        bootstrap_servers=kafka.direct_servers, enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        found: list[str] = []
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                records = await consumer.getmany(partition, timeout_ms=1000)
                for record in records.get(partition, ()):
                    number, _, _ = record.value.decode().partition(" ")
                    found.append(number)
        return found
    finally:
        await consumer.stop()


async def _uncommitted(kafka: KafkaBroker) -> int:
    partitions = _partitions(TOPIC)
    consumer: Any = AIOKafkaConsumer(  # type: ignore[no-untyped-call]
        bootstrap_servers=kafka.direct_servers, enable_auto_commit=False, group_id=GROUP
    )
    await consumer.start()
    try:
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        return sum([ends[each] - (await consumer.committed(each) or 0) for each in partitions])
    finally:
        await consumer.stop()


def _partitions(topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in range(PARTITIONS)]


async def _pairs(redis: RedisServer, key: str) -> dict[str, str]:
    found = await redis.query("HGETALL", key)
    if not isinstance(found, list):
        raise TypeError(f"the server answered {found!r:.80}")
    texts = [_text(each) for each in found]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _text(value: object) -> str:
    if not isinstance(value, bytes):
        raise TypeError(f"the server answered {value!r:.80} where text was expected")
    return value.decode()
