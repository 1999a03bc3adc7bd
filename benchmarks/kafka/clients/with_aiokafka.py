"""aiokafka with its defaults, except for what its documentation says about throughput."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.kafka.meter import Meter

    from . import Pair

MAX_BATCH_SIZE = 64 * 1024
"""Bytes; `python -m benchmarks kafka --tune` tries others (its default is 16 KiB)."""


class Producer:
    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self.send_and_wait = producer.send_and_wait

    async def send(self, topic: str, pairs: Sequence[Pair]) -> None:
        send = self._producer.send
        futures = [await send(topic, value, key) for key, value in pairs]
        for future in futures:
            await future

    async def many(self, topic: str, pairs: Sequence[Pair]) -> None:
        """Fill batches by hand, for each partition in turn: keys do not choose the partition."""
        producer = self._producer
        partitions = sorted(await producer.partitions_for(topic))
        futures, turn = [], 0
        batch = producer.create_batch()
        for key, value in pairs:
            if batch.append(timestamp=None, key=key, value=value) is None:
                partition = partitions[turn % len(partitions)]
                futures.append(await producer.send_batch(batch, topic, partition=partition))
                turn += 1
                batch = producer.create_batch()
                batch.append(timestamp=None, key=key, value=value)
        partition = partitions[turn % len(partitions)]
        futures.append(await producer.send_batch(batch, topic, partition=partition))
        for future in futures:
            await future

    async def aclose(self) -> None:
        await self._producer.stop()


async def open_producer(servers: str, **setting: Any) -> Producer:
    options = {"acks": "all", "max_batch_size": MAX_BATCH_SIZE} | setting
    producer = AIOKafkaProducer(bootstrap_servers=servers, **options)
    await producer.start()
    return Producer(producer)


class Consumer:
    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    async def iterate(self, meter: Meter, handler: Callable[[], Awaitable[None]] | None) -> None:
        handled = meter.handled
        if handler is None:
            async for _ in self._consumer:
                if handled():
                    return
        else:
            async for _ in self._consumer:
                await handler()
                if handled():
                    return

    async def aclose(self) -> None:
        await self._consumer.stop()

    @classmethod
    async def open(cls, servers: str, topic: str, group: str, **setting: Any) -> Self:
        options = {"group_id": group, "auto_offset_reset": "earliest"} | setting
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=servers, **options)
        await consumer.start()
        return cls(consumer)


open_consumer = Consumer.open
