"""Positions and offsets: queried, moved, and partitions paused."""

import asyncio
import re

import pytest

from resilient_io.errors import ConfigurationError
from resilient_io.kafka import KafkaDeadlineExceeded, KafkaUnavailable, ResilientKafkaConsumer


@pytest.fixture
async def topic(shared_kafka, name, produce):
    """A topic of two partitions with 20 records each: even numbers in 0, odd ones in 1."""
    await shared_kafka.create_topic(name, partitions=2)
    await produce(shared_kafka, name, range(40))
    return name


@pytest.fixture
async def consumer(shared_kafka, topic):
    async with ResilientKafkaConsumer.from_url(
        f"kafka://{shared_kafka.bootstrap_servers}",
        topic,
        group_id=f"{topic}-group",
        auto_offset_reset="earliest",
    ) as consumer:
        yield consumer


async def take(consumer, count, *, within=20.0):
    """Return the partition and the value of the next records, in the order of their delivery."""
    found = []
    async with asyncio.timeout(within):
        async for record in consumer:
            record.done()
            found.append((record.partition, int(record.value)))
            if len(found) == count:
                break
    return found


async def test_position_is_that_of_the_next_delivered_record(consumer, topic):
    seen = {0: 0, 1: 0}
    for count in (1, 1, 5, 9):
        for partition, _ in await take(consumer, count):
            seen[partition] += 1
        for partition, number in seen.items():
            assert await consumer.position((topic, partition)) == number


async def test_queries_agree_with_the_broker(consumer, topic):
    partitions = [(topic, 0), (topic, 1)]
    assert await consumer.beginning_offsets(partitions) == {(topic, 0): 0, (topic, 1): 0}
    assert await consumer.end_offsets(partitions) == {(topic, 0): 20, (topic, 1): 20}
    assert await consumer.committed((topic, 0)) is None
    assert len(await take(consumer, 40)) == 40
    await consumer.commit()
    assert [await consumer.committed(each) for each in partitions] == [20, 20]


async def test_offsets_for_times_returns_the_first_record_from_a_time_on(consumer, topic):
    stamps = {}
    async with asyncio.timeout(20):
        async for record in consumer:
            stamps[record.partition, record.offset] = record.timestamp
            if len(stamps) == 40:
                break
    middle = stamps[0, 10]
    found = await consumer.offsets_for_times({(topic, 0): middle, (topic, 1): 2**52})
    first = min(offset for (number, offset), at in stamps.items() if not number and at >= middle)
    assert (found[topic, 0].offset, found[topic, 0].timestamp) == (first, stamps[0, first])
    assert found[topic, 1] is None


async def test_seeks_to_the_beginning_and_the_end(consumer, topic, shared_kafka, produce):
    assert len(await take(consumer, 40)) == 40
    await consumer.seek_to_beginning((topic, 1))
    assert await take(consumer, 20) == [(1, number) for number in range(1, 40, 2)]
    await consumer.seek_to_beginning()
    assert len(await take(consumer, 3)) == 3
    await consumer.seek_to_end()
    await produce(shared_kafka, topic, [100, 101])
    assert sorted(await take(consumer, 2)) == [(0, 100), (1, 101)]


async def test_paused_partition_is_not_delivered_until_resumed(consumer, topic):
    await take(consumer, 2)  # the loop has taken records of both partitions from Kafka
    consumer.pause((topic, 0))
    assert consumer.paused() == ((topic, 0),)
    before = await consumer.position((topic, 1))
    rest = await take(consumer, 20 - before)
    assert {partition for partition, _ in rest} == {1}
    with pytest.raises(TimeoutError):
        await take(consumer, 1, within=0.5)
    at = await consumer.position((topic, 0))
    consumer.resume((topic, 0), (topic, 1))
    assert consumer.paused() == ()
    assert await take(consumer, 20 - at) == [(0, 2 * offset) for offset in range(at, 20)]


async def test_pause_during_a_run_is_kept(consumer, topic):
    handled = {0: 0, 1: 0}
    changed = asyncio.Condition()

    async def handle(record):
        async with changed:
            handled[record.partition] += 1
            changed.notify_all()

    await take(consumer, 1)
    left = [20 - await consumer.position((topic, partition)) for partition in (0, 1)]
    consumer.pause((topic, 0))
    running = asyncio.create_task(consumer.run(handle))
    async with asyncio.timeout(20), changed:
        await changed.wait_for(lambda: handled[1] == left[1])
        assert handled[0] == 0
        consumer.resume((topic, 0))
        await changed.wait_for(lambda: handled[0] == left[0])
    await consumer.aclose()
    await running


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda c: c.position(("other", 0)), ConfigurationError, "('other', 0) is not assigned"),
        (lambda c: c.position("orders"), TypeError, "pair of topic and number"),
        (lambda c: c.end_offsets("orders"), TypeError, "not 'o'"),
        (lambda c: c.end_offsets([("orders", "0")]), TypeError, "not ('orders', '0')"),
        (lambda c: c.offsets_for_times({("orders", 0): 1.5}), ConfigurationError, "timestamp"),
        (lambda c: c.seek_to_end(("other", 0)), ConfigurationError, "returned by assignment()"),
    ],
)
async def test_bad_input_is_quoted(consumer, call, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        await call(consumer)


async def test_committed_needs_a_group(shared_kafka, topic):
    async with ResilientKafkaConsumer(
        topic, bootstrap_servers=shared_kafka.bootstrap_servers
    ) as consumer:
        with pytest.raises(ConfigurationError, match="pass group_id="):
            await consumer.committed((topic, 0))


async def test_queries_end_in_time_while_kafka_is_down():
    async with ResilientKafkaConsumer("orders", bootstrap_servers="127.0.0.1:1") as consumer:
        with pytest.raises((KafkaDeadlineExceeded, KafkaUnavailable), match="end_offsets"):
            await consumer.end_offsets([("orders", 0)], timeout=0.5)
