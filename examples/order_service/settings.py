"""The settings of the service: environment variables with defaults."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings; each is read from the environment variable with its name in upper case.

    Attributes:
        redis_url: URL of Redis.
        kafka_bootstrap_servers: Kafka brokers, separated by commas.
        group_id: The consumer group; its members share the partitions.
        orders_topic: The topic to read.
        booked_topic: The topic for announcements of stored orders.
        retry_topics: Topics in which an order waits before it is tried again, separated by commas,
            for example "orders.retry.1m,orders.retry.10m". They must exist.
        dead_letter_topic: The topic for orders that cannot be stored.
        concurrency: Orders that are handled concurrently.
        buffer_bytes: Bytes of orders that may wait in memory. An order takes about twice its size,
            once raw and once deserialized; the driver buffers up to a megabyte per partition.
        handler_seconds: Time limit for one attempt to store an order.
        drain_seconds: Time limit for the orders that are being handled when the service stops.
        grace_seconds: Time limit for the whole shutdown. The platform must wait longer before it
            kills the process (`stop_grace_period`, `terminationGracePeriodSeconds`).
        drain_delay_seconds: Time during which the service continues after the signal while it is
            not ready. 0, because this service receives no requests from a load balancer.
        port: Port for probes, metrics and the status page.
        health_file: The heartbeat file for the container's HEALTHCHECK, written every second.
    """

    redis_url: str = "redis://localhost:6379"
    kafka_bootstrap_servers: str = "localhost:9092"
    group_id: str = "order-service"
    orders_topic: str = "orders"
    booked_topic: str = "orders.booked"
    retry_topics: str = ""
    dead_letter_topic: str = "orders.dead"
    concurrency: int = 32
    buffer_bytes: int = 8 * 1024 * 1024
    handler_seconds: float = 10.0
    drain_seconds: float = 10.0
    grace_seconds: float = 20.0
    drain_delay_seconds: float = 0.0
    port: int = 8080
    health_file: str = "/tmp/order-service.health"  # noqa: S108 - in its own container

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Return the settings from the environment, with defaults for missing variables.

        Raises:
            ValueError: A value is not a number.
        """
        given = {}
        for field in dataclasses.fields(cls):
            text = environment.get(field.name.upper())
            if text is not None:
                given[field.name] = type(field.default)(text)
        return cls(**given)
