"""Hanging handlers: liveness fails and the lag is known, but an outage fails no liveness."""

import asyncio

import pytest

from resilient_io import HealthMonitor

SOON = 40.0


async def until(condition):
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - several components change it
            await asyncio.sleep(0.02)


@pytest.mark.soak
async def test_hanging_handlers_fail_liveness_except_while_kafka_is_unavailable(
    kafka_server, name, produce, consumer_of
):
    await kafka_server.create_topic(name)
    await produce(kafka_server, name, range(10), partitions=1)

    hanging, done = asyncio.Event(), []

    async def handle(record):
        await hanging.wait()
        done.append(record.offset)

    consumer = consumer_of(kafka_server, name, max_poll_interval_ms=3_000)
    async with consumer, HealthMonitor(consumer.health, liveness=[consumer]) as monitor:
        running = asyncio.create_task(
            consumer.run(handle, order="partition"),
            name="run of the test",
        )
        await until(lambda: consumer.known_lag() == {(name, 0): 10})
        assert await consumer.lag(10) == consumer.known_lag()
        assert monitor.alive

        await until(lambda: not monitor.alive)
        (why,) = monitor.liveness_failures
        assert why.startswith(
            "run() has 10 records in memory and 1 running handlers, and has made no"
        )
        assert monitor.ready  # Kafka is available, so readiness is not affected

        kafka_server.kill()
        await until(lambda: not consumer.health.state.answering)
        assert monitor.alive
        await asyncio.sleep(3.5)  # longer than the limit
        assert monitor.alive
        assert not monitor.ready
        await kafka_server.restart()
        await until(lambda: monitor.ready)
        assert monitor.alive  # the time starts again

        hanging.set()
        await until(lambda: len(done) >= 10)
        await until(lambda: set(consumer.known_lag().values()) == {0})
        assert consumer.liveness_failure() is None
    await running
    assert consumer.liveness_failure() is None
    assert consumer.known_lag() == {}
