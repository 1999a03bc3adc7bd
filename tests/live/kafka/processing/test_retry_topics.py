"""Retry topics on a real broker: nothing is lost, whatever ends a `run` in between."""

import asyncio
import contextlib
import os
import random
import re
import signal
import sys
import textwrap
import time
from collections import Counter

import pytest

from resilient_io import ConfigurationError, HandlerPolicy, ResilientKafkaProducer, RetryTopic
from resilient_io.kafka import replay_dead_letters
from tests.live.kafka.running import SOON, Running

ONCE = HandlerPolicy(attempts=1)


def running(consumer, handler, **options):
    return Running(consumer, handler, **{"handler_policy": ONCE} | options)


@pytest.fixture
async def topics(shared_kafka, name):
    """Return the retry topics of a topic, which exist, with delays of 0.2 and 0.4 s."""
    await shared_kafka.create_topic(name, partitions=2)
    made = [RetryTopic(f"{name}.retry.1", 0.2), RetryTopic(f"{name}.retry.2", 0.4)]
    for topic in made:
        await shared_kafka.create_topic(topic.name, partitions=2)
    return made


@pytest.fixture
async def dead(shared_kafka, name):
    """Return a topic for dead letters."""
    await shared_kafka.create_topic(f"{name}.dead", partitions=2)
    return f"{name}.dead"


async def test_a_record_waits_in_each_topic_while_others_are_handled_and_committed(
    shared_kafka, name, topics, dead, produce, read_all, committed, consumer_of
):
    await produce(shared_kafka, name, range(40), keys=10)
    calls, done = {}, []

    async def handler(record):
        number = int(record.value)
        if number % 10 == 7:
            place = (record.topic, record.partition, record.offset, record.timestamp)
            calls.setdefault(number, []).append((time.monotonic(), record.retries, place))
            if number != 7 or record.retries < 2:
                raise LookupError("no such user")
        done.append(number)

    async with consumer_of(shared_kafka, name) as consumer:
        run = running(consumer, handler, retry_topics=topics, dead_letter=dead)
        await run.until(lambda: consumer.run_stats() and consumer.run_stats().dead_lettered == 3)
        await run.until(lambda: 7 in done)
        stats = consumer.run_stats()
        assert (stats.sent_to_retry, stats.handled, stats.retried) == (8, 37, 0)
    await run.task
    assert sorted(done) == sorted({*range(40)} - {17, 27, 37})
    assert await committed(shared_kafka, name, name) == [20, 20]
    for seen in calls.values():
        (first, *_, origin), (second, *_), (third, *_) = seen
        assert [retries for _, retries, _ in seen] == [0, 1, 2]
        assert {place for _, _, place in seen} == {origin}
        assert second - first >= 0.2
        assert third - second >= 0.4
        assert third - first < 5.0
    letters = {int(letter.value): letter for letter in await read_all(shared_kafka, dead)}
    assert sorted(letters) == [17, 27, 37]
    headers = dict(letters[17].headers)
    assert headers["x-original-topic"] == name.encode()
    assert headers["x-attempts"] == b"3"
    assert float(headers["x-first-failure-ago"]) >= 0.6
    assert not [each for each in headers if each.startswith("x-retr")]


async def test_a_dead_letter_that_has_waited_is_replayed_as_it_was(
    shared_kafka, name, topics, dead, read_all, consumer_of
):
    async with ResilientKafkaProducer(shared_kafka.bootstrap_servers) as producer:
        await producer.send_and_wait(
            name, b"v", key=b"k", partition=1, timestamp_ms=1_700_000_000_000, headers=[("a", b"b")]
        )
    handled = []

    async def handler(record):
        if "x-replays" not in dict(record.headers):
            raise LookupError
        if not record.retries:
            raise ValueError
        handled.append(record)

    async with consumer_of(shared_kafka, name) as consumer:
        run = running(consumer, handler, retry_topics=topics, dead_letter=dead)
        await run.until(lambda: consumer.run_stats() and consumer.run_stats().dead_lettered)
        await replay_dead_letters(f"kafka://{shared_kafka.bootstrap_servers}", dead)
        await run.until(lambda: handled)
    (record,) = handled
    assert (record.topic, record.partition, record.offset) == (name, 1, 1)
    assert (record.key, record.value, record.timestamp) == (b"k", b"v", 1_700_000_000_000)
    assert dict(record.headers) == {"a": b"b", "x-replays": b"1"}


# --- ledgers


def failures_of(count, seed):
    """Return how many topics each record must pass before its handler returns; 9 for never."""
    rng = random.Random(seed)
    return [rng.choice([0, 0, 1, 2, 9]) for _ in range(count)]


async def numbers_in(read_all, kafka, topic):
    return [int(record.value) for record in await read_all(kafka, topic)]


async def test_cancelled_runs_lose_nothing(
    shared_kafka, name, topics, dead, produce, read_all, consumer_of
):
    count, rng = 600, random.Random(4)
    failures = failures_of(count, 4)
    calls = [[] for _ in range(count)]

    async def handler(record):
        number = int(record.value)
        await asyncio.sleep(rng.choice([0.001, 0.02]))
        calls[number].append(record.retries)
        if record.retries < failures[number]:
            raise LookupError

    async def cancelled_soon():
        consumer = consumer_of(shared_kafka, name, drain_timeout=0.1, group_instance_id="the-one")
        run = running(consumer, handler, retry_topics=topics, dead_letter=dead)
        before = sum(map(len, calls))
        await run.until(lambda: sum(map(len, calls)) > before)
        await asyncio.sleep(rng.uniform(0.05, 0.5))
        run.task.cancel()
        await asyncio.wait([run.task])
        await consumer.aclose(timeout=rng.choice([0.05, 2.0]))

    await produce(shared_kafka, name, range(count), keys=50)
    for _ in range(3):
        await cancelled_soon()
    async with consumer_of(shared_kafka, name, group_instance_id="the-one") as consumer:
        run = running(consumer, handler, retry_topics=topics, dead_letter=dead)
        await run.until(lambda: all(min(n, 2) in calls[i] for i, n in enumerate(failures)))
        await run.until(lambda: consumer.run_stats() and consumer.run_stats().in_flight == 0)
    for number, passed in enumerate(failures):
        assert set(calls[number]) == set(range(min(passed, 2) + 1))
    letters = await numbers_in(read_all, shared_kafka, dead)
    assert set(letters) == {number for number, passed in enumerate(failures) if passed == 9}


SERVICE = textwrap.dedent(
    """
    import asyncio, json, os, sys
    from resilient_io import ConsumerSettings, HandlerPolicy, ResilientKafkaConsumer, RetryTopic

    servers, topic, failures = sys.argv[1:]
    failures = json.loads(failures)

    async def handler(record):
        number = int(record.value)
        await asyncio.sleep(0.002)
        if record.retries < failures[number]:
            raise LookupError
        os.write(1, b"%d %d\\n" % (number, record.retries))

    async def main():
        async with ResilientKafkaConsumer(
            topic,
            bootstrap_servers=servers,
            group_id=topic,
            group_instance_id="the-one",
            auto_offset_reset="earliest",
            settings=ConsumerSettings(commit_interval=0.1),
        ) as consumer:
            await consumer.run(
                handler,
                concurrency=4,
                handler_policy=HandlerPolicy(attempts=1),
                dead_letter=f"{topic}.dead",
                retry_topics=[
                    RetryTopic(f"{topic}.retry.1", 0.2), RetryTopic(f"{topic}.retry.2", 0.4)
                ],
            )

    asyncio.run(main())
    """
)


@pytest.mark.soak
async def test_a_killed_process_loses_nothing(shared_kafka, name, topics, dead, produce, read_all):
    count, rng = 1_000, random.Random(6)
    failures = failures_of(count, 6)
    expected = {number for number, passed in enumerate(failures) if passed < 9}
    done = Counter()

    @contextlib.asynccontextmanager
    async def killed_afterwards():
        service = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            SERVICE,
            shared_kafka.bootstrap_servers,
            name,
            str(failures),
            stdout=asyncio.subprocess.PIPE,
        )

        async def read():
            async for line in service.stdout:
                number, retries = map(int, line.split())
                assert retries == failures[number]
                done[number] += 1

        reading = asyncio.create_task(read())
        try:
            async with asyncio.timeout(SOON):
                yield
        finally:
            os.kill(service.pid, signal.SIGKILL)
            await reading
            await service.wait()

    await produce(shared_kafka, name, range(count), keys=100)
    for _ in range(3):
        async with killed_afterwards():
            before = done.total()
            while done.total() == before:  # noqa: ASYNC110 - another process handles them
                await asyncio.sleep(0.01)
            await asyncio.sleep(rng.uniform(0.1, 0.4))
    async with killed_afterwards():
        while set(done) != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        letters = []
        while set(letters) != set(range(count)) - expected:
            await asyncio.sleep(0.5)
            letters = await numbers_in(read_all, shared_kafka, dead)
    assert done.total() - len(done) + len(letters) - len(set(letters)) < count


# --- partitions, groups and subscriptions


async def test_records_wait_across_rebalances(
    shared_kafka, name, topics, produce, committed, consumer_of
):
    waiting = [RetryTopic(topics[0].name, 1.5)]
    await produce(shared_kafka, name, range(40), keys=10)
    calls = {number: [] for number in range(40)}

    async def handler(record):
        calls[int(record.value)].append((time.monotonic(), record.retries))
        if not record.retries:
            raise LookupError

    async with consumer_of(shared_kafka, name) as staying:
        run = running(staying, handler, retry_topics=waiting)
        await run.until(lambda: staying.run_stats() and staying.run_stats().sent_to_retry == 40)
        async with consumer_of(shared_kafka, name) as leaving:
            also = running(leaving, handler, retry_topics=waiting)
            await also.until(leaving.assignment)
            await leaving.aclose()
        await run.until(lambda: all(len(each) == 2 for each in calls.values()))
        assert staying.run_stats().in_flight == 0
    for (first, _), (second, _) in calls.values():
        assert 1.5 <= second - first < 8.0
    assert await committed(shared_kafka, name, name) == [20, 20]
    assert sum(await committed(shared_kafka, topics[0].name, name)) == 40


async def test_a_group_reads_its_own_records_only_and_from_the_beginning(
    shared_kafka, name, topics, produce, consumer_of
):
    """Two groups share the topics, and read theirs with the default of auto_offset_reset."""
    await produce(shared_kafka, topics[0].name, range(100, 104))  # before either group reads it
    calls = {group: Counter() for group in ("one", "two")}
    groups = {group: f"{name}.{group}" for group in calls}
    consumers = {
        group: consumer_of(shared_kafka, name, group_id=groups[group], auto_offset_reset="latest")
        for group in calls
    }
    async with consumers["one"], consumers["two"]:
        runs = []
        for group, consumer in consumers.items():

            async def handler(record, group=group):
                calls[group][int(record.value), record.retries] += 1
                if int(record.value) % 2 == (group == "two"):
                    raise LookupError

            runs.append(running(consumer, handler, retry_topics=topics, on_failure="skip"))
            await runs[-1].until(lambda consumer=consumer: len(consumer.assignment()) == 6)
            for partition in consumer.assignment():
                await consumer.position(partition, SOON)
        await produce(shared_kafka, name, range(20))
        for run, consumer in zip(runs, consumers.values(), strict=True):
            await run.until(lambda consumer=consumer: consumer.run_stats().skipped == 12)
        await asyncio.sleep(0.5)
    for odd, group in enumerate(calls):
        expected = Counter({(number, 0): 1 for number in range(20)})
        expected.update({(number, 1): 1 for number in range(100, 104)})
        expected.update({(n, retries): 1 for n in range(odd, 20, 2) for retries in (1, 2)})
        expected.update({(number, 2): 1 for number in range(100 + odd, 104, 2)})
        assert calls[group] == expected


@pytest.mark.parametrize("reads", ["topics", "pattern"])
async def test_only_a_run_with_retry_topics_reads_them(
    shared_kafka, name, topics, produce, consumer_of, reads
):
    await produce(shared_kafka, name, range(10))
    options = {}
    if reads == "pattern":
        options = {"pattern": f"{name}$"}
    done = []

    async def handler(record):
        if int(record.value) == 3 and record.retries < 2:
            raise LookupError
        done.append(int(record.value))

    consumer = consumer_of(shared_kafka, name if not options else None, group_id=name, **options)
    async with consumer:
        async for record in consumer:  # it joins the group without the retry topics
            assert record.topic == name
            break
        run = running(consumer, handler, retry_topics=topics)
        await run.until(lambda: len(done) == 10)
        run.task.cancel()
        await asyncio.wait([run.task])
        await produce(shared_kafka, topics[0].name, range(100, 110))
        await produce(shared_kafka, name, range(10, 20))
        seen = []
        async with asyncio.timeout(SOON):
            async for record in consumer:
                assert record.topic == name
                seen.append(int(record.value))
                if 19 in seen and 18 in seen:
                    break
    assert sorted(done) == list(range(10))
    assert sorted(seen) == list(range(10, 20))


# --- failures


async def test_a_topic_that_refuses_the_record_delays_the_commit(
    shared_kafka, name, topics, read_all, produce, committed, consumer_of
):
    small = RetryTopic(f"{name}.small", 0.2)
    await shared_kafka.create_topic(small.name, config={"max.message.bytes": "300"})
    await produce(shared_kafka, name, range(20), keys=10, value=b"%d" + b"x" * 400)
    done = []

    async def handler(record):
        if (record.partition, record.offset, record.retries) == (0, 3, 0):
            raise ValueError
        done.append(record)

    async with consumer_of(shared_kafka, name) as consumer:
        run = running(consumer, handler, retry_topics=[small])
        await run.until(lambda: len(done) == 18)  # the next of its key waits behind it
        await asyncio.sleep(0.6)
        assert (consumer.run_stats().sent_to_retry, consumer.run_stats().in_flight) == (0, 2)
        assert await committed(shared_kafka, name, name) == [3, 10]
    run.task.result()
    async with consumer_of(shared_kafka, name) as consumer:
        run = running(consumer, handler, retry_topics=topics)
        await run.until(lambda: len(done) == 20)
    assert await committed(shared_kafka, name, name) == [10, 10]


async def test_missing_topics_are_named(shared_kafka, name, consumer_of, monkeypatch):
    # A `run` subscribes to the topics, which would create them on this broker.
    monkeypatch.setattr("resilient_io.kafka.consumer.fetcher._CREATION_TIME", 0.6)
    await shared_kafka.create_topic(name)
    missing = tuple(f"{name}.retry.{delay}" for delay in ("1m", "10m"))
    expected = f"missing topics: '{missing[1]}', '{missing[0]}'. Create each retry topic"
    async with consumer_of(shared_kafka, name) as consumer:
        fetcher = consumer._started().fetcher
        await fetcher.require_topics((name,))
        with pytest.raises(ConfigurationError, match=re.escape(expected)):
            await fetcher.require_topics((name, *missing))
        late = asyncio.create_task(fetcher.require_topics(missing))
        await asyncio.sleep(0.1)
        assert not late.done()
        for each in missing:
            await shared_kafka.create_topic(each)
        await late
