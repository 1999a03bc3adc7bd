"""A consumer whose broker dies, freezes or rejects it; and a consumer that dies itself."""

import asyncio
import itertools
import logging
import os
import signal
import sys
import textwrap

import pytest
from aiokafka import AIOKafkaProducer

from resilient_io import State
from resilient_io.kafka import KafkaAuthenticationFailed, ResilientKafkaProducer
from resilient_io.testing import KafkaServer

_names = itertools.count()
SOON = 40.0


class Handled:
    """Handles records in a task, and records their values."""

    def __init__(self, reader, *, pause=0.0):
        self.values = []
        self._reader = reader
        self._pause = pause
        self._more = asyncio.Event()
        self.task = asyncio.create_task(self._take())

    async def _take(self):
        async for record in self._reader:
            await asyncio.sleep(self._pause)
            self.values.append(int(record.value))
            self._more.set()

    async def until(self, wanted):
        """Wait until all of these values were handled."""
        async with asyncio.timeout(SOON):
            while not set(wanted) <= set(self.values):
                more = asyncio.ensure_future(self._more.wait())
                await asyncio.wait([more, self.task], return_when=asyncio.FIRST_COMPLETED)
                more.cancel()
                self._more.clear()
                if self.task.done():
                    self.task.result()
                    raise AssertionError("the iteration ended")

    @property
    def repeats(self):
        return len(self.values) - len(set(self.values))


async def down(reader):
    async with asyncio.timeout(SOON):
        while reader.health.state is not State.DOWN:  # noqa: ASYNC110 - a passing state
            await asyncio.sleep(0.02)


async def test_a_broker_killed_and_restarted_loses_and_skips_nothing(
    kafka_server, caplog, produce, committed, consumer_of
):
    await kafka_server.create_topic("t", partitions=2)
    await produce(kafka_server, "t", range(200))
    with caplog.at_level(logging.INFO):
        async with consumer_of(kafka_server, "t") as reader:
            handled = Handled(reader, pause=0.002)
            await handled.until(range(100))
            kafka_server.kill()
            await down(reader)
            await kafka_server.restart()
            await handled.until(range(200))
            await produce(kafka_server, "t", range(200, 400))
            await handled.until(range(400))
    assert handled.repeats == 0, "the resume position of handled records is remembered"
    assert await committed(kafka_server, "t", "t") == [200, 200]
    ours = [r for r in caplog.records if r.name.startswith(("resilient_io", "aiokafka"))]
    assert len([r for r in ours if r.name.startswith("resilient_io")]) <= 10, caplog.text


async def test_a_consumer_waits_for_a_frozen_broker(kafka_server, produce, consumer_of):
    await kafka_server.create_topic("t", partitions=2)
    await produce(kafka_server, "t", range(100))
    async with consumer_of(kafka_server, "t") as reader:
        handled = Handled(reader)
        await handled.until(range(100))
        kafka_server.freeze()
        await down(reader)
        kafka_server.thaw()
        await reader.health.until_up(SOON)
        await produce(kafka_server, "t", range(100, 200))
        await handled.until(range(200))
        assert handled.repeats == 0


async def test_closing_ends_in_time_with_a_frozen_and_with_a_dead_broker(
    kafka_server, produce, consumer_of
):
    await kafka_server.create_topic("t", partitions=2)
    await produce(kafka_server, "t", range(20))
    for fault in (kafka_server.freeze, kafka_server.kill):
        reader = consumer_of(kafka_server, "t", group_id=fault.__name__)
        handled = Handled(reader)
        await handled.until(range(20))
        loop = asyncio.get_running_loop()
        fault()
        before = loop.time()
        await reader.aclose(2.0)
        assert loop.time() - before < 4.5  # the supervisor may need 2 s more
        await handled.task
        if fault == kafka_server.freeze:
            kafka_server.thaw()


async def test_a_replaced_static_member_commits_nothing(
    shared_kafka, produce, committed, consumer_of
):
    topic = f"replaced-{next(_names)}"
    await shared_kafka.create_topic(topic, partitions=2)
    await produce(shared_kafka, topic, range(100))
    # A member with the same static name replaces the first one, which notices it later.
    options = {"group_id": f"group-{topic}", "group_instance_id": "one"}
    old = consumer_of(shared_kafka, topic, heartbeat_interval_ms=5000, **options)
    in_hand, go_on = asyncio.Event(), asyncio.Event()

    async def take_one():
        async for record in old:
            in_hand.set()
            await go_on.wait()
            record.done()
            break

    taking = asyncio.create_task(take_one())
    async with asyncio.timeout(SOON):
        await in_hand.wait()
    async with consumer_of(shared_kafka, topic, **options) as new:
        handled = Handled(new)
        await handled.until(range(100))
    assert await committed(shared_kafka, topic, f"group-{topic}") == [50, 50]
    go_on.set()
    await taking
    await old.commit()
    assert old.stats().commits_failed >= 1
    await old.aclose()
    assert await committed(shared_kafka, topic, f"group-{topic}") == [50, 50], "not rewound"


async def test_wrong_credentials_are_raised_immediately(produce, consumer_of):
    async with KafkaServer(users={"me": "right"}) as kafka:
        login = {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "me",
        }
        async with consumer_of(kafka, "t", sasl_plain_password="wrong", **login) as reader:
            async with asyncio.timeout(SOON):
                with pytest.raises(KafkaAuthenticationFailed):
                    await anext(aiter(reader))
        await kafka.create_topic("t", partitions=2)
        await produce(kafka, "t", range(2))
        async with consumer_of(kafka, "t", sasl_plain_password="right", **login) as reader:
            handled = Handled(reader)
            await handled.until(range(2))
        await handled.task


CHILD = """
    import asyncio, sys
    from resilient_io.kafka.consumer import ConsumerSettings, ResilientKafkaConsumer

    async def main(servers, topic):
        async with ResilientKafkaConsumer(
            topic, bootstrap_servers=servers, group_id=topic, auto_offset_reset="earliest",
            session_timeout_ms=6000, settings=ConsumerSettings(commit_interval=0.1),
        ) as consumer:
            async for record in consumer:
                await asyncio.sleep(0.002)
                print(int(record.value), flush=True)

    asyncio.run(main(*sys.argv[1:]))
"""


async def child_of(kafka, topic):
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(CHILD),
        kafka.bootstrap_servers,
        topic,
        stdout=asyncio.subprocess.PIPE,
    )


async def lines_of(child, count):
    async with asyncio.timeout(SOON):
        return [int(await child.stdout.readline()) for _ in range(count)]


async def test_a_consumer_killed_in_the_middle_skips_nothing(shared_kafka, produce):
    topic = f"killed-{next(_names)}"
    await shared_kafka.create_topic(topic, partitions=2)
    await produce(shared_kafka, topic, range(500))
    first = await child_of(shared_kafka, topic)
    seen = await lines_of(first, 200)
    os.kill(first.pid, signal.SIGKILL)
    seen += [int(line) for line in (await first.stdout.read()).split()]
    await first.wait()
    second = await child_of(shared_kafka, topic)
    again = []
    while set(seen) | set(again) != set(range(500)):
        again += await lines_of(second, 1)
    second.terminate()
    await second.communicate()
    for partition in range(2):
        there = [n for n in again if n % 2 == partition]
        assert there == sorted(there), "records of one partition come in order"
    repeated = set(seen) & set(again)
    assert len(repeated) <= 150, "those handled between two commits, and the one in hand"


FAST_CHILD = """
import asyncio, os, signal, sys
from resilient_io import ResilientKafkaConsumer

async def main():
    consumer = ResilientKafkaConsumer(
        sys.argv[2], bootstrap_servers=sys.argv[1], group_id="g-" + sys.argv[2],
        auto_offset_reset="earliest",
    )
    handled = 0

    async def handler(record):
        nonlocal handled
        handled += 1
        if handled == 60_000:
            print(handled, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    await consumer.run(handler)

asyncio.run(main())
"""


async def test_a_killed_run_redelivers_few_records_at_a_high_rate(shared_kafka, committed):
    topic = f"killed-fast-{next(_names)}"
    await shared_kafka.create_topic(topic, partitions=2)
    async with ResilientKafkaProducer(shared_kafka.bootstrap_servers) as producer:
        await producer.send_many(topic, [b"x" * 100] * 100_000)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        FAST_CHILD,
        shared_kafka.bootstrap_servers,
        topic,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await child.communicate()
    assert int(output) == 60_000
    offsets = await committed(shared_kafka, topic, f"g-{topic}")
    redelivered = 60_000 - sum(offset or 0 for offset in offsets)
    assert redelivered <= 10_000


@pytest.mark.parametrize(
    "seconds", [5, pytest.param(30, marks=pytest.mark.soak(seconds=35))], ids=["short", "long"]
)
async def test_members_that_come_and_go_lose_nothing(shared_kafka, seconds, consumer_of):
    topic = f"come-and-go-{next(_names)}"
    await shared_kafka.create_topic(topic, partitions=8)
    group = f"group-{topic}"
    handled: dict[int, int] = {}
    sent = 0

    def member():
        return consumer_of(shared_kafka, topic, group_id=group, heartbeat_interval_ms=100)

    async def take(reader):
        async for record in reader:
            await asyncio.sleep(0.001)
            handled[int(record.value)] = handled.get(int(record.value), 0) + 1

    async def come_and_go():
        while not enough.is_set():
            async with member() as reader:
                taking = asyncio.create_task(take(reader))
                await asyncio.sleep(1.0)
            await taking

    loop = asyncio.get_running_loop()
    enough = asyncio.Event()
    async with member() as stays:
        staying = asyncio.create_task(take(stays))
        coming = [asyncio.create_task(come_and_go()) for _ in range(2)]
        async with AIOKafkaProducer(bootstrap_servers=shared_kafka.direct_servers) as producer:
            until = loop.time() + seconds
            while loop.time() < until:
                for _ in range(5):
                    await producer.send(topic, b"%d" % sent, partition=sent % 8)
                    sent += 1
                await asyncio.sleep(0.01)
        async with asyncio.timeout(SOON):
            while len(handled) < sent:  # noqa: ASYNC110 - three members report there
                await asyncio.sleep(0.05)
        enough.set()
        await asyncio.gather(*coming)
        rebalances = stays.stats().rebalances
    await staying
    repeats = sum(handled.values()) - sent
    print(f"{sent} sent, {repeats} repeated, {rebalances} rebalances")  # noqa: T201 - a measurement
    assert set(handled) == set(range(sent))
    assert rebalances >= 2
    assert repeats <= sent * 0.02, "each member commits before it leaves"
