"""resilient-io with its defaults."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.kafka.meter import Meter

    from . import Pair


class Producer:
    def __init__(self, producer: ResilientKafkaProducer) -> None:
        self._producer = producer
        self.send_and_wait = producer.send_and_wait

    async def send(self, topic: str, pairs: Sequence[Pair]) -> None:
        send = self._producer.send
        futures = [await send(topic, value, key) for key, value in pairs]
        for future in futures:
            await future

    async def many(self, topic: str, pairs: Sequence[Pair]) -> None:
        report = await self._producer.send_many(topic, pairs)
        assert report.delivered == len(pairs), report

    async def aclose(self) -> None:
        await self._producer.aclose()


async def open_producer(servers: str, **setting: Any) -> Producer:
    producer: Any = ResilientKafkaProducer(bootstrap_servers=servers, **setting)
    await producer.__aenter__()
    await producer.health.until_up(10)
    return Producer(producer)


class Consumer:
    def __init__(self, consumer: ResilientKafkaConsumer) -> None:
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

    async def run(
        self, meter: Meter, handler: Callable[[], Awaitable[None]] | None, concurrency: int
    ) -> None:
        handled = meter.handled

        async def nothing(record: Any) -> None:  # noqa: ARG001 (only the call is measured)
            handled()

        async def handle(record: Any) -> None:  # noqa: ARG001 (not needed by the handler)
            assert handler is not None
            await handler()
            handled()

        options: Any = {"concurrency": concurrency} if concurrency > 1 else {}
        running = asyncio.create_task(self._consumer.run(handle if handler else nothing, **options))
        await asyncio.wait((running, meter.result), return_when=asyncio.FIRST_COMPLETED)
        await self._consumer.aclose()
        await running

    async def aclose(self) -> None:
        await self._consumer.aclose()


async def open_consumer(servers: str, topic: str, group: str, **setting: Any) -> Consumer:
    options = {"auto_offset_reset": "earliest"} | setting
    consumer = ResilientKafkaConsumer(topic, bootstrap_servers=servers, group_id=group, **options)
    await consumer.__aenter__()
    return Consumer(consumer)
