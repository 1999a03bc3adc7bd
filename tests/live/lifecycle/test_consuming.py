"""SIGTERM during work on a real Kafka: handled records are committed, the others redelivered."""

import asyncio
import signal
import uuid

import pytest
from aiokafka import AIOKafkaProducer
from redis.asyncio import Redis

COUNT = 200


@pytest.fixture
def name():
    return f"t{uuid.uuid4().hex[:12]}"


async def fill(kafka, topic, count):
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    try:
        for number in range(count):
            await producer.send(topic, str(number).encode(), key=str(number % 7).encode())
        await producer.flush()
    finally:
        await producer.stop()


async def test_sigterm_during_work_loses_and_repeats_nothing(
    plain, redis_server, shared_kafka, name
):
    await fill(shared_kafka, name, COUNT)
    kafka = {"KAFKA": shared_kafka.bootstrap_servers}

    async def consume():
        return await plain(
            "consume", environment=kafka, topic=name, group=name, drain_delay=0.5, grace_period=20.0
        )

    async with Redis(port=redis_server.port, decode_responses=True) as redis:

        async def handled(count):
            async with asyncio.timeout(90):
                while await redis.llen(f"handled:{name}") < count:  # noqa: ASYNC110 -- another process
                    await asyncio.sleep(0.02)

        first = await consume()
        await handled(20)
        first.send(signal.SIGTERM)
        await first.becomes("/readyz", 503)
        seen = await redis.llen(f"handled:{name}")
        await handled(seen + 5)  # it continues during the drain delay
        assert await first.exit_code() == 0
        report = first.found("ended")["report"]
        assert report["clean"] is True, report
        # `run` ended, and what follows it could still use the clients.
        assert first.order()[-5:] == ["body ends", "slow closes", "slow closed", "ended", "exits"]
        assert first.found("body ends")["left"] is True
        assert await redis.llen(f"handled:{name}") < COUNT
        second = await consume()
        await handled(COUNT)
        second.send(signal.SIGTERM)
        assert await second.exit_code() == 0
        values = await redis.lrange(f"handled:{name}", 0, -1)
    assert sorted(map(int, values)) == list(range(COUNT))
