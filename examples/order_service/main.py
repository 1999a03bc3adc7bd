"""Books orders: they come from Kafka, are written to Redis, and are announced in Kafka.

An order is JSON, `{"id": "a-1", "customer": "ada", "amount": 12}`, with the customer as its key.
Booking it is safe to repeat, for Kafka delivers at least once: the amount is filed under the
order's id, and whoever reads the announcements knows an order by its id, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from settings import Settings

from resilient_io import (
    Dependency,
    ResilientKafkaConsumer,
    ResilientKafkaProducer,
    ResilientRedis,
    RunLimits,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from resilient_io.kafka import Record

log = logging.getLogger("order_service")


class OrderService:
    """Three clients, and what is done with an order."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redis = ResilientRedis.from_url(settings.redis_url)
        # Both clients of the cluster share what they know of it.
        self.kafka = Dependency("kafka")
        self.producer = ResilientKafkaProducer(
            bootstrap_servers=settings.kafka_bootstrap_servers,
            health=self.kafka,
            value_serializer=lambda value: json.dumps(value).encode(),
        )
        self.consumer = ResilientKafkaConsumer(
            settings.orders_topic,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            group_id=settings.group_id,
            health=self.kafka,
            auto_offset_reset="earliest",
            value_deserializer=json.loads,
        )

    async def book(self, record: Record) -> None:
        """Book one order. What it raises is tried again; then the order is a dead letter."""
        order = record.value
        number, customer, amount = order["id"], order["customer"], int(order["amount"])
        # Under its id: booked a second time, nothing changes.
        await self.redis.hset(f"orders:{customer}", number, amount)
        await self.producer.send_and_wait(
            self.settings.booked_topic,
            {"id": number, "customer": customer, "amount": amount},
            key=record.raw_key,
        )

    async def serve(self) -> None:
        """Book orders until `stop`; nothing of Kafka or Redis has to be there yet."""
        # Left in the reverse order: the consumer first, which still uses the other two.
        async with self.redis, self.producer, self.consumer, self.healthy():
            log.info("booking orders")
            await self.consumer.run(
                self.book,
                order="key",
                concurrency=self.settings.concurrency,
                dead_letter=self.settings.dead_letter_topic,
                requires=[self.redis.health, self.kafka],
                limits=RunLimits(drain_timeout=self.settings.drain_seconds),
            )
        await self.kafka.aclose()

    async def stop(self) -> None:
        """Fetch no more, let the orders in hand end, commit, leave the group; then `serve` ends."""
        log.info("stopping")
        await self.consumer.aclose(self.settings.drain_seconds + 5.0)

    @contextlib.asynccontextmanager
    async def healthy(self) -> AsyncIterator[None]:
        """Keep the health file up to date: its age says that the process works."""
        task = asyncio.create_task(self._write_health(), name="health file")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _write_health(self) -> None:
        path = Path(self.settings.health_file)
        while True:
            states = {each.name: each.state.value for each in (self.redis.health, self.kafka)}
            await asyncio.to_thread(path.write_text, json.dumps(states))
            await asyncio.sleep(1.0)


async def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    service = OrderService(Settings.from_environment())
    stopping: list[asyncio.Task[None]] = []

    def leave() -> None:
        if not stopping:
            stopping.append(asyncio.create_task(service.stop(), name="stop"))

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave)
    await service.serve()
    await asyncio.gather(*stopping)
    log.info("stopped")


if __name__ == "__main__":
    asyncio.run(main())
