"""Idle clients rarely wake the process: that is what they cost, and it depends on no machine."""

import asyncio
import contextlib

from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer

SECONDS = 4.0


@contextlib.contextmanager
def counted_wakeups():
    """Count how often the event loop waits."""
    selector = asyncio.get_running_loop()._selector
    waits, select = [], selector.select

    def counting(timeout=None):
        if timeout is None or timeout > 0:
            waits.append(timeout)
        return select(timeout)

    selector.select = counting
    try:
        yield waits
    finally:
        selector.select = select


async def test_idle_consumer_waits_for_little_more_than_fetches_and_beats(shared_kafka, name):
    """Fetches twice and beats four times a second, and a heartbeat every three seconds."""
    servers = shared_kafka.bootstrap_servers
    async with ResilientKafkaProducer(bootstrap_servers=servers) as producer:
        await producer.send_and_wait(name, b"value")
    received = asyncio.Event()

    async def read(consumer):
        async for _ in consumer:
            received.set()

    async with ResilientKafkaConsumer(
        name, bootstrap_servers=servers, group_id=name, auto_offset_reset="earliest"
    ) as consumer:
        reading = asyncio.create_task(read(consumer))
        async with asyncio.timeout(30):
            await received.wait()
        await asyncio.sleep(3.0)  # after two seconds without a stall, the loop is watched less
        with counted_wakeups() as waits:
            await asyncio.sleep(SECONDS)
        assert len(waits) <= 12 * SECONDS
    await reading


async def test_idle_producer_waits_for_little_more_than_beats(shared_kafka, name):
    """Beats four times, and a probe once a second."""
    async with ResilientKafkaProducer(bootstrap_servers=shared_kafka.bootstrap_servers) as producer:
        await producer.send_and_wait(name, b"value")
        await asyncio.sleep(3.0)
        with counted_wakeups() as waits:
            await asyncio.sleep(SECONDS)
        assert len(waits) <= 10 * SECONDS
