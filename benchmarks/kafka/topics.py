"""Topics: filled before they are read, counted after they were written."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from .plan import key_of, value_of

if TYPE_CHECKING:
    from resilient_io.testing import KafkaServer

_BATCH_BYTES = 256 * 1024


async def fill(server: KafkaServer, topic: str, partitions: int, count: int) -> None:
    """Create a topic and write records, evenly, each key to one partition."""
    # aiokafka logs errors until the new topic has a leader.
    logging.getLogger("aiokafka").setLevel(logging.ERROR + 1)
    await server.create_topic(topic, partitions=partitions)
    # Any, because aiokafka has no type hints for batches.
    producer: Any = AIOKafkaProducer(
        bootstrap_servers=server.bootstrap_servers, acks="all", max_batch_size=_BATCH_BYTES
    )
    await producer.start()
    try:
        for partition in range(partitions):
            batch = producer.create_batch()
            for number in range(partition, count, partitions):
                record = {"timestamp": None, "key": key_of(number), "value": value_of(number)}
                if batch.append(**record) is None:
                    await (await producer.send_batch(batch, topic, partition=partition))
                    batch = producer.create_batch()
                    batch.append(**record)
            await (await producer.send_batch(batch, topic, partition=partition))
    finally:
        await producer.stop()


async def written(server: KafkaServer, topic: str, partitions: int) -> int:
    """Return the number of records in a topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=server.bootstrap_servers)
    await consumer.start()
    try:
        ends = await consumer.end_offsets([TopicPartition(topic, n) for n in range(partitions)])
    finally:
        await consumer.stop()
    return sum(ends.values())
