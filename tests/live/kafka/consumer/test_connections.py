"""A consumer whose connections are cut, stalled or lose single responses, on a real broker."""

import asyncio
import random

import pytest

from resilient_io import Dependency, HealthSettings

SOON = 40.0


@pytest.fixture
def options():
    """Options of consumers that notice failures quickly but keep their session."""
    return {
        "commit_interval": 0.1,
        "health": Dependency("kafka", settings=HealthSettings(interval=0.2, timeout=0.5)),
        "heartbeat_interval_ms": 200,
        "session_timeout_ms": 10_000,
    }


@pytest.fixture
async def topic(proxied_kafka, name, produce):
    await proxied_kafka.create_topic(name, partitions=2)
    await produce(proxied_kafka, name, range(200))
    return name


async def handle(reader, values, total, *, pause=0.0):
    """Handle records until `total` different ones were handled."""
    async with asyncio.timeout(SOON):
        async for record in reader:
            await asyncio.sleep(pause)
            values.append(int(record.value))
            if len(set(values)) == total:
                record.done()
                return


def in_order(values):
    """Return whether the first deliveries came in the order of their partitions."""
    for partition in range(2):
        there = list(dict.fromkeys(n for n in values if n % 2 == partition))
        if there != sorted(there):
            return False
    return True


async def test_connections_cut_repeatedly_lose_nothing(
    proxied_kafka, kafka_proxy, topic, produce, committed, consumer_of, options
):
    rng = random.Random(3)
    values = []

    async def cut():
        while True:
            await asyncio.sleep(rng.uniform(0.1, 0.5))
            kafka_proxy.reset()

    async with consumer_of(proxied_kafka, topic, **options) as reader:
        cutting = asyncio.create_task(cut())
        await handle(reader, values, 200, pause=0.02)
        cutting.cancel()
        await asyncio.wait([cutting])
        await produce(proxied_kafka, topic, range(200, 300))
        await handle(reader, values, 300)
    assert sorted(set(values)) == list(range(300))
    assert in_order(values)
    assert len(values) == 300, "no record was delivered twice to this member"
    assert await committed(proxied_kafka, topic, topic) == [150, 150]


@pytest.mark.parametrize("request_name", ["OffsetCommit", "Heartbeat", "Fetch"])
async def test_a_silent_connection_is_replaced(
    proxied_kafka, kafka_proxy, topic, request_name, produce, committed, consumer_of, options
):
    """It is replaced long before aiokafka's 40 s, and before the membership is lost."""
    values = []
    async with consumer_of(proxied_kafka, topic, **options) as reader:
        await handle(reader, values, 20, pause=0.002)
        lost = kafka_proxy.drop_reply(request_name)
        async with asyncio.timeout(SOON):
            handling = asyncio.create_task(handle(reader, values, 300, pause=0.002))
            await lost.happened()
            await produce(proxied_kafka, topic, range(200, 300))
            before = asyncio.get_running_loop().time()
            await handling
            while await committed(proxied_kafka, topic, topic) != [150, 150]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert asyncio.get_running_loop().time() - before < 10.0
        assert reader.stats().rebalances == 1
    assert len(values) == 300


async def test_a_commit_without_a_response_is_repeated(
    proxied_kafka, kafka_proxy, topic, committed, consumer_of, options
):
    values = []
    async with consumer_of(proxied_kafka, topic, **options) as reader:
        reset = kafka_proxy.reset_on("OffsetCommit", forward=True)
        await handle(reader, values, 200, pause=0.002)
        await reset.happened()
    assert len(values) == 200
    assert await committed(proxied_kafka, topic, topic) == [100, 100]


async def test_a_stalled_network_is_survived(
    proxied_kafka, kafka_proxy, topic, consumer_of, options
):
    values = []
    async with consumer_of(proxied_kafka, topic, **options) as reader:
        await handle(reader, values, 100, pause=0.002)
        kafka_proxy.stall()
        await asyncio.sleep(1.5)
        kafka_proxy.resume()
        await handle(reader, values, 200)
    assert sorted(values) == list(range(200))
    assert in_order(values)
