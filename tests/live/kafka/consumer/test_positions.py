"""A consumer whose position no longer exists: Kafka has deleted records, or the whole topic."""

import asyncio
import logging

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete

from resilient_io import State
from resilient_io.health import Cause
from resilient_io.kafka import ConsumerSettings, KafkaRecordsLost, RecordsLost
from resilient_io.testing.kafka.wire import KafkaServerError

LATEST = {"auto_offset_reset": "latest", "metadata_max_age_ms": 500}


@pytest.fixture
def admin_of():
    """Return an admin client of aiokafka: `async with admin_of(kafka) as admin`."""

    def connect(kafka):
        return AIOKafkaAdminClient(bootstrap_servers=kafka.direct_servers)

    return connect


@pytest.fixture
def delete_before(admin_of):
    """Delete the records before an offset: `await delete_before(kafka, topic, 50)`."""

    async def delete(kafka, topic, offset, partition=0):
        admin = admin_of(kafka)
        await admin.start()
        try:
            await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(offset)})
        finally:
            await admin.close()

    return delete


@pytest.fixture
def recreate(admin_of):
    """Delete a topic, and create it again with the same name."""

    async def again(kafka, topic, partitions=1):
        await kafka.delete_topic(topic)
        for _ in range(20):
            try:
                return await kafka.create_topic(topic, partitions=partitions)
            except KafkaServerError:
                pass
            await asyncio.sleep(0.1)  # it is being deleted, or a consumer has created it again
        return None

    return again


async def read(consumer, count, *, within=30.0):
    """Handle and return the values of the next records."""
    values = []
    async with asyncio.timeout(within):
        async for record in consumer:
            values.append(int(record.value))
            if len(values) == count:
                record.done()
                break
    return values


async def started_at_the_end(consumer, kafka, topic, committed, partitions=1):
    """Wait until the first positions of a group, at the end of the topic, are committed."""
    waiting = asyncio.create_task(read(consumer, 1))
    async with asyncio.timeout(30.0):
        while None in await committed(kafka, topic, topic, partitions):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.wait([waiting])


@pytest.fixture
async def topic(shared_kafka, name):
    await shared_kafka.create_topic(name, partitions=1)
    return name


async def read_some_as_group(shared_kafka, topic, produce, consumer_of, committed, numbers):
    """Read these records as the group, and leave it."""
    async with consumer_of(shared_kafka, topic, **LATEST) as consumer:
        await started_at_the_end(consumer, shared_kafka, topic, committed)
        await produce(shared_kafka, topic, numbers, partitions=1)
        assert await read(consumer, len(numbers)) == list(numbers)


@pytest.mark.parametrize("reset", ["latest", "earliest"])
async def test_records_that_remain_after_a_deletion_are_read_and_the_gap_is_reported(
    shared_kafka, topic, produce, consumer_of, committed, delete_before, caplog, reset
):
    await read_some_as_group(shared_kafka, topic, produce, consumer_of, committed, range(10))
    await produce(shared_kafka, topic, range(10, 110), partitions=1)
    await delete_before(shared_kafka, topic, 60)
    with caplog.at_level(logging.WARNING, "resilient_io.kafka"):
        async with consumer_of(shared_kafka, topic, auto_offset_reset=reset) as consumer:
            assert await read(consumer, 50) == list(range(60, 110))
            assert (consumer.stats().gaps, consumer.stats().records_lost) == (1, 50)
            async with asyncio.timeout(5.0):
                while consumer.health.state is not State.DEGRADED:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert consumer.health.cause is Cause.RECORDS_LOST
    (warning,) = [r for r in caplog.records if getattr(r, "event", "") == "records_lost"]
    assert (warning.topic, warning.partition, warning.position) == (topic, 0, 10)
    assert (warning.continues_at, warning.records, warning.reason) == (60, 50, "deleted")
    assert await committed(shared_kafka, topic, topic, 1) == [110]


async def test_a_seek_to_a_deleted_record_continues_at_the_first_one_that_remains(
    shared_kafka, topic, produce, consumer_of, delete_before
):
    await produce(shared_kafka, topic, range(10), partitions=1)
    async with consumer_of(shared_kafka, topic) as consumer:
        assert await read(consumer, 10) == list(range(10))
        await produce(shared_kafka, topic, range(10, 20), partitions=1)
        await delete_before(shared_kafka, topic, 15)
        consumer.seek((topic, 0), 2)
        assert await read(consumer, 5) == list(range(15, 20))
        assert consumer.stats().records_lost == 13


async def test_on_gap_stop_raises_until_the_caller_seeks(
    shared_kafka, topic, produce, consumer_of, delete_before
):
    await produce(shared_kafka, topic, range(20), partitions=1)
    async with consumer_of(shared_kafka, topic, on_gap="stop") as consumer:
        assert await read(consumer, 5) == list(range(5))
        await asyncio.sleep(0.5)
    await delete_before(shared_kafka, topic, 12)
    async with consumer_of(shared_kafka, topic, on_gap="stop") as consumer:
        for _ in range(2):
            with pytest.raises(KafkaRecordsLost) as caught:
                await read(consumer, 1)
            assert caught.value.lost.continues_at == 12
        consumer.seek((topic, 0), caught.value.lost.continues_at)
        assert await read(consumer, 8) == list(range(12, 20))


async def test_on_gap_can_be_a_coroutine_function(
    shared_kafka, topic, produce, consumer_of, delete_before
):
    losses = []

    async def on_gap(lost):
        losses.append(lost)
        return "continue"

    await produce(shared_kafka, topic, range(20), partitions=1)
    async with consumer_of(shared_kafka, topic) as consumer:
        assert await read(consumer, 5) == list(range(5))
    await delete_before(shared_kafka, topic, 12)
    async with consumer_of(shared_kafka, topic, on_gap=on_gap) as consumer:
        assert await read(consumer, 8) == list(range(12, 20))
    assert losses == [
        RecordsLost(
            topic=topic, partition=0, position=5, continues_at=12, count=7, reason="deleted"
        )
    ]


async def test_on_gap_may_take_longer_than_a_request(
    shared_kafka, topic, produce, consumer_of, delete_before
):
    losses = []

    async def on_gap(lost):
        losses.append(lost)
        await asyncio.sleep(0.8)
        return "continue"

    await produce(shared_kafka, topic, range(20), partitions=1)
    async with consumer_of(shared_kafka, topic) as consumer:
        assert await read(consumer, 5) == list(range(5))
    await delete_before(shared_kafka, topic, 12)
    settings = ConsumerSettings(commit_timeout=0.4)
    async with consumer_of(shared_kafka, topic, on_gap=on_gap, settings=settings) as consumer:
        assert await read(consumer, 8) == list(range(12, 20))
    assert len(losses) == 1


async def test_an_exception_of_on_gap_reaches_the_loop(
    shared_kafka, topic, produce, consumer_of, delete_before
):
    def on_gap(_lost):
        raise LookupError("a bug of the caller")

    await produce(shared_kafka, topic, range(20), partitions=1)
    async with consumer_of(shared_kafka, topic) as consumer:
        assert await read(consumer, 5) == list(range(5))
    await delete_before(shared_kafka, topic, 12)
    async with consumer_of(shared_kafka, topic, on_gap=on_gap) as consumer:
        with pytest.raises(LookupError):
            await read(consumer, 1)


@pytest.mark.parametrize("count", [10, 200])
async def test_a_topic_that_was_created_again_is_read_from_its_start_after_a_restart(
    shared_kafka, topic, produce, consumer_of, committed, recreate, count
):
    await read_some_as_group(shared_kafka, topic, produce, consumer_of, committed, range(100))
    await recreate(shared_kafka, topic)
    await produce(shared_kafka, topic, range(count), partitions=1)
    async with consumer_of(shared_kafka, topic) as consumer:
        assert await read(consumer, count) == list(range(count))
        await consumer.commit()
    assert await committed(shared_kafka, topic, topic, 1) == [count]


@pytest.mark.parametrize("count", [10, 200])
async def test_a_topic_that_is_created_again_is_read_from_its_start_by_a_running_consumer(
    shared_kafka, topic, produce, consumer_of, committed, recreate, count
):
    async with consumer_of(shared_kafka, topic, **LATEST) as consumer:
        await started_at_the_end(consumer, shared_kafka, topic, committed)
        await produce(shared_kafka, topic, range(100), partitions=1)
        assert await read(consumer, 100) == list(range(100))
        await recreate(shared_kafka, topic)
        await produce(shared_kafka, topic, range(1000, 1000 + count), partitions=1)
        values = []
        async with asyncio.timeout(40.0):
            while not set(range(1000, 1000 + count)) <= set(values):
                values += await read(consumer, 1)
        assert consumer.stats().gaps == 1
        await consumer.commit()
    assert await committed(shared_kafka, topic, topic, 1) == [count]


async def test_offsets_of_an_earlier_topic_of_that_name_are_not_used(
    shared_kafka, topic, produce, consumer_of, committed, recreate
):
    await read_some_as_group(shared_kafka, topic, produce, consumer_of, committed, range(10))
    partition = TopicPartition(topic, 0)
    async with AIOKafkaConsumer(
        bootstrap_servers=shared_kafka.direct_servers, group_id=topic, enable_auto_commit=False
    ) as other:
        old = await other._coordinator.fetch_committed_offsets([partition])
        await recreate(shared_kafka, topic)
        await produce(shared_kafka, topic, range(200), partitions=1)
        # As a consumer does that has not noticed it yet.
        other.assign([partition])
        await other.commit({partition: (old[partition].offset, old[partition].metadata)})
    async with consumer_of(shared_kafka, topic, **LATEST) as consumer:
        assert await read(consumer, 200) == list(range(200))
        assert consumer.stats().gaps == 1


async def test_a_partition_that_was_added_is_read_from_its_start(
    shared_kafka, topic, produce, consumer_of, committed, admin_of
):
    async with consumer_of(shared_kafka, topic, **LATEST) as consumer:
        await started_at_the_end(consumer, shared_kafka, topic, committed)
        admin = admin_of(shared_kafka)
        await admin.start()
        try:
            await admin.create_partitions({topic: NewPartitions(3)})
        finally:
            await admin.close()
        await asyncio.sleep(0.2)
        await produce(shared_kafka, topic, range(300), partitions=3)
        assert sorted(await read(consumer, 300)) == list(range(300))


async def test_a_new_topic_of_a_pattern_is_read_from_its_start(
    shared_kafka, name, produce, consumer_of, committed
):
    await shared_kafka.create_topic(f"{name}.a", partitions=1)
    options = {"group_id": f"{name}.a", "pattern": f"{name}\\..*"} | LATEST
    async with consumer_of(shared_kafka, None, **options) as consumer:
        await started_at_the_end(consumer, shared_kafka, f"{name}.a", committed)
        await shared_kafka.create_topic(f"{name}.b", partitions=1)
        await produce(shared_kafka, f"{name}.b", range(20), partitions=1)
        assert await read(consumer, 20) == list(range(20))


async def test_a_group_that_never_read_the_topic_begins_at_its_end_with_latest(
    shared_kafka, topic, produce, consumer_of, committed
):
    await produce(shared_kafka, topic, range(10), partitions=1)
    async with consumer_of(shared_kafka, topic, **LATEST) as consumer:
        await started_at_the_end(consumer, shared_kafka, topic, committed)
        await produce(shared_kafka, topic, range(10, 15), partitions=1)
        assert await read(consumer, 5) == list(range(10, 15))
        assert consumer.stats().gaps == 0


async def test_a_seek_beyond_the_end_is_reported(shared_kafka, topic, produce, consumer_of):
    await produce(shared_kafka, topic, range(10), partitions=1)
    async with consumer_of(shared_kafka, topic, on_gap="stop") as consumer:
        assert await read(consumer, 10) == list(range(10))
        consumer.seek((topic, 0), 500)
        with pytest.raises(KafkaRecordsLost) as caught:
            await read(consumer, 1)
        assert (caught.value.lost.reason, caught.value.lost.continues_at) == ("beyond the end", 10)


async def test_a_consumer_without_a_group_begins_where_auto_offset_reset_says(
    shared_kafka, topic, produce, consumer_of
):
    await produce(shared_kafka, topic, range(10), partitions=1)
    async with consumer_of(shared_kafka, topic, group_id=None) as consumer:
        assert await read(consumer, 10) == list(range(10))
