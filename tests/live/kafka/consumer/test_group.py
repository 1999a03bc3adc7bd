"""A consumer as a member of its group: slow, blocked or closed; and in a damaged cluster."""

import asyncio
import contextlib
import logging
import time

import pytest
from aiokafka.errors import KafkaError

from resilient_io import State

SOON = 40.0
OPTIONS = {"drain_timeout": 0.5, "heartbeat_interval_ms": 200}


@pytest.fixture
async def topic(shared_kafka, name, produce):
    await shared_kafka.create_topic(name, partitions=2)
    await produce(shared_kafka, name, range(20))
    return name


async def all_of(reader, count, handle=None, *, within=SOON):
    """Handle records until `count` different ones were handled; return all that came."""
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


async def test_a_closed_consumer_has_left_its_group(shared_kafka, topic, members, consumer_of):
    async with consumer_of(shared_kafka, topic, **OPTIONS) as reader:
        await all_of(reader, 20)
        _, there = await members(shared_kafka, reader.group_id)
        assert len(there) == 1
    assert await members(shared_kafka, reader.group_id) == ("Empty", [])


async def test_handling_beyond_the_poll_interval_costs_the_membership_but_no_record(
    shared_kafka, topic, consumer_of
):
    async def handle(count):
        if count == 5:
            await asyncio.sleep(2.5)

    async with consumer_of(shared_kafka, topic, **OPTIONS, max_poll_interval_ms=1000) as reader:
        values = await all_of(reader, 20, handle)
        assert sorted(set(values)) == list(range(20))
        assert len(values) <= 21, "at most the slow record is delivered again"
        assert reader.stats().rebalances == 2


@pytest.mark.soak
async def test_a_loop_blocked_beyond_the_session_costs_the_membership_but_no_record(
    shared_kafka, topic, produce, consumer_of
):
    async def handle(count):
        if count == 5:
            time.sleep(9.0)

    async with consumer_of(shared_kafka, topic, **OPTIONS) as reader:
        values = await all_of(reader, 20, handle)
        assert sorted(set(values)) == list(range(20))
        await produce(shared_kafka, topic, range(20, 30))
        assert set(await all_of(reader, 10)) == set(range(20, 30))


@pytest.mark.soak(seconds=70)
async def test_a_minute_without_kafka_writes_at_most_ten_log_lines(
    kafka_server, caplog, produce, consumer_of
):
    await kafka_server.create_topic("t", partitions=2)
    await produce(kafka_server, "t", range(20))
    async with consumer_of(kafka_server, "t", **OPTIONS) as reader:
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
        assert cpu < 6.0, "the consumer does not spin"
        await produce(kafka_server, "t", range(20, 40))
        assert set(await waiting) == set(range(20, 40))


@pytest.mark.soak
async def test_a_consumer_survives_the_loss_of_the_leader_and_the_coordinator(
    kafka_cluster, produce, consumer_of
):
    await kafka_cluster.create_topic("t", partitions=2)
    await produce(kafka_cluster, "t", range(100), acks="all")
    async with consumer_of(kafka_cluster, "t", **OPTIONS) as reader:
        first = await all_of(reader, 100)
        changes = []
        reader.health.on_change(changes.append)
        coordinator = await kafka_cluster.coordinator_of(reader.group_id)
        kafka_cluster.broker(coordinator).kill()
        await produce(kafka_cluster, "t", range(100, 200), acks="all")
        second = await all_of(reader, 100)
        assert sorted(set(first) | set(second)) == list(range(200))
    assert State.DOWN not in [change.state for change in changes], "one broker is not the cluster"


async def test_two_consumers_share_one_health(shared_kafka, topic, consumer_of):
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(consumer_of(shared_kafka, topic, **OPTIONS))
        two = await stack.enter_async_context(
            consumer_of(
                shared_kafka, topic, **OPTIONS, health=one.health, group_id=f"other-{topic}"
            )
        )
        assert len(await all_of(one, 20)) == len(await all_of(two, 20)) == 20
        await two.aclose()
        assert one.health.state is State.UP, "the second consumer does not close it"


async def test_the_older_of_two_members_with_one_instance_id_stops_with_the_cause(
    shared_kafka, topic, consumer_of
):
    options = OPTIONS | {"group_instance_id": "worker-1"}
    handled = []

    async def handler(record):
        handled.append(int(record.value))

    async with consumer_of(shared_kafka, topic, **options) as older:
        running = asyncio.create_task(older.run(handler))
        async with asyncio.timeout(SOON):
            while len(handled) < 20:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        async with consumer_of(shared_kafka, topic, **options) as newer:
            also_running = asyncio.create_task(newer.run(handler))
            async with asyncio.timeout(SOON):
                with pytest.raises(KafkaError, match="group_instance_id"):
                    await running
            await asyncio.sleep(2.0)
            assert not also_running.done(), "only one stops"
            assert newer.stats().instances == 1
            assert older.stats().instances == 1
    assert len(handled) <= 40
