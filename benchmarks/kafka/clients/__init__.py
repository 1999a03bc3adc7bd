"""The clients, each with the settings that its documentation recommends for the work.

A worker imports only its own client. Each module has a `Producer`, a `Consumer`, or both.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.kafka.plan import AIOKAFKA, BARE, CONFLUENT, FASTSTREAM, IDEMPOTENT, OURS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.kafka.meter import Meter

Pair = tuple[bytes | None, bytes]
"""A record's key and value."""

_MODULES = {
    AIOKAFKA: "with_aiokafka",
    IDEMPOTENT: "with_aiokafka",
    CONFLUENT: "with_confluent",
    FASTSTREAM: "with_faststream",
    OURS: "with_ours",
    BARE: "bare",
}


class Producer(Protocol):
    """A started producer."""

    send_and_wait: Callable[..., Awaitable[Any]]
    """Takes a topic, a value and a key."""

    async def send(self, topic: str, pairs: Sequence[Pair]) -> None:
        """Send the records one by one, then wait until all are acknowledged."""

    async def many(self, topic: str, pairs: Sequence[Pair]) -> None:
        """Send all records with the client's bulk call."""

    async def aclose(self) -> None:
        """Close it."""


class Consumer(Protocol):
    """A consumer, in a group, from the beginning of a topic."""

    async def iterate(self, meter: Meter, handler: Callable[[], Awaitable[None]] | None) -> None:
        """Read records one by one until the meter has finished."""

    async def run(
        self, meter: Meter, handler: Callable[[], Awaitable[None]] | None, concurrency: int
    ) -> None:
        """Have the client call a handler for each record until the meter has finished."""

    async def aclose(self) -> None:
        """Close it."""


async def open_producer(client: str, servers: str, setting: dict[str, Any]) -> Producer:
    """Start a client's producer."""
    options = {"enable_idempotence": True} if client == IDEMPOTENT else {}
    module = importlib.import_module(f"{__name__}.{_MODULES[client]}")
    producer: Producer = await module.open_producer(servers, **options, **setting)
    return producer


async def open_consumer(
    client: str, servers: str, topic: str, group: str, setting: dict[str, Any]
) -> Consumer:
    """Create a client's consumer; it joins its group immediately or at its first use."""
    module = importlib.import_module(f"{__name__}.{_MODULES[client]}")
    consumer: Consumer = await module.open_consumer(servers, topic, group, **setting)
    return consumer
