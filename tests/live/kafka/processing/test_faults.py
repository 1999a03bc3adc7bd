"""`run` while its process is killed, its group changes, its broker dies, or Redis is down."""

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

from resilient_io import Dependency, HealthSettings, RetryPolicy
from resilient_io.kafka.processing import HandlerPolicy, RunLimits
from resilient_io.redis import ResilientRedis

SOON = 60.0
PARTITIONS = 3
KEYED = {"keys": 21, "partitions": PARTITIONS}


async def happened(condition, *runs):
    """Wait for a condition; fail as soon as a run has ended."""
    async with asyncio.timeout(SOON):
        while not condition():
            for run in runs:
                if run.done():
                    run.result()
                    raise AssertionError("run() ended")
            await asyncio.sleep(0.01)


class Ledger:
    """Records handled by all members, and every violation of the order of a key."""

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
        """Check that none is lost and each key is in order; return how many were handled twice."""
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
    shared_kafka, name, produce, committed
):
    await shared_kafka.create_topic(name, partitions=PARTITIONS)
    await produce(shared_kafka, name, range(900), **KEYED)
    async with Service(shared_kafka, name, name) as first:
        await first.until_done(300)
        first.kill()
    kept = [offset or 0 for offset in await committed(shared_kafka, name, name, PARTITIONS)]
    in_flight = [(where, offset) for where, offset in first.begun if offset >= kept[where]]
    assert sum(kept) > 0
    assert len(in_flight) <= 200  # the bound on records in memory
    for where, offset in set(first.begun) - set(first.done):
        assert offset >= kept[where]  # what was not done was not committed
    everything = {(where, offset) for where in range(PARTITIONS) for offset in range(300)}
    async with Service(shared_kafka, name, name) as second:
        while set(first.done) | set(second.done) != everything:
            await second.until_done(len(second.done) + 1)
        second.kill()
    assert set(first.begun) & set(second.begun) <= set(in_flight)


async def rebalances(kafka, name, seconds, produce, consumer_of):
    """Add and remove members every second; return (records, repeats, rebalances)."""
    await kafka.create_topic(name, partitions=PARTITIONS)
    rng = random.Random(11)
    ledger = Ledger()
    count = changes = 0
    more = True

    async def produce_all():
        nonlocal count
        while more:
            await produce(kafka, name, range(count, count + 60), **KEYED)
            count += 60
            await asyncio.sleep(0.2)

    def begin(member):
        consumer = consumer_of(kafka, name, drain_timeout=5.0)
        handler = ledger.handler(member, lambda: rng.choice([0.0, 0.001, 0.02]))
        return consumer, asyncio.create_task(consumer.run(handler, concurrency=10))

    producing = asyncio.create_task(produce_all())
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


async def test_members_that_come_and_go_lose_nothing_and_keep_the_order_of_keys(
    shared_kafka, name, produce, consumer_of
):
    count, repeats, changes = await rebalances(shared_kafka, name, 6.0, produce, consumer_of)
    # At most the handlers that were running out of order, for each partition that moved.
    assert repeats <= changes * PARTITIONS * 10
    assert count > 0


@pytest.mark.soak(seconds=30)
async def test_members_that_come_and_go_for_30_s(shared_kafka, name, produce, consumer_of):
    _, repeats, changes = await rebalances(shared_kafka, name, 30.0, produce, consumer_of)
    assert repeats <= changes * PARTITIONS * 10


async def test_a_broker_killed_during_run_costs_no_record(
    kafka_server, name, caplog, produce, committed, consumer_of
):
    await kafka_server.create_topic(name, partitions=PARTITIONS)
    await produce(kafka_server, name, range(600), **KEYED)
    ledger = Ledger()
    with caplog.at_level(logging.INFO):
        async with consumer_of(kafka_server, name, drain_timeout=5.0) as consumer:
            run = asyncio.create_task(
                consumer.run(ledger.handler("it", lambda: 0.02), concurrency=10)
            )
            await happened(lambda: len(ledger.values) >= 200, run)
            kafka_server.kill()
            await asyncio.sleep(0.5)
            await kafka_server.restart()
            await produce(kafka_server, name, range(600, 800), **KEYED)
            await happened(lambda: len(set(ledger.values)) == 800, run)
        await run
    repeats = ledger.check(800)
    assert repeats <= 10 * PARTITIONS
    assert sum(await committed(kafka_server, name, name, PARTITIONS)) == 800
    ours = [record for record in caplog.records if record.name.startswith("resilient_io")]
    assert len(ours) <= 10, caplog.text


async def test_an_outage_of_redis_pauses_handling_and_dead_letters_nothing(
    shared_kafka, redis_server, name, caplog, produce, committed, consumer_of
):
    await shared_kafka.create_topic(name, partitions=PARTITIONS)
    await shared_kafka.create_topic(f"{name}.dead")
    await produce(shared_kafka, name, range(600), **KEYED)
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
        async with redis, consumer_of(shared_kafka, name, drain_timeout=5.0) as consumer:
            await redis.health.until_up(SOON)
            run = asyncio.create_task(
                consumer.run(
                    handler,
                    concurrency=8,
                    dead_letter=f"{name}.dead",
                    handler_policy=HandlerPolicy(attempts=1),
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
    assert stats.failed == stats.not_counted
    assert sum(await committed(shared_kafka, name, name, PARTITIONS)) == 600
    ours = [record for record in caplog.records if record.name == "resilient_io.kafka"]
    assert len(ours) <= 8, caplog.text


async def test_late_answers_of_a_frozen_redis_do_not_count_as_attempts(
    shared_kafka, redis_server, name, produce, consumer_of
):
    await shared_kafka.create_topic(name, partitions=PARTITIONS)
    await produce(shared_kafka, name, range(100), **KEYED)
    handled = set()
    # Health reports DOWN long before the calls in flight time out.
    policy = RetryPolicy(response_timeout=4.0, deadline=5.0)
    health = Dependency("redis", settings=HealthSettings(interval=0.2, timeout=0.2))
    url = f"redis://127.0.0.1:{redis_server.port}"
    redis = ResilientRedis.from_url(url, policy=policy, health=health)

    async def handler(record):
        await redis.incr(f"seen:{record.value.decode()}")
        await asyncio.sleep(0.02)
        handled.add(int(record.value))

    reading = consumer_of(shared_kafka, name, drain_timeout=5.0)
    async with contextlib.aclosing(health), redis, reading as consumer:
        await redis.health.until_up(SOON)
        run = asyncio.create_task(
            consumer.run(
                handler,
                concurrency=4,
                handler_policy=HandlerPolicy(attempts=1),  # the first failure that counts ends it
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
        assert consumer.run_stats().not_counted > 0
    await run
