"""`run` while its process is killed, its group changes, its broker dies, or Redis is away."""

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import textwrap
from collections import Counter

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from resilient_io import Dependency, HealthSettings, RetryPolicy
from resilient_io.kafka.consumer import ConsumerSettings, ResilientKafkaConsumer
from resilient_io.kafka.processing import HandlerPolicy, RunLimits
from resilient_io.redis import ResilientRedis

SOON = 60.0
PARTITIONS = 3


async def produced(kafka, topic, start, end, *, keys=21):
    """Write numbers, each to the partition of its key, so that they ascend in every key."""
    async with AIOKafkaProducer(bootstrap_servers=kafka.direct_servers) as producer:
        for number in range(start, end):
            key = number % keys
            await producer.send(topic, b"%d" % number, key=b"%d" % key, partition=key % PARTITIONS)


def consumer_of(kafka, topic, group, **options):
    options = {
        "auto_offset_reset": "earliest",
        "settings": ConsumerSettings(commit_interval=0.2),
        "heartbeat_interval_ms": 300,
        "session_timeout_ms": 6000,
    } | options
    return ResilientKafkaConsumer(
        topic, bootstrap_servers=kafka.bootstrap_servers, group_id=group, **options
    )


async def committed(kafka, topic, group):
    async with AIOKafkaConsumer(bootstrap_servers=kafka.direct_servers, group_id=group) as look:
        found = [await look.committed(TopicPartition(topic, n)) for n in range(PARTITIONS)]
    return [offset or 0 for offset in found]


async def happened(fact, *runs):
    """Wait for a fact about several parts; fail as soon as a run has ended."""
    async with asyncio.timeout(SOON):
        while not fact():
            for run in runs:
                if run.done():
                    run.result()
                    raise AssertionError("run() ended")
            await asyncio.sleep(0.01)


class Ledger:
    """What was handled by whom, over all members; sees every breach of the order of a key."""

    def __init__(self):
        self.values = []
        self.running = {}
        self.overlaps = []
        self.of_key = {}

    def handler(self, member, seconds):
        async def handle(record):
            if record.key in self.running:
                self.overlaps.append((record.key, self.running[record.key], member))
            self.running[record.key] = member
            try:
                await asyncio.sleep(seconds())
            finally:
                del self.running[record.key]
            self.values.append(int(record.value))
            self.of_key.setdefault(record.key, []).append(int(record.value))

        return handle

    def check(self, count):
        """None lost, none beside or before one of its key; return how many came twice."""
        counts = Counter(self.values)
        assert sorted(counts) == list(range(count))
        assert self.overlaps == []
        for values in self.of_key.values():
            firsts = list(dict.fromkeys(values))
            assert firsts == sorted(firsts)
        return len(self.values) - count


SERVICE = textwrap.dedent(
    """
    import asyncio, os, random, sys
    from resilient_io.kafka.consumer import ConsumerSettings, ResilientKafkaConsumer
    from resilient_io.kafka.processing import RunLimits

    servers, topic, group = sys.argv[1:]
    rng = random.Random(1)

    async def handler(record):
        os.write(1, b"begun %d %d\\n" % (record.partition, record.offset))
        await asyncio.sleep(rng.random() * 0.02)
        os.write(1, b"done %d %d\\n" % (record.partition, record.offset))

    async def main():
        consumer = ResilientKafkaConsumer(
            topic,
            bootstrap_servers=servers,
            group_id=group,
            group_instance_id="the-one",
            auto_offset_reset="earliest",
            settings=ConsumerSettings(commit_interval=0.1),
        )
        async with consumer:
            await consumer.run(handler, concurrency=8, limits=RunLimits(records=200))

    asyncio.run(main())
    """
)


class Service:
    """A process in the middle of `run`, to be killed."""

    def __init__(self, kafka, topic, group):
        self._arguments = (kafka.bootstrap_servers, topic, group)
        self.begun = []
        self.done = []

    async def __aenter__(self):
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVICE, *self._arguments, stdout=asyncio.subprocess.PIPE
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        if self._process.returncode is None:
            self.kill()
        await self._reading
        await self._process.wait()

    async def _read(self):
        async for line in self._process.stdout:
            what, where, offset = line.split()
            (self.begun if what == b"begun" else self.done).append((int(where), int(offset)))

    def kill(self):
        os.kill(self._process.pid, signal.SIGKILL)

    async def until_done(self, count):
        async with asyncio.timeout(SOON):
            while len(set(self.done)) < count:
                assert not self._reading.done(), "the service ended"
                await asyncio.sleep(0.01)


async def test_a_killed_process_skips_nothing_and_repeats_only_what_was_in_flight(
    shared_kafka, name
):
    await shared_kafka.create_topic(name, partitions=PARTITIONS)
    await produced(shared_kafka, name, 0, 900)
    async with Service(shared_kafka, name, name) as first:
        await first.until_done(300)
        first.kill()
    kept = await committed(shared_kafka, name, name)
    in_flight = [(where, offset) for where, offset in first.begun if offset >= kept[where]]
    assert sum(kept) > 0
    assert len(in_flight) <= 200  # the bound on records in memory
    for where, offset in set(first.begun) - set(first.done):
        assert offset >= kept[where]  # what was not done was not committed
    async with Service(shared_kafka, name, name) as second:
        await second.until_done(900 - sum(kept))
        second.kill()
    everything = {(where, offset) for where in range(PARTITIONS) for offset in range(300)}
    assert set(first.done) | set(second.done) == everything
    assert min(offset - kept[where] for where, offset in second.begun) == 0
    repeated = set(first.begun) & set(second.begun)
    assert repeated == set(in_flight)


async def rebalances(kafka, name, seconds):
    """Let members come and go every second; return (records, repeats, rebalances)."""
    await kafka.create_topic(name, partitions=PARTITIONS)
    rng = random.Random(11)
    ledger = Ledger()
    count = changes = 0
    more = True

    async def produce():
        nonlocal count
        while more:
            await produced(kafka, name, count, count + 60)
            count += 60
            await asyncio.sleep(0.2)

    def begin(member):
        consumer = consumer_of(kafka, name, name)
        handler = ledger.handler(member, lambda: rng.choice([0.0, 0.001, 0.02]))
        return consumer, asyncio.create_task(consumer.run(handler, concurrency=10))

    producing = asyncio.create_task(produce())
    members = [begin(0)]
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    try:
        while loop.time() < until:
            await asyncio.sleep(1.0)
            changes += 1
            if len(members) == 1 or (len(members) < 3 and rng.random() < 0.5):
                members.append(begin(changes))
            else:
                consumer, task = members.pop(rng.randrange(len(members)))
                await consumer.aclose()
                await task
        more = False
        await producing
        await happened(lambda: len(set(ledger.values)) == count, *(task for _, task in members))
    finally:
        producing.cancel()
        for consumer, task in members:
            await consumer.aclose()
            await asyncio.wait([task])
    return count, ledger.check(count), changes


async def test_members_that_come_and_go_lose_nothing_and_keep_the_order_of_keys(shared_kafka, name):
    count, repeats, changes = await rebalances(shared_kafka, name, 6.0)
    # What was done out of turn when its partition went: at most the handlers that were running,
    # for each partition that moved.
    assert repeats <= changes * PARTITIONS * 10
    assert count > 0


@pytest.mark.soak
async def test_members_that_come_and_go_for_30_s(shared_kafka, name):
    _, repeats, changes = await rebalances(shared_kafka, name, 30.0)
    assert repeats <= changes * PARTITIONS * 10


async def test_a_broker_killed_under_run_costs_no_record(kafka_server, name, caplog):
    await kafka_server.create_topic(name, partitions=PARTITIONS)
    await produced(kafka_server, name, 0, 600)
    ledger = Ledger()
    with caplog.at_level(logging.INFO):
        async with consumer_of(kafka_server, name, name) as consumer:
            run = asyncio.create_task(
                consumer.run(ledger.handler("it", lambda: 0.02), concurrency=10)
            )
            await happened(lambda: len(ledger.values) >= 200, run)
            kafka_server.kill()
            await asyncio.sleep(0.5)
            await kafka_server.restart()
            await produced(kafka_server, name, 600, 800)
            await happened(lambda: len(set(ledger.values)) == 800, run)
        await run
    repeats = ledger.check(800)
    assert repeats <= 10 * PARTITIONS
    assert sum(await committed(kafka_server, name, name)) == 800
    ours = [record for record in caplog.records if record.name.startswith("resilient_io")]
    assert len(ours) <= 10, caplog.text


async def test_while_redis_is_really_dead_nothing_is_handled_and_nothing_buried(
    shared_kafka, redis_server, name, caplog
):
    await shared_kafka.create_topic(name, partitions=PARTITIONS)
    await shared_kafka.create_topic(f"{name}.dead")
    await produced(shared_kafka, name, 0, 600)
    handled, calls = set(), 0
    policy = RetryPolicy(response_timeout=0.5, connect_timeout=0.25, deadline=1.0)
    redis = ResilientRedis.from_url(f"redis://127.0.0.1:{redis_server.port}", policy=policy)

    async def handler(record):
        nonlocal calls
        calls += 1
        await redis.incr(f"seen:{record.value.decode()}")
        await asyncio.sleep(0.02)
        handled.add(int(record.value))

    with caplog.at_level(logging.INFO):
        async with redis, consumer_of(shared_kafka, name, name) as consumer:
            await redis.health.until_up(SOON)
            run = asyncio.create_task(
                consumer.run(
                    handler,
                    concurrency=8,
                    dead_letter=f"{name}.dead",
                    policy=HandlerPolicy(attempts=1),
                    requires=[redis.health],
                    limits=RunLimits(slow_start=0.5),
                )
            )
            for _ in range(2):
                enough = len(handled) + 150
                await happened(lambda enough=enough: len(handled) >= enough, run)
                redis_server.kill()
                await happened(lambda: consumer.run_stats().allowed == 0, run)
                await happened(lambda: consumer.run_stats().handlers == 0, run)
                before = calls
                await asyncio.sleep(1.0)
                assert calls == before
                assert consumer.assignment() != ()
                await redis_server.restart()
            await happened(lambda: len(handled) == 600, run)
            stats = consumer.run_stats()
        await run
    assert (stats.dead_lettered, stats.skipped, stats.pauses) == (0, 0, 2)
    assert stats.failed == stats.excused
    assert sum(await committed(shared_kafka, name, name)) == 600
    ours = [record for record in caplog.records if record.name == "resilient_io.kafka"]
    assert len(ours) <= 8, caplog.text


async def test_while_redis_is_frozen_late_answers_are_nobodys_attempt(
    shared_kafka, redis_server, name
):
    await shared_kafka.create_topic(name, partitions=PARTITIONS)
    await produced(shared_kafka, name, 0, 100)
    handled = set()
    # It is known to be down long before the calls under way are given up.
    policy = RetryPolicy(response_timeout=4.0, deadline=5.0)
    health = Dependency("redis", settings=HealthSettings(interval=0.2, timeout=0.2))
    url = f"redis://127.0.0.1:{redis_server.port}"
    redis = ResilientRedis.from_url(url, policy=policy, health=health)

    async def handler(record):
        await redis.incr(f"seen:{record.value.decode()}")
        await asyncio.sleep(0.02)
        handled.add(int(record.value))

    reading = consumer_of(shared_kafka, name, name)
    async with contextlib.aclosing(health), redis, reading as consumer:
        await redis.health.until_up(SOON)
        run = asyncio.create_task(
            consumer.run(
                handler,
                concurrency=4,
                policy=HandlerPolicy(attempts=1),  # the first failure that counts ends it
                requires=[redis.health],
                limits=RunLimits(slow_start=0.0),
            )
        )
        await happened(lambda: len(handled) >= 20, run)
        redis_server.freeze()
        await happened(lambda: consumer.run_stats().allowed == 0, run)
        await happened(lambda: consumer.run_stats().handlers == 0, run)
        redis_server.thaw()
        await happened(lambda: len(handled) == 100, run)
        assert consumer.run_stats().excused > 0
    await run
