"""Reads both stores back past our clients, with plain ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

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
    from collections.abc import Mapping, Sequence

    from resilient_io.testing import KafkaBroker, RedisServer

_NOTHING_MORE_MS: Final = 300


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a topic.

    Attributes:
        numbers: The ids of all its orders, as often as they are there.
        ends: By partition, the offset after its last record.
    """

    numbers: Sequence[str]
    ends: Mapping[TopicPartition, int]


async def read_stores(redis: RedisServer, kafka: KafkaBroker) -> Stores:
    """Return what is in both.

    Raises:
        OSError: Redis does not answer.
        KafkaError: Kafka does not.
    """
    booked = await _pairs(redis, BOOKED)
    times = await _pairs(redis, TIMES)
    orders = await read_topic(kafka, TOPIC)
    dead_letters = await read_topic(kafka, DEAD_LETTERS)
    committed = await _committed(kafka)
    return Stores(
        in_kafka=orders.numbers,
        dead_letters=dead_letters.numbers,
        booked=list(booked),
        times={number: int(count) for number, count in times.items()},
        uncommitted=sum(end - committed[partition] for partition, end in orders.ends.items()),
    )


async def read_topic(kafka: KafkaBroker, topic: str) -> Contents:
    """Return all that is in a topic."""
    consumer: Any = AIOKafkaConsumer(
        bootstrap_servers=kafka.direct_servers, enable_auto_commit=False
    )
    partitions = _partitions(topic)
    numbers: list[str] = []
    async with consumer:
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found = True
        # On to where nothing comes: after a repeated batch the ends of Tansu 0.6 are too low.
        while found or any([await consumer.position(each) < ends[each] for each in partitions]):
            found = await consumer.getmany(timeout_ms=_NOTHING_MORE_MS)
            for record in (record for records in found.values() for record in records):
                number, _, _ = record.value.decode().partition(" ")
                numbers.append(number)
        return Contents(numbers, {each: await consumer.position(each) for each in partitions})


async def _committed(kafka: KafkaBroker) -> dict[TopicPartition, int]:
    consumer: Any = AIOKafkaConsumer(
        bootstrap_servers=kafka.direct_servers, enable_auto_commit=False, group_id=GROUP
    )
    partitions = _partitions(TOPIC)
    async with consumer:
        consumer.assign(partitions)
        return {each: await consumer.committed(each) or 0 for each in partitions}


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
