"""What can be set from outside: environment variables, each with a default."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of the service; each is read from the variable of its name in capitals.

    Attributes:
        redis_url: Where Redis is.
        kafka_bootstrap_servers: Where Kafka is: brokers, separated by commas.
        group_id: The consumer group; its members share the partitions.
        orders_topic: The topic to read.
        booked_topic: The topic that is told of booked orders.
        dead_letter_topic: The topic for orders that cannot be booked.
        concurrency: Orders that are booked at once.
        buffer_bytes: Bytes of orders that may wait in memory. Each takes about twice its bytes, as
            it came and as it was read; and the driver fetches up to a megabyte for each partition.
        handler_seconds: Longest time that one attempt to book an order may take.
        drain_seconds: Longest time that orders in hand get when the service is stopped.
        grace_seconds: Longest time for all of stopping. Let the platform wait longer before it
            kills (`stop_grace_period` in compose.yaml, `terminationGracePeriodSeconds`).
        notice_seconds: Time to go on after the signal, while others notice that it is not ready.
            Nobody sends this service requests, so there is nobody to wait for.
        port: Where probes, metrics and the status page are served.
        health_file: Is written every second, for the container's HEALTHCHECK.
    """

    redis_url: str = "redis://localhost:6379"
    kafka_bootstrap_servers: str = "localhost:9092"
    group_id: str = "order-service"
    orders_topic: str = "orders"
    booked_topic: str = "orders.booked"
    dead_letter_topic: str = "orders.dead"
    concurrency: int = 32
    buffer_bytes: int = 8 * 1024 * 1024
    handler_seconds: float = 10.0
    drain_seconds: float = 10.0
    grace_seconds: float = 20.0
    notice_seconds: float = 0.0
    port: int = 8080
    health_file: str = "/tmp/order-service.health"  # noqa: S108 - of its own container

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read them; what is not set keeps its default.

        Raises:
            ValueError: A number is none.
        """
        given = {}
        for field in dataclasses.fields(cls):
            text = environment.get(field.name.upper())
            if text is not None:
                given[field.name] = type(field.default)(text)
        return cls(**given)
