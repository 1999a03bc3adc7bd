"""confluent-kafka's AIOProducer and AIOConsumer, on librdkafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from confluent_kafka.aio import AIOConsumer, AIOProducer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.kafka.meter import Meter

    from . import Pair

BATCH_SIZE = 1000
"""Records that AIOProducer passes to a thread together; its default. `--tune` tries others."""

CONSUME = 1000
"""Records per call of `consume`, as its documentation recommends for throughput."""

_POLL = 0.5


class Producer:
    def __init__(self, producer: AIOProducer) -> None:
        self._producer = producer

    async def send(self, topic: str, pairs: Sequence[Pair]) -> None:
        produce = self._producer.produce
        futures = [await produce(topic, value=value, key=key) for key, value in pairs]
        # Without a flush the last records wait for a timer.
        await self._producer.flush()
        for future in futures:
            await future

    async def send_and_wait(self, topic: str, value: bytes, key: bytes | None = None) -> None:
        future = await self._producer.produce(topic, value=value, key=key)
        await self._producer.flush()
        await future

    async def aclose(self) -> None:
        await self._producer.close()


async def open_producer(servers: str, **setting: Any) -> Producer:
    batch_size = setting.pop("batch_size", BATCH_SIZE)
    options = {"bootstrap.servers": servers, "acks": "all"} | setting
    return Producer(AIOProducer(options, batch_size=batch_size))


class Consumer:
    def __init__(self, consumer: AIOConsumer, at_once: int) -> None:
        self._consumer = consumer
        self._at_once = at_once

    async def iterate(self, meter: Meter, handler: Callable[[], Awaitable[None]] | None) -> None:
        handled = meter.handled
        while True:
            for record in await self._consumer.consume(self._at_once, _POLL):
                assert record.error() is None, record.error()
                if handler is not None:
                    await handler()
                if handled():
                    return

    async def run(
        self,
        meter: Meter,
        handler: Callable[[], Awaitable[None]] | None,
        concurrency: int,  # noqa: ARG002 (it has no handlers: they run one by one)
    ) -> None:
        async def nothing() -> None:
            pass

        await self.iterate(meter, handler or nothing)

    async def aclose(self) -> None:
        await self._consumer.close()

    @classmethod
    async def open(cls, servers: str, topic: str, group: str, **setting: Any) -> Self:
        at_once = setting.pop("consume", CONSUME)
        options = {"bootstrap.servers": servers, "group.id": group} | setting
        # One thread more than needed: with the default of 100 it closes more slowly.
        consumer = AIOConsumer({"auto.offset.reset": "earliest"} | options, max_workers=2)
        await consumer.subscribe([topic])
        return cls(consumer, at_once)


open_consumer = Consumer.open
