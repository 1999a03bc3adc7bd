"""A consumer as a member of its group: slow, blocked, closed; and in a cluster that is hurt."""

import asyncio
import contextlib
import itertools
import logging
import time

import pytest
from aiokafka import AIOKafkaProducer

from resilient_io import State
from resilient_io.kafka.consumer import ConsumerSettings, ResilientKafkaConsumer

_names = itertools.count()
SOON = 40.0


async def produced(kafka, topic, start, end, **options):
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, **options) as producer:
        for n in range(start, end):
            await producer.send(topic, b"%d" % n, partition=n % 2)


def consumer_of(kafka, topic, **options):
    options = {
        "auto_offset_reset": "earliest",
        "group_id": f"group-{topic}",
        "settings": ConsumerSettings(commit_interval=0.2, drain_timeout=0.5),
        "heartbeat_interval_ms": 200,
        "session_timeout_ms": 6000,
    } | options
    return ResilientKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap_servers, **options)


@pytest.fixture
async def topic(shared_kafka):
    name = f"member-{next(_names)}"
    await shared_kafka.create_topic(name, partitions=2)
    await produced(shared_kafka, name, 0, 20)
    return name


async def all_of(reader, count, handle=None, *, within=SOON):
    """Take records until so many different ones were handled; return all that came."""
    values = []
    async with asyncio.timeout(within):
        async for record in reader:
            values.append(int(record.value))
            if handle is not None:
                await handle(len(values))
            if len(set(values)) == count:
                record.done()
                return values
    raise AssertionError("the iteration ended")


async def test_a_closed_consumer_has_left_its_group(shared_kafka, topic, members):
    async with consumer_of(shared_kafka, topic) as reader:
        await all_of(reader, 20)
        _, there = await members(shared_kafka, reader.group_id)
        assert len(there) == 1
    assert await members(shared_kafka, reader.group_id) == ("Empty", [])


async def test_handling_beyond_the_poll_interval_costs_the_place_but_no_record(shared_kafka, topic):
    async def handle(count):
        if count == 5:
            await asyncio.sleep(2.5)

    async with consumer_of(shared_kafka, topic, max_poll_interval_ms=1000) as reader:
        values = await all_of(reader, 20, handle)
        assert sorted(set(values)) == list(range(20))
        assert len(values) <= 21, "at most the one that took so long comes again"
        assert reader.stats().rebalances == 2


@pytest.mark.soak
async def test_a_loop_blocked_beyond_the_session_costs_the_place_but_no_record(shared_kafka, topic):
    async def handle(count):
        if count == 5:
            time.sleep(9.0)

    async with consumer_of(shared_kafka, topic) as reader:
        values = await all_of(reader, 20, handle)
        assert sorted(set(values)) == list(range(20))
        await produced(shared_kafka, topic, 20, 30)
        assert set(await all_of(reader, 10)) == set(range(20, 30))


@pytest.mark.soak
async def test_a_minute_without_kafka_takes_ten_lines_of_log(kafka_server, caplog):
    await kafka_server.create_topic("t", partitions=2)
    await produced(kafka_server, "t", 0, 20)
    async with consumer_of(kafka_server, "t") as reader:
        await all_of(reader, 20)
        waiting = asyncio.create_task(all_of(reader, 20, within=150.0))
        with caplog.at_level(logging.INFO):
            caplog.clear()
            cpu = time.process_time()
            kafka_server.kill()
            await asyncio.sleep(60.0)
            cpu = time.process_time() - cpu
            await kafka_server.restart()
            await reader.health.until_up(SOON)
            await asyncio.sleep(3.0)
            records = [r for r in caplog.records if r.name.startswith(("resilient_io", "aiokafka"))]
        assert len(records) <= 10, caplog.text
        assert cpu < 6.0, "it does not spin"
        await produced(kafka_server, "t", 20, 40)
        assert set(await waiting) == set(range(20, 40))


@pytest.mark.soak
async def test_a_cluster_that_loses_the_leader_and_the_coordinator_goes_on(kafka_cluster):
    await kafka_cluster.create_topic("t", partitions=2)
    await produced(kafka_cluster, "t", 0, 100, acks="all")
    async with consumer_of(kafka_cluster, "t") as reader:
        first = await all_of(reader, 100)
        changes = []
        reader.health.on_change(changes.append)
        coordinator = await kafka_cluster.coordinator_of(reader.group_id)
        kafka_cluster.broker(coordinator).kill()
        await produced(kafka_cluster, "t", 100, 200, acks="all")
        second = await all_of(reader, 100)
        assert sorted(set(first) | set(second)) == list(range(200))
    assert State.DOWN not in [change.state for change in changes], "a part is not the whole"


async def test_two_consumers_share_one_health(shared_kafka, topic):
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(consumer_of(shared_kafka, topic))
        two = await stack.enter_async_context(
            consumer_of(shared_kafka, topic, health=one.health, group_id=f"other-{topic}")
        )
        assert len(await all_of(one, 20)) == len(await all_of(two, 20)) == 20
        await two.aclose()
        assert one.health.state is State.UP, "it is not the second one's to close"
