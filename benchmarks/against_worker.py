"""One round of `benchmarks.against`, with the package that PYTHONPATH names.

Usage: `against_worker.py WORKLOAD ADDRESS LENGTH ROUND`. It uses only public names that both
versions have.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from resilient_io import ResilientKafkaConsumer, ResilientKafkaProducer, ResilientRedis

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WARM_UP = 0.2
CHUNK = 1000


async def main(workload: str, address: str, length: float, number: int) -> tuple[int, float, float]:
    """Run a workload; return how often it ran, the seconds and the CPU seconds."""
    if workload in ("run", "async-for"):
        read = run if workload == "run" else iterate
        return await read(address, int(length), number)
    if workload in ("send", "send-keyless", "wait-500", "fill"):
        return await send(address, length, workload)
    return await call_redis(workload, address, length)


async def call_redis(workload: str, url: str, seconds: float) -> tuple[int, float, float]:
    """Call GET from several tasks, or run pipelines of 100 GETs."""
    async with ResilientRedis.from_url(url) as redis:
        await redis.set("key", b"x" * 100)
        if workload == "pipeline":

            async def batch() -> None:
                pipeline = redis.pipeline(transaction=False)
                for _ in range(100):
                    pipeline.get("key")
                await pipeline.execute()

            await repeat(batch, 1, WARM_UP)
            return await repeat(batch, 1, seconds, worth=100)
        callers = int(workload.partition("-")[2])

        async def get() -> None:
            await redis.get("key")

        await repeat(get, callers, WARM_UP)
        return await repeat(get, callers, seconds)


async def repeat(
    work: Callable[[], Awaitable[None]], callers: int, seconds: float, *, worth: int = 1
) -> tuple[int, float, float]:
    """Repeat a piece of work in several tasks for some seconds."""
    done = 0
    started, cpu = time.perf_counter(), time.process_time()
    until = started + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await work()
            done += worth

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done, time.perf_counter() - started, time.process_time() - cpu


async def send(servers: str, length: float, workload: str) -> tuple[int, float, float]:
    """Send records of 1,000 keys or without keys, for some seconds or up to a number."""
    fill = workload == "fill"
    topic = "against-run" if fill else "against-send"
    keys = [None if workload == "send-keyless" else b"key-%d" % number for number in range(CHUNK)]
    value = b"x" * 200
    async with ResilientKafkaProducer(bootstrap_servers=servers) as producer:
        await producer.health.until_up(30)

        async def batch() -> None:
            futures = [await producer.send(topic, value, key) for key in keys]
            for future in futures:
                await future

        async def wait() -> None:
            for key in keys[:10]:
                await producer.send_and_wait(topic, value, key)

        if fill:
            for _ in range(int(length) // CHUNK):
                await batch()
            return 1, 1.0, 1.0
        work, callers, worth = (wait, 500, 10) if workload == "wait-500" else (batch, 20, CHUNK)
        await repeat(work, callers, 3 * WARM_UP, worth=worth)
        return await repeat(work, callers, length, worth=worth)


def open_consumer(servers: str, number: int) -> ResilientKafkaConsumer:
    """Return a consumer of a new group, from the beginning."""
    group = f"{number}-{time.time_ns()}"
    return ResilientKafkaConsumer(
        "against-run", bootstrap_servers=servers, group_id=group, auto_offset_reset="earliest"
    )


async def iterate(servers: str, records: int, number: int) -> tuple[int, float, float]:
    """Read all records of a topic in a loop that does nothing."""
    handled = 0
    started = cpu = 0.0
    async with open_consumer(servers, number) as consumer:
        async for _ in consumer:
            handled += 1
            if handled == CHUNK:
                started, cpu = time.perf_counter(), time.process_time()
            if handled == records:
                break
        return records - CHUNK, time.perf_counter() - started, time.process_time() - cpu


async def run(servers: str, records: int, number: int) -> tuple[int, float, float]:
    """Handle all records of a topic with a handler that does nothing."""
    handled = 0
    times: list[tuple[float, float]] = []
    consumer = open_consumer(servers, number)

    async def handle(record: Any) -> None:  # noqa: ARG001 (the handler needs none of it)
        nonlocal handled
        handled += 1
        if handled in (CHUNK, records):
            times.append((time.perf_counter(), time.process_time()))
            if handled == records:
                finished.set()

    finished = asyncio.Event()
    async with consumer:
        running = asyncio.create_task(consumer.run(handle))
        await finished.wait()
        await consumer.aclose()
        await running
    (started, cpu), (ended, cpu_end) = times
    return records - CHUNK, ended - started, cpu_end - cpu


if __name__ == "__main__":
    count, elapsed, spent = asyncio.run(
        main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
    )
    print(json.dumps({"rate": count / elapsed, "cpu": spent / count * 1e6}))
