"""Records that were handled while an earlier one was slow are not handled again."""

import asyncio
import json
import sys
import textwrap

import pytest

from resilient_io.kafka import ResilientKafkaProducer

SOON = 30.0
COUNT = 4000
SLOW = 7
CONCURRENCY = 16


@pytest.fixture
async def topic(shared_kafka, name):
    await shared_kafka.create_topic(name, partitions=1)
    async with ResilientKafkaProducer(shared_kafka.bootstrap_servers) as producer:
        report = await producer.send_many(name, [b"%d" % number for number in range(COUNT)])
        report.check()
    return name


class Handler:
    """Handles all records but one, which takes until it is released."""

    def __init__(self):
        self.handled = []
        self.released = asyncio.Event()

    async def __call__(self, record):
        if int(record.value) == SLOW:
            await self.released.wait()
        self.handled.append(int(record.value))

    async def until(self, count):
        async with asyncio.timeout(SOON):
            while len(self.handled) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def only_the_slow_record_is_redelivered(consumer):
    """Run a consumer of the group, after one that handled all records except the slow one."""
    handler = Handler()
    handler.released.set()
    async with consumer:
        running = asyncio.create_task(consumer.run(handler, concurrency=CONCURRENCY))
        await handler.until(1)
        await asyncio.sleep(0.5)
        assert handler.handled == [SLOW]
        assert consumer.stats().already_handled == COUNT - 1 - SLOW
        await consumer.aclose()
        await running


async def test_a_graceful_restart_redelivers_only_the_records_in_flight(
    shared_kafka, topic, consumer_of
):
    first = Handler()
    async with consumer_of(shared_kafka, topic, drain_timeout=0.2) as consumer:
        running = asyncio.create_task(consumer.run(first, concurrency=CONCURRENCY))
        await first.until(COUNT - 1)
        await consumer.aclose(timeout=3.0)
        await running
    await only_the_slow_record_is_redelivered(consumer_of(shared_kafka, topic))


async def test_a_rebalance_redelivers_only_the_records_in_flight(shared_kafka, topic, consumer_of):
    first, second = Handler(), Handler()
    second.released.set()
    async with consumer_of(shared_kafka, topic, drain_timeout=0.2) as leaving:
        running = asyncio.create_task(leaving.run(first, concurrency=CONCURRENCY))
        await first.until(COUNT - 1)
        async with consumer_of(shared_kafka, topic) as joining:
            also = asyncio.create_task(joining.run(second, concurrency=CONCURRENCY))
            await asyncio.sleep(1.0)
            await leaving.aclose(timeout=3.0)
            await running
            await second.until(1)
            await asyncio.sleep(0.5)
            assert len(first.handled) + len(second.handled) <= COUNT + CONCURRENCY
            assert set(first.handled) | set(second.handled) == set(range(COUNT))
            await joining.aclose()
            await also


CHILD = """
    import asyncio, json, os, signal, sys
    from resilient_io import ResilientKafkaConsumer

    async def main(servers, topic, slow, count):
        consumer = ResilientKafkaConsumer(
            topic, bootstrap_servers=servers, group_id=topic, auto_offset_reset="earliest",
            session_timeout_ms=6000,
        )
        handled = []

        async def handler(record):
            if int(record.value) == int(slow):
                await asyncio.sleep(60.0)
            handled.append(int(record.value))

        running = asyncio.create_task(consumer.run(handler, concurrency=16))
        while len(handled) < int(count) - 1:
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.5)  # longer than commit_interval
        print(json.dumps(handled), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_kill_redelivers_only_what_was_not_committed(shared_kafka, topic, consumer_of):
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(CHILD),
        shared_kafka.bootstrap_servers,
        topic,
        str(SLOW),
        str(COUNT),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await child.communicate()
    assert len(json.loads(output)) == COUNT - 1
    await only_the_slow_record_is_redelivered(consumer_of(shared_kafka, topic))
