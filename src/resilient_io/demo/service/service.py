"""The service: orders come from Kafka and are booked in Redis. So would a user write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_io.health import Dependency
from resilient_io.kafka import (
    DeadLetter,
    HandlerPolicy,
    ResilientKafkaConsumer,
    ResilientKafkaProducer,
    RunLimits,
)
from resilient_io.redis import ResilientRedis

if TYPE_CHECKING:
    from typing import Self

    from resilient_io.demo.service.run import Run
    from resilient_io.kafka import Record

HOST: Final = "127.0.0.1"
TOPIC: Final = "demo.orders"
PARTITIONS: Final = 4
DEAD_LETTERS: Final = "demo.orders.dead"
GROUP: Final = "demo.bookkeeping"
BOOKED: Final = "demo:orders:booked"
"""The hash with the amount of each booked order, by its id."""
TIMES: Final = "demo:orders:times"
"""The hash that counts how often each order was booked."""

CONCURRENCY: Final = 16
_HURRY: Final = 0.5


class Service:
    """Its three clients, and what it does with a record; an async context manager.

    Args:
        redis_port: Where Redis is.
        bootstrap_servers: Where Kafka is.
        idempotence: Whether the broker knows idempotent producers.
        run: Is told of each call of the handler.
    """

    def __init__(
        self, *, redis_port: int, bootstrap_servers: str, idempotence: bool, run: Run
    ) -> None:
        self.redis = ResilientRedis(host=HOST, port=redis_port, health=Dependency("redis"))
        # One health for both clients of the cluster.
        self.kafka = Dependency("kafka")
        self.producer = ResilientKafkaProducer(
            bootstrap_servers=bootstrap_servers,
            health=self.kafka,
            enable_idempotence=idempotence,
        )
        self.consumer = ResilientKafkaConsumer(
            TOPIC,
            bootstrap_servers=bootstrap_servers,
            group_id=GROUP,
            health=self.kafka,
            auto_offset_reset="earliest",
        )
        self._run = run

    async def serve(self) -> None:
        """Handle orders until the consumer is closed."""
        await self.consumer.run(
            self._book,
            order="key",
            concurrency=CONCURRENCY,
            requires=[self.redis.health],
            dead_letter=DeadLetter(topic=DEAD_LETTERS, producer=self.producer),
            handler_policy=HandlerPolicy(attempts=5),
            limits=RunLimits(slow_start=0.5),
        )

    async def __aenter__(self) -> Self:
        """Start the clients; never waits for Redis or Kafka."""
        for client in (self.redis, self.producer, self.consumer):
            await client.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close them, those first that need the others; in a hurry if something went wrong."""
        timeout = None if kind is None else _HURRY
        await self.consumer.aclose(timeout)
        await self.producer.aclose(timeout)
        await self.redis.aclose()
        # A health that was given is not closed with its clients.
        await self.redis.health.aclose()
        await self.kafka.aclose()

    async def _book(self, record: Record) -> None:
        """Book an order: what a second booking would do to the amount is nothing, thanks to its id.

        The counter beside it is only there to show when that happened.
        """
        number, amount = (record.value or b"").decode().split()
        with self._run.handling(record, number):
            async with self.redis.pipeline(transaction=True) as booking:
                booking.hset(BOOKED, number, amount)
                booking.hincrby(TIMES, number, 1)
                await booking.execute()
