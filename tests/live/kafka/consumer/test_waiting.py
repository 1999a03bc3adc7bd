"""A consumer that has nothing to do although Kafka works: health says what it waits for."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener

from resilient_io import Cause, State
from resilient_io.kafka import ConsumerSettings, ResilientKafkaConsumer
from resilient_io.testing import KafkaServer

SOON = 30.0
QUICK = ConsumerSettings(stalled_after=1.0, commit_interval=0.2)


async def until(condition):
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - nothing notifies of most of these conditions
            await asyncio.sleep(0.02)


async def until_state(dependency, state, cause=None):
    await until(lambda: (dependency.state, dependency.cause) == (state, cause))


async def read(consumer, values):
    async for record in consumer:
        values.append(record.value)


async def test_an_open_transaction_is_not_a_stalled_partition(shared_kafka, name):
    await shared_kafka.create_topic(name)
    servers, values = shared_kafka.bootstrap_servers, []
    producer = AIOKafkaProducer(bootstrap_servers=servers, transactional_id=name)
    async with producer:
        async with producer.transaction():
            await producer.send_and_wait(name, b"committed")
        await producer.begin_transaction()
        await producer.send_and_wait(name, b"open")
        async with ResilientKafkaConsumer(
            name,
            bootstrap_servers=servers,
            group_id=name,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            settings=QUICK,
        ) as consumer:
            reading = asyncio.create_task(read(consumer, values))
            await until_state(consumer.health, State.DEGRADED, Cause.OPEN_TRANSACTION)
            assert (
                f"{name}[0]: an open transaction at offset 2 has hidden" in consumer.health.detail
            )
            assert consumer.liveness_failure() is None
            await consumer.commit()
            assert await consumer.lag() == consumer.known_lag()
            await producer.commit_transaction()
            await until_state(consumer.health, State.UP)
            await until(lambda: len(values) == 2)
        await reading
    assert values == [b"committed", b"open"]


class Unresponsive(ConsumerRebalanceListener):
    """Keeps its member from joining the group again."""

    def __init__(self):
        self.over = asyncio.Event()

    async def on_partitions_revoked(self, revoked):
        if revoked:
            await self.over.wait()

    async def on_partitions_assigned(self, assigned):
        pass


async def test_a_rebalance_that_waits_for_another_member_is_reported(shared_kafka, name, produce):
    await shared_kafka.create_topic(name, partitions=2)
    await produce(shared_kafka, name, range(4))
    servers, listener = shared_kafka.bootstrap_servers, Unresponsive()
    other = AIOKafkaConsumer(
        bootstrap_servers=servers,
        group_id=name,
        session_timeout_ms=20_000,
        rebalance_timeout_ms=20_000,
        heartbeat_interval_ms=200,
    )
    async with other:
        other.subscribe([name], listener=listener)
        await until(other.assignment)
        async with ResilientKafkaConsumer(
            name, bootstrap_servers=servers, group_id=name, settings=QUICK
        ) as consumer:
            reading = asyncio.create_task(read(consumer, []))
            await until_state(consumer.health, State.DEGRADED, Cause.REBALANCING)
            assert f"the group '{name}' has been rebalancing for" in consumer.health.detail
            assert consumer.liveness_failure() is None
            listener.over.set()
            await until_state(consumer.health, State.UP)
            assert len(consumer.assignment()) == 1
        await reading


@pytest.mark.soak
async def test_a_full_group_is_reported_and_joined_with_a_backoff(name):
    async with KafkaServer(options={"group.max.size": 1}) as kafka:
        await kafka.create_topic(name)
        options = {"bootstrap_servers": kafka.bootstrap_servers, "group_id": name}
        async with ResilientKafkaConsumer(name, **options, settings=QUICK) as first:
            reading = [asyncio.create_task(read(first, []))]
            await until(first.assignment)
            second = ResilientKafkaConsumer(name, **options, settings=QUICK)
            async with second:
                reading.append(asyncio.create_task(read(second, [])))
                await until_state(second.health, State.DEGRADED, Cause.OVERLOADED)
                assert "full (group.max.size of the brokers)" in second.health.detail
                before = second.stats().instances
                await asyncio.sleep(12.0)
                assert second.stats().instances - before <= 8
                assert second.health.state is State.DEGRADED
                await first.aclose()
                await until_state(second.health, State.UP)
                assert second.assignment() == ((name, 0),)
        await asyncio.gather(*reading)
