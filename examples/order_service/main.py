"""Reads orders from Kafka, stores them in Redis, and announces them in Kafka.

An order is JSON, `{"id": "a-1", "customer": "ada", "amount": 12}`, with the customer as its key.
Kafka delivers at least once, so the handler is idempotent: the amount is stored under the order's
ID, and the announcement contains the ID, so that its readers can recognize duplicates.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from settings import Settings

from resilient_io import (
    ConsumerSettings,
    Dependency,
    HandlerPolicy,
    HealthMonitor,
    ResilientKafkaConsumer,
    ResilientKafkaProducer,
    ResilientRedis,
    RunLimits,
)
from resilient_io.lifecycle import Lifecycle
from resilient_io.serve import Heartbeat, serve

if TYPE_CHECKING:
    from resilient_io.kafka import Record

log = logging.getLogger("order_service")


class OrderService:
    """The three clients, and the handler of an order."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redis = ResilientRedis.from_url(settings.redis_url)
        # Both Kafka clients report to the same dependency.
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
            settings=ConsumerSettings(drain_timeout=settings.drain_seconds),
        )
        self.clients = (self.redis, self.producer, self.consumer)
        # Critical, not shared: without Redis or Kafka this service can do nothing, and it receives
        # no requests.
        self.monitor = HealthMonitor(self.redis.health, self.kafka, liveness=self.clients)

    async def store(self, record: Record) -> None:
        """Store one order. If this raises, it is retried, at last from each retry topic."""
        order = record.value
        number, customer, amount = order["id"], order["customer"], int(order["amount"])
        # The field is the order's ID: storing the order again changes nothing.
        await self.redis.hset(f"orders:{customer}", number, amount)
        await self.producer.send_and_wait(
            self.settings.booked_topic,
            {"id": number, "customer": customer, "amount": amount},
            key=record.raw_key,
        )

    async def run(self) -> None:
        """Handle orders until SIGTERM or Ctrl-C. Kafka and Redis need not be available yet."""
        settings = self.settings
        async with Lifecycle(
            self.monitor,
            # Closed in this order: the consumer first, because it uses the others.
            self.consumer,
            self.producer,
            self.redis,
            self.kafka,
            grace_period=settings.grace_seconds,
            drain_delay=settings.drain_delay_seconds,
            servers=[
                serve(self.monitor, clients=self.clients, name="orders", port=settings.port),
                Heartbeat(self.monitor, settings.health_file),
            ],
        ):
            log.info("handling orders")
            await self.consumer.run(
                self.store,
                order="key",
                concurrency=settings.concurrency,
                retry_topics=[each for each in settings.retry_topics.split(",") if each],
                dead_letter=settings.dead_letter_topic,
                requires=[self.redis.health, self.kafka],
                handler_policy=HandlerPolicy(timeout=settings.handler_seconds),
                limits=RunLimits(bytes=settings.buffer_bytes),
            )


async def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    await OrderService(Settings.from_environment()).run()
    log.info("stopped")


if __name__ == "__main__":
    asyncio.run(main())
