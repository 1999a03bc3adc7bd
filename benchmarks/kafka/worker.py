"""The process of one Kafka client."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.worker import run

from .clients import open_consumer, open_producer
from .meter import Meter
from .plan import BURST, CALLERS, key_of, value_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from .clients import Consumer, Pair, Producer

_TIMEOUT = 30.0
_SETTLING = 1.0


class KafkaServant:
    """One client, and the commands that it carries out."""

    def __init__(self, client: str, servers: str) -> None:
        self._client = client
        self._servers = servers
        self._producer: Producer | None = None
        self._pairs: list[Pair] = []

    async def open(self, *, keyed: bool, setting: dict[str, Any] | None = None) -> None:
        """Create a new producer."""
        await self.close()
        self._producer = await open_producer(self._client, self._servers, setting or {})
        self._pairs = [
            (key_of(number) if keyed else None, value_of(number)) for number in range(BURST)
        ]

    async def close(self) -> None:
        """Close the producer, if there is one."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.aclose()

    async def produce(self, kind: str, topic: str, seconds: float) -> dict[str, float]:
        """Do one round of producing; wait for and count the records still in flight."""
        assert self._producer is not None
        work: Callable[[Producer, str, float], Coroutine[Any, Any, int]] = getattr(self, f"_{kind}")
        gc.collect()
        cpu, start = time.process_time(), time.perf_counter()
        count = await work(self._producer, topic, seconds)
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"rate": count / elapsed, "cpu": cpu / count * 1e6, "count": count}

    async def _send(self, producer: Producer, topic: str, seconds: float) -> int:
        return await self._bursts(producer.send, topic, seconds)

    async def _many(self, producer: Producer, topic: str, seconds: float) -> int:
        return await self._bursts(producer.many, topic, seconds)

    async def _bursts(
        self, send: Callable[[str, list[Pair]], Awaitable[None]], topic: str, seconds: float
    ) -> int:
        end, count = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            await send(topic, self._pairs)
            count += len(self._pairs)
        return count

    async def _wait(self, producer: Producer, topic: str, seconds: float) -> int:
        end = time.perf_counter() + seconds
        send, clock, pairs = producer.send_and_wait, time.perf_counter, self._pairs

        async def call(place: int) -> int:
            number = place
            while clock() < end:
                key, value = pairs[number % BURST]
                await send(topic, value, key)
                number += CALLERS
            return (number - place) // CALLERS

        async with asyncio.TaskGroup() as callers:
            tasks = [callers.create_task(call(place)) for place in range(CALLERS)]
        return sum(task.result() for task in tasks)

    async def consume(
        self,
        *,
        kind: str,
        topic: str,
        group: str,
        seconds: float,
        total: int,
        handler: float,
        varied: bool,
        concurrency: int,
        setting: dict[str, Any] | None = None,
    ) -> dict[str, float]:
        """Do one round of consuming, with a new consumer."""
        consumer = await open_consumer(self._client, self._servers, topic, group, setting or {})
        meter = Meter(seconds, total)
        gc.collect()
        try:
            async with asyncio.timeout(_TIMEOUT):
                if kind == "run":
                    await consumer.run(meter, _handler(handler, varied=varied), concurrency)
                else:
                    await consumer.iterate(meter, _handler(handler, varied=varied))
                return await meter.result
        finally:
            await consumer.aclose()

    async def idle(self, role: str, topic: str, group: str, seconds: float) -> dict[str, float]:
        """Return the share of a core that an idle client uses, and how often it waits a second."""
        client: Producer | Consumer
        waiting: asyncio.Task[None] | None = None
        if role == "idle-producer":
            client = producer = await open_producer(self._client, self._servers, {})
            await producer.send_and_wait(topic, value_of(0), key_of(0))
        else:
            client = consumer = await open_consumer(self._client, self._servers, topic, group, {})
            # It reads the only record and waits for another.
            meter = Meter(0.0, 2)
            waiting = asyncio.create_task(consumer.iterate(meter, None))
            async with asyncio.timeout(_TIMEOUT):
                await meter.begun.wait()
        await asyncio.sleep(_SETTLING)
        gc.collect()
        cpu, waits, start = time.process_time(), _waits(), time.perf_counter()
        await asyncio.sleep(seconds)
        elapsed = time.perf_counter() - start
        share, waits = (time.process_time() - cpu) / elapsed, (_waits() - waits) / elapsed
        if waiting is not None:
            assert not waiting.done(), "the client was not idle"
            waiting.cancel()
            await asyncio.wait((waiting,))
        await client.aclose()
        return {"share": share, "waits": waits}


def _waits() -> float:
    """Return how often the threads of this process have waited for something."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def _handler(seconds: float, *, varied: bool) -> Callable[[], Awaitable[None]] | None:
    share = random.Random(1).random if varied else lambda: 1.0

    async def slow() -> None:
        await asyncio.sleep(seconds * share())

    return slow if seconds else None


def main() -> None:
    """Run as `python -m benchmarks.kafka.worker CLIENT SERVERS LOOP`."""
    client, servers, loop = sys.argv[1:]
    run(lambda: KafkaServant(client, servers), loop)


if __name__ == "__main__":
    main()
