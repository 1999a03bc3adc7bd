"""A consumer whose handlers hang: liveness tells, the lag is known, and an outage is neither."""

import asyncio

import pytest

from resilient_io import ConsumerSettings, HealthMonitor, ResilientKafkaConsumer
from resilient_io.kafka import ResilientKafkaProducer
from resilient_io.kafka.processing import RunLimits

SOON = 40.0


async def until(fact):
    async with asyncio.timeout(SOON):
        while not fact():  # noqa: ASYNC110 - a fact about many parts
            await asyncio.sleep(0.02)


@pytest.mark.soak
async def test_handlers_that_hang_make_it_stuck_but_not_while_kafka_is_away(kafka_server, name):
    await kafka_server.create_topic(name)
    servers = kafka_server.bootstrap_servers
    async with ResilientKafkaProducer(servers) as producer:
        for number in range(10):
            await producer.send_and_wait(name, b"%d" % number)

    hanging, done = asyncio.Event(), []

    async def handle(record):
        await hanging.wait()
        done.append(record.offset)

    consumer = ResilientKafkaConsumer(
        name,
        bootstrap_servers=servers,
        group_id=name,
        auto_offset_reset="earliest",
        max_poll_interval_ms=3_000,
        settings=ConsumerSettings(commit_interval=0.2),
    )
    async with consumer, HealthMonitor(consumer.health, liveness=[consumer]) as monitor:
        running = asyncio.create_task(
            consumer.run(handle, order="partition", limits=RunLimits(drain_timeout=1.0)),
            name="run of the test",
        )
        await until(lambda: consumer.known_lag() == {(name, 0): 10})
        assert await consumer.lag(10) == consumer.known_lag()
        assert monitor.alive

        await until(lambda: not monitor.alive)
        (why,) = monitor.liveness_failures
        assert why.startswith("run() has 10 records in memory and 1 handlers at work, and nothing")
        assert monitor.ready  # Kafka is well: readiness is another question

        kafka_server.kill()
        await until(lambda: not consumer.health.state.answering)
        assert monitor.alive
        await asyncio.sleep(3.5)  # longer than the bound
        assert monitor.alive
        assert not monitor.ready
        await kafka_server.restart()
        await until(lambda: monitor.ready)
        assert monitor.alive  # its time begins anew

        hanging.set()
        await until(lambda: len(done) >= 10)
        await until(lambda: set(consumer.known_lag().values()) == {0})
        assert consumer.liveness_failure() is None
    await running
    assert consumer.liveness_failure() is None
    assert consumer.known_lag() == {}
