"""Retry topics on a real broker: nothing is lost, whatever ends a `run` in between."""

import asyncio
import time

import pytest

from resilient_io import HandlerPolicy, RetryTopic

SOON = 40.0
ONCE = HandlerPolicy(attempts=1)


class Running:
    """A `run` in a separate task; fails the test as soon as it fails."""

    def __init__(self, consumer, handler, **options):
        options = {"handler_policy": ONCE} | options
        self.task = asyncio.create_task(consumer.run(handler, **options), name="run of the test")

    async def until(self, condition):
        async with asyncio.timeout(SOON):
            while not condition():
                if self.task.done():
                    self.task.result()
                    raise AssertionError("run() ended")
                await asyncio.sleep(0.01)


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

    options = {"retry_topics": topics, "dead_letter": dead}
    async with consumer_of(shared_kafka, name, auto_offset_reset="none") as consumer:
        await consumer.commit()
    async with consumer_of(shared_kafka, name) as consumer:
        run = Running(consumer, handler, **options)
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
