"""Iteration on a real broker: what is handled, committed, and delivered again."""

import asyncio
import itertools
import json
import sys

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import CorruptRecordException, KafkaError
from aiokafka.record._crecords import default_records

from resilient_io import RetryPolicy, deadline
from resilient_io.errors import ConfigurationError
from resilient_io.kafka import KafkaClosed, KafkaDeadlineExceeded
from resilient_io.kafka.consumer import ConsumerSettings, ResilientKafkaConsumer
from resilient_io.testing import free_port

_names = itertools.count()
SOON = 15.0


async def produced(kafka, topic, values, *, partition=None):
    async with AIOKafkaProducer(bootstrap_servers=kafka.direct_servers) as producer:
        for value in values:
            await producer.send(topic, value, partition=partition)


@pytest.fixture
async def topic(shared_kafka):
    """A topic of one partition with the values b"0" … b"9"."""
    name = f"iteration-{next(_names)}"
    await shared_kafka.create_topic(name)
    await produced(shared_kafka, name, [b"%d" % n for n in range(10)])
    return name


@pytest.fixture
async def consumer(shared_kafka):
    """Create consumers, which are closed after the test."""
    made = []

    def make(*topics, group_id="billing", **options):
        options = {
            "auto_offset_reset": "earliest",
            "settings": ConsumerSettings(commit_interval=0.1, drain_timeout=2.0),
            "heartbeat_interval_ms": 200,
        } | options
        group = None if group_id is None else f"{group_id}-{topics[0] if topics else 'fixed'}"
        made.append(
            ResilientKafkaConsumer(
                *topics,
                bootstrap_servers=shared_kafka.bootstrap_servers,
                group_id=group,
                **options,
            )
        )
        return made[-1]

    yield make
    for each in made:
        await each.aclose()


async def taken(consumer, count):
    """Handle this many records; return their values."""
    values = []
    async with asyncio.timeout(SOON):
        async for record in consumer:
            values.append(record.value)
            if len(values) == count:
                record.done()
                break
    return values


async def until(check):
    async with asyncio.timeout(SOON):
        while not await check():  # noqa: ASYNC110 - polls the broker
            await asyncio.sleep(0.05)


async def test_records_come_in_order_and_the_group_continues_after_them(consumer, topic):
    first = consumer(topic)
    assert await taken(first, 4) == [b"0", b"1", b"2", b"3"]
    await first.aclose()
    assert await taken(consumer(topic), 6) == [b"4", b"5", b"6", b"7", b"8", b"9"]


async def test_offsets_are_committed_in_the_background(consumer, topic, shared_kafka, committed):
    reader = consumer(topic)
    records = aiter(reader)
    async with asyncio.timeout(SOON):
        for _ in range(4):
            await anext(records)

    async def behind_the_third():
        return await committed(shared_kafka, topic, reader.group_id, 1) == [3]

    await until(behind_the_third)  # the fourth record is in hand
    await records.aclose()


async def test_leaving_by_break_leaves_the_record_in_hand_unhandled(consumer, topic):
    reader = consumer(topic)
    async with asyncio.timeout(SOON):
        async for record in reader:
            if record.value == b"3":
                break
    assert await taken(reader, 2) == [b"3", b"4"], "the next loop begins with it"
    async with asyncio.timeout(SOON):
        async for record in reader:
            if record.value == b"6":
                break
    await reader.aclose()
    assert await taken(consumer(topic), 1) == [b"6"], "and so does the next consumer"


async def test_leaving_by_an_exception_leaves_the_record_in_hand_unhandled(consumer, topic):
    reader = consumer(topic)
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(SOON):
            async for record in reader:
                _ = 1 / (int(record.value) - 2)
    assert await taken(reader, 3) == [b"2", b"3", b"4"]


async def test_leaving_after_done_handles_the_record_in_hand(
    consumer, topic, shared_kafka, committed
):
    reader = consumer(topic)
    assert await taken(reader, 5) == [b"0", b"1", b"2", b"3", b"4"]

    async def behind_the_fifth():
        return await committed(shared_kafka, topic, reader.group_id, 1) == [5]

    await until(behind_the_fifth)
    assert await taken(reader, 1) == [b"5"]


async def test_batches_are_handled_when_the_next_is_requested(
    consumer, topic, shared_kafka, committed
):
    reader = consumer(topic)
    async with asyncio.timeout(SOON):
        batches = reader.batches(max_records=4)
        assert [r.value for r in await anext(batches)] == [b"0", b"1", b"2", b"3"]
        second = await anext(batches)
        assert [r.value for r in second] == [b"4", b"5", b"6", b"7"]
        second[1].done()
        second[0].done()
        await batches.aclose()
    await reader.aclose()
    assert await committed(shared_kafka, topic, reader.group_id, 1) == [6]
    assert await taken(consumer(topic), 2) == [b"6", b"7"]


async def test_a_batch_waits_for_more_records_within_max_wait(consumer, topic, shared_kafka):
    reader = consumer(topic)
    assert len(await taken(reader, 10)) == 10
    batches = reader.batches(max_records=2, max_wait=30.0)
    async with asyncio.timeout(SOON):
        waiting = asyncio.create_task(anext(batches))
        await produced(shared_kafka, topic, [b"10"])
        await until(lambda: _truth(reader.stats().records == 11))
        assert not waiting.done()
        await produced(shared_kafka, topic, [b"11"])
        assert [record.value for record in await waiting] == [b"10", b"11"]


async def test_a_cancelled_wait_for_more_records_loses_nothing(consumer, topic, shared_kafka):
    reader = consumer(topic)
    assert len(await taken(reader, 10)) == 10
    batches = reader.batches(max_records=5, max_wait=30.0)
    waiting = asyncio.create_task(anext(batches))
    await produced(shared_kafka, topic, [b"10"])
    await until(lambda: _truth(reader.stats().records == 11))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await batches.aclose()
    assert await taken(reader, 1) == [b"10"]


async def _truth(value):
    return value


async def test_an_unreadable_record_does_not_stop_the_iteration(consumer, topic, shared_kafka):
    await produced(shared_kafka, topic, [b"{", b'{"a": 1}'])
    reader = consumer(topic, value_deserializer=json.loads)
    seen = []
    async with asyncio.timeout(SOON):
        async for record in reader:
            seen.append(record)
            if len(seen) == 12:
                break
    assert [record.value for record in seen[:10]] == list(range(10))
    assert isinstance(seen[10].error, json.JSONDecodeError)
    assert seen[10].raw_value == b"{"
    with pytest.raises(json.JSONDecodeError):
        _ = seen[10].value
    assert seen[11].value == {"a": 1}
    assert seen[11].raw_value == b'{"a": 1}'
    assert reader.stats().unreadable == 1


async def test_a_consumer_without_a_group_reads_all_records_and_seeks(
    consumer, topic, shared_kafka
):
    reader = consumer(topic, group_id=None)
    assert len(await taken(reader, 10)) == 10
    assert reader.assignment() == ((topic, 0),)
    reader.seek((topic, 0), 7)
    assert await taken(reader, 2) == [b"7", b"8"]
    assert reader.stats().commits == 0


async def test_fixed_partitions_and_a_pattern_are_read(consumer, shared_kafka):
    name = f"shape-{next(_names)}"
    await shared_kafka.create_topic(name, partitions=2)
    await produced(shared_kafka, name, [b"a"], partition=0)
    await produced(shared_kafka, name, [b"b", b"c"], partition=1)
    assert await taken(consumer(group_id=None, partitions=[(name, 1)]), 2) == [b"b", b"c"]
    by_pattern = consumer(group_id=f"pattern-{name}", pattern=name[:-1] + "[0-9]+$")
    assert sorted(await taken(by_pattern, 3)) == [b"a", b"b", b"c"]


async def test_seek_moves_the_group(consumer, topic, shared_kafka):
    reader = consumer(topic)
    assert len(await taken(reader, 10)) == 10
    reader.seek((topic, 0), 2)
    await reader.aclose()
    assert await taken(consumer(topic), 2) == [b"2", b"3"]


async def test_seek_while_a_record_is_in_hand(consumer, topic):
    reader = consumer(topic)
    seen = []
    async with asyncio.timeout(SOON):
        async for record in reader:
            seen.append(record.value)
            if len(seen) == 3:
                reader.seek((topic, 0), 8)
            if record.value == b"9":
                break
    assert seen == [b"0", b"1", b"2", b"8", b"9"]


async def test_lag_is_the_distance_from_the_committed_offset_to_the_end(
    consumer, topic, shared_kafka
):
    reader = consumer(topic)
    assert len(await taken(reader, 4)) == 4

    async def six_are_left():
        return await reader.lag() == {(topic, 0): 6}

    await until(six_are_left)
    await produced(shared_kafka, topic, [b"more"])
    assert await reader.lag() == {(topic, 0): 7}


async def test_closing_from_elsewhere_lets_the_record_in_hand_be_handled(
    consumer, topic, shared_kafka, committed
):
    reader = consumer(topic)
    in_hand, go_on = asyncio.Event(), asyncio.Event()
    seen = []

    async def handle():
        async for record in reader:
            seen.append(record.value)
            if len(seen) == 3:
                in_hand.set()
                await go_on.wait()

    async with asyncio.timeout(SOON):
        handling = asyncio.create_task(handle())
        await in_hand.wait()
        closing = asyncio.create_task(reader.aclose())
        await asyncio.sleep(0.1)
        assert not closing.done(), "closing waits for the record in hand"
        go_on.set()
        await asyncio.gather(handling, closing)
    assert seen == [b"0", b"1", b"2"]
    assert await committed(shared_kafka, topic, reader.group_id, 1) == [3]
    with pytest.raises(KafkaClosed):
        aiter(reader)


async def test_closing_within_the_loop_does_not_wait_for_itself(
    consumer, topic, shared_kafka, committed
):
    reader = consumer(topic)
    async with asyncio.timeout(SOON):
        async for record in reader:
            if record.value == b"2":
                before = asyncio.get_running_loop().time()
                await reader.aclose()
                assert asyncio.get_running_loop().time() - before < 2.0
    assert await committed(shared_kafka, topic, reader.group_id, 1) == [2]


async def test_one_loop_at_a_time_receives_records(consumer, topic):
    reader = consumer(topic)
    async with asyncio.timeout(SOON):
        async for _ in reader:
            with pytest.raises(RuntimeError, match="iterating already: one loop or run"):
                await anext(aiter(reader))
            with pytest.raises(RuntimeError, match="iterating already"):
                await anext(reader.batches())
            break
    assert await taken(reader, 1) == [b"0"], "the refused loops changed nothing"


async def test_slow_handling_of_many_records_keeps_the_membership(consumer, topic):
    # Ten records come at once; each takes a while, all of them more than the poll interval.
    reader = consumer(
        topic, max_poll_interval_ms=1500, session_timeout_ms=6000, heartbeat_interval_ms=100
    )
    seen = []
    async with asyncio.timeout(SOON):
        async for record in reader:
            seen.append(record.value)
            await asyncio.sleep(0.3)
            if len(seen) == 10:
                break
    assert seen == [b"%d" % n for n in range(10)]
    assert reader.stats().rebalances == 1


async def test_an_initial_position_at_the_end_is_committed(
    consumer, topic, shared_kafka, committed
):
    reader = consumer(topic, auto_offset_reset="latest")
    async with reader:
        waiting = asyncio.create_task(taken(reader, 1))

        async def place_is_committed():
            return await committed(shared_kafka, topic, reader.group_id, 1) == [10]

        await until(place_is_committed)  # though nothing was read: else a restart would skip
        waiting.cancel()
    await produced(shared_kafka, topic, [b"while away"])
    assert await taken(consumer(topic, auto_offset_reset="latest"), 1) == [b"while away"]


async def test_a_deadline_bounds_the_wait_for_a_record(consumer, topic):
    reader = consumer(topic)
    assert len(await taken(reader, 10)) == 10
    with pytest.raises(KafkaDeadlineExceeded, match="no record came in time"), deadline(0.1):
        await taken(reader, 1)
    with pytest.raises(KafkaDeadlineExceeded, match="no record came in time"), deadline(0.1):
        await anext(reader.batches(max_wait=5.0))


async def test_transactions_are_read_whole_and_their_markers_do_not_count_as_lag(
    consumer, shared_kafka
):
    name = f"transactions-{next(_names)}"
    await shared_kafka.create_topic(name)
    async with AIOKafkaProducer(
        bootstrap_servers=shared_kafka.direct_servers, transactional_id=name
    ) as producer:
        async with producer.transaction():
            await producer.send(name, b"whole")
        with pytest.raises(ZeroDivisionError):
            async with producer.transaction():
                await producer.send_and_wait(name, b"given up")
                _ = 1 / 0
        async with producer.transaction():
            await producer.send(name, b"again")
    reader = consumer(name, isolation_level="read_committed")
    assert await taken(reader, 2) == [b"whole", b"again"]

    async def nothing_is_left():
        return await reader.lag() == {(name, 0): 0}

    await until(nothing_is_left)


async def test_a_topic_that_is_created_later_is_read(consumer, shared_kafka):
    name = f"later-{next(_names)}"
    reader = consumer(name, metadata_max_age_ms=500)
    reading = asyncio.create_task(taken(reader, 1))
    await asyncio.sleep(1.0)
    await produced(shared_kafka, name, [b"first"])
    assert await reading == [b"first"]
    await shared_kafka.delete_topic(name)
    before = asyncio.get_running_loop().time()
    await reader.aclose()
    assert asyncio.get_running_loop().time() - before < 5.0


async def test_a_permanent_refusal_of_kafka_is_raised(consumer, topic):
    reader = consumer(topic, group_id=None, auto_offset_reset="none")
    with pytest.raises(KafkaError, match="NoOffsetForPartition"):
        await taken(reader, 1)


async def test_a_static_member_keeps_its_partitions_over_a_restart(consumer, topic):
    first = consumer(topic, group_instance_id="one", session_timeout_ms=10_000)
    assert len(await taken(first, 3)) == 3
    await first.aclose()
    again = consumer(topic, group_instance_id="one", session_timeout_ms=10_000)
    assert await taken(again, 1) == [b"3"]


async def test_a_consumer_starts_while_kafka_is_unavailable(topic):
    async with ResilientKafkaConsumer(
        topic,
        bootstrap_servers=f"127.0.0.1:{free_port()}",
        group_id="billing",
        policy=RetryPolicy(while_down="wait"),
    ) as reader:
        with pytest.raises(KafkaDeadlineExceeded):
            await reader.lag(0.3)
        waiting = asyncio.create_task(taken(reader, 1))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    with pytest.raises(KafkaClosed):
        await reader.lag()


async def test_run_needs_a_group(consumer, topic):
    async def handle(record):
        """Do nothing."""

    with pytest.raises(ConfigurationError, match="run\\(\\) needs a group"):
        await consumer(topic, group_id=None).run(handle)


async def test_an_unreadable_partition_loses_no_record_of_another(
    shared_kafka, consumer, monkeypatch
):
    name = f"iteration-{next(_names)}"
    await shared_kafka.create_topic(name, partitions=2)
    async with AIOKafkaProducer(
        bootstrap_servers=shared_kafka.direct_servers, compression_type="gzip"
    ) as producer:
        for partition in (0, 1):
            batch = producer.create_batch()
            for n in range(10):
                batch.append(key=None, value=b"%d-%d" % (partition, n) * 100, timestamp=None)
            await (await producer.send_batch(batch, name, partition=partition))
    first = None
    seen = {0: [], 1: []}
    decode = default_records.gzip_decode

    def decode_the_first(data):
        nonlocal first
        first = first or bytes(data)
        if bytes(data) != first and sum(map(len, seen.values())) < 10:
            raise CorruptRecordException("as if")
        return decode(data)

    monkeypatch.setattr(default_records, "gzip_decode", decode_the_first)
    async with asyncio.timeout(SOON):
        async for record in consumer(name):
            seen[record.partition].append(record.offset)
            if seen == {0: list(range(10)), 1: list(range(10))}:
                break


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
@pytest.mark.parametrize("group_id", ["eager", None])
async def test_eager_tasks(consumer, topic, group_id):
    """aiokafka 0.14 starts the task of a group's coordination before it can run."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        async with asyncio.timeout(SOON), consumer(topic, group_id=group_id) as reading:
            values = []
            async for record in reading:
                values.append(record.value)
                if len(values) == 10:
                    break
            assert values == [b"%d" % n for n in range(10)]
            assert reading.stats().instances == 1
    finally:
        loop.set_task_factory(None)
