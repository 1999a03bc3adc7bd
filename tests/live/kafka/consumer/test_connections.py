"""A consumer whose connections are cut, stalled or lose single answers, on a real broker."""

import asyncio
import random

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from resilient_io import Dependency, HealthSettings
from resilient_io.kafka.consumer import ConsumerSettings, ResilientKafkaConsumer

SOON = 40.0


async def produced(kafka, topic, start, end):
    async with AIOKafkaProducer(bootstrap_servers=kafka.direct_servers) as producer:
        for n in range(start, end):
            await producer.send(topic, b"%d" % n, partition=n % 2)


async def committed(kafka, topic):
    async with AIOKafkaConsumer(bootstrap_servers=kafka.direct_servers, group_id=topic) as look:
        return [await look.committed(TopicPartition(topic, n)) for n in range(2)]


@pytest.fixture
async def topic(proxied_kafka, name):
    await proxied_kafka.create_topic(name, partitions=2)
    await produced(proxied_kafka, name, 0, 200)
    return name


def consumer_of(kafka, topic):
    return ResilientKafkaConsumer(
        topic,
        bootstrap_servers=kafka.bootstrap_servers,
        group_id=topic,
        auto_offset_reset="earliest",
        health=Dependency("kafka", settings=HealthSettings(interval=0.2, timeout=0.5)),
        settings=ConsumerSettings(commit_interval=0.1, drain_timeout=1.0),
        heartbeat_interval_ms=200,
        session_timeout_ms=10_000,
    )


async def handle(reader, values, total, *, pause=0.0):
    """Handle records until so many different ones were."""
    async with asyncio.timeout(SOON):
        async for record in reader:
            await asyncio.sleep(pause)
            values.append(int(record.value))
            if len(set(values)) == total:
                record.done()
                return


def in_order(values):
    """Tell whether what came for the first time came in the order of its partition."""
    for partition in range(2):
        there = list(dict.fromkeys(n for n in values if n % 2 == partition))
        if there != sorted(there):
            return False
    return True


async def test_connections_cut_again_and_again_lose_nothing(proxied_kafka, kafka_proxy, topic):
    rng = random.Random(3)
    values = []

    async def cut():
        while True:
            await asyncio.sleep(rng.uniform(0.1, 0.5))
            kafka_proxy.reset()

    async with consumer_of(proxied_kafka, topic) as reader:
        cutting = asyncio.create_task(cut())
        await handle(reader, values, 200, pause=0.02)
        cutting.cancel()
        await asyncio.wait([cutting])
        await produced(proxied_kafka, topic, 200, 300)
        await handle(reader, values, 300)
    assert sorted(set(values)) == list(range(300))
    assert in_order(values)
    assert len(values) == 300, "nothing came twice to this member"
    assert await committed(proxied_kafka, topic) == [150, 150]


@pytest.mark.parametrize("request_name", ["OffsetCommit", "Heartbeat", "Fetch"])
async def test_a_connection_that_falls_silent_is_made_anew(
    proxied_kafka, kafka_proxy, topic, request_name
):
    """Long before the driver's own 40 s, and before the place in the group is lost."""
    values = []
    async with consumer_of(proxied_kafka, topic) as reader:
        await handle(reader, values, 20, pause=0.002)
        lost = kafka_proxy.drop_reply(request_name)
        async with asyncio.timeout(SOON):
            handling = asyncio.create_task(handle(reader, values, 300, pause=0.002))
            await lost.happened()
            await produced(proxied_kafka, topic, 200, 300)
            before = asyncio.get_running_loop().time()
            await handling
            while await committed(proxied_kafka, topic) != [150, 150]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert asyncio.get_running_loop().time() - before < 10.0
        assert reader.stats().rebalances == 1
    assert len(values) == 300


async def test_a_commit_that_was_made_though_nobody_said_so_is_made_again(
    proxied_kafka, kafka_proxy, topic
):
    values = []
    async with consumer_of(proxied_kafka, topic) as reader:
        reset = kafka_proxy.reset_on("OffsetCommit", forward=True)
        await handle(reader, values, 200, pause=0.002)
        await reset.happened()
    assert len(values) == 200
    assert await committed(proxied_kafka, topic) == [100, 100]


async def test_silence_is_waited_out(proxied_kafka, kafka_proxy, topic):
    values = []
    async with consumer_of(proxied_kafka, topic) as reader:
        await handle(reader, values, 100, pause=0.002)
        kafka_proxy.stall()
        await asyncio.sleep(1.5)
        kafka_proxy.resume()
        await handle(reader, values, 200)
    assert sorted(values) == list(range(200))
    assert in_order(values)
