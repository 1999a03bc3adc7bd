"""The network between the clients and Kafka is cut: packets vanish, no connection is reset."""

import asyncio
import contextlib
import re

import pytest

from resilient_io import Cause, ResilientIOError, State
from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer

GONE = re.compile(r"no acknowledgement from the host for \d\.\d s, \d retransmissions")
TOPIC = "records"


@pytest.fixture
async def broker(networks, network):
    async with networks.kafka_in(network) as broker:
        yield broker


async def _down(health):
    async for change in health.watch():
        if change.state is State.DOWN:
            return change
    raise AssertionError("closed")


async def test_a_cut_network_is_down_within_1_5_seconds_and_its_end_is_noticed(
    network, broker, slack
):
    """A producer and a consumer with traffic, and a consumer that only waits."""
    servers = broker.bootstrap_servers
    received = 0

    async def consume(consumer):
        nonlocal received
        async for _ in consumer:
            received += 1

    async def produce(producer):
        while True:
            with contextlib.suppress(ResilientIOError):
                await producer.send_and_wait(TOPIC, b"value")
            await asyncio.sleep(0.001)

    async with (
        ResilientKafkaProducer(bootstrap_servers=servers, enable_idempotence=False) as producer,
        ResilientKafkaConsumer(TOPIC, bootstrap_servers=servers, group_id="group") as consumer,
        ResilientKafkaConsumer("other", bootstrap_servers=servers, group_id="idle") as idle,
    ):
        await producer.send_and_wait(TOPIC, b"first")
        await producer.send_and_wait("other", b"first")
        tasks = [asyncio.create_task(consume(consumer)), asyncio.create_task(consume(idle))]
        tasks.append(asyncio.create_task(produce(producer)))
        async with asyncio.timeout(20):
            while received < 50:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.05)
        link = producer.health.snapshot()["link"]
        assert 0 < link["rtt"] < 0.1

        clients = [producer, consumer, idle]
        waits = [asyncio.create_task(_down(client.health)) for client in clients]
        cut = asyncio.get_running_loop().time()
        network.cut()
        async with asyncio.timeout(10):
            changes = await asyncio.gather(*waits)
        for change, limit in zip(changes, (1.5, 1.5, 2.0), strict=True):
            assert change.cause is Cause.UNREACHABLE, change
            assert GONE.fullmatch(change.detail)
            assert change.at - cut <= limit + slack(0)

        network.restore()
        for client in clients:
            await client.health.until_up(20)
        before = received
        async with asyncio.timeout(30):
            while received == before:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_lost_packets_are_no_outage_of_kafka(network, broker):
    async with ResilientKafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, enable_idempotence=False
    ) as producer:
        await producer.send_and_wait(TOPIC, b"first")
        changes = []
        producer.health.on_change(changes.append)
        network.lose(0.02)
        until = asyncio.get_running_loop().time() + 5
        while asyncio.get_running_loop().time() < until:
            await producer.send_and_wait(TOPIC, b"value")
        assert not changes
        assert producer.health.link.retransmitted > 0
