"""One consumer in a process of its own, which is then killed, frozen or terminated.

`python -m benchmarks.redelivery.worker` reads one line of JSON from its standard input: the fields
of `Order`. SIGTERM closes the consumer as `Lifecycle` does.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resilient_io.kafka import HandlerPolicy, ResilientKafkaConsumer

from .ledger import Ledger

if TYPE_CHECKING:
    from resilient_io.kafka import Record

CONCURRENCY = 16
SESSION = 6.0
SLOW_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a worker reads, and how.

    Attributes:
        servers: The broker.
        topic: The topic, and the group of the same name.
        path: The file of the ledger.
        count: Number of records in the topic.
        partitions: Number of its partitions.
        kind: `run` with a handler that only counts, or `async for`.
        slow: The number of a record whose handler takes 10 s; -1 for none.
        failing: The number of a record whose handler raises, which ends `run`.
        pause: Seconds that each handler call takes.
    """

    servers: str
    topic: str
    path: str
    count: int
    partitions: int
    kind: Literal["run", "iterate"] = "run"
    slow: int = -1
    failing: int = -1
    pause: float = 0.0


async def consume(order: Order, ledger: Ledger) -> None:
    """Read until the consumer is closed by SIGTERM, or a handler raises."""
    consumer = ResilientKafkaConsumer(
        order.topic,
        bootstrap_servers=order.servers,
        group_id=order.topic,
        auto_offset_reset="earliest",
        session_timeout_ms=int(SESSION * 1000),
        heartbeat_interval_ms=1000,
    )
    loop, closing = asyncio.get_running_loop(), []

    def close() -> None:
        closing.append(loop.create_task(consumer.aclose()))

    loop.add_signal_handler(signal.SIGTERM, close)

    async def handle(record: Record) -> None:
        number = int(record.value)
        times = ledger.delivered(number)
        if order.pause:
            await asyncio.sleep(order.pause)
        if number == order.slow and times == 1:
            await asyncio.sleep(SLOW_SECONDS)
        if number == order.failing:
            raise ValueError("the handler fails")

    async with consumer:
        if order.kind == "run":
            once = HandlerPolicy(attempts=1)
            await consumer.run(handle, concurrency=CONCURRENCY, handler_policy=once)
        else:
            async for record in consumer:
                await handle(record)


def main() -> int:
    """Read the order, and consume; 1 if a handler raised."""
    order = Order(**json.loads(sys.stdin.readline()))
    with Ledger(Path(order.path), order.count) as ledger:
        try:
            asyncio.run(consume(order, ledger))
        except ValueError:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
