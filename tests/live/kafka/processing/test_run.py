"""`run` on a real broker: order, failures, dead letters, and all ways to end."""

import asyncio
import json
import logging
import random
import time

import pytest
from aiokafka import AIOKafkaProducer

from resilient_io import ConfigurationError
from resilient_io.kafka import KafkaClosed
from resilient_io.kafka.processing import DeadLetter, HandlerPolicy, RunLimits
from resilient_io.kafka.producer import ResilientKafkaProducer
from tests.live.kafka.running import SOON, Running


async def test_the_order_of_each_key_is_kept_and_everything_is_committed(
    shared_kafka, name, produce, committed, consumer_of
):
    await shared_kafka.create_topic(name, partitions=2)
    await produce(shared_kafka, name, range(1_000), keys=50)
    rng = random.Random(3)
    handled, running = {}, []

    async def handler(record):
        assert record.key not in running
        running.append(record.key)
        await asyncio.sleep(rng.choice([0, 0, 0.001, 0.01]))
        running.remove(record.key)
        handled.setdefault(record.key, []).append(int(record.value))

    async with consumer_of(shared_kafka, name) as consumer:
        run = Running(consumer, handler, concurrency=32)
        await run.until(lambda: sum(map(len, handled.values())) == 1_000)
        assert consumer.run_stats().handled == 1_000
    await run.task
    assert all(values == sorted(values) for values in handled.values())
    assert await committed(shared_kafka, name, name) == [500, 500]


async def test_unhandled_and_unreadable_records_are_in_the_dead_letter_topic(
    shared_kafka, name, read_all, produce, committed, consumer_of
):
    dead = f"{name}.dead"
    await shared_kafka.create_topic(name, partitions=2)
    await shared_kafka.create_topic(dead, partitions=3)
    await produce(shared_kafka, name, range(40), keys=10, value=b'{"n": %d}')
    async with AIOKafkaProducer(bootstrap_servers=shared_kafka.direct_servers) as producer:
        await producer.send_and_wait(
            name, b"{broken", key=b"1", partition=1, headers=[("trace", b"t1")]
        )
    done = []

    async def handler(record):
        if record.value["n"] % 10 == 7:
            raise LookupError("no such user")
        done.append(record.value["n"])

    async with consumer_of(shared_kafka, name, value_deserializer=json.loads) as consumer:
        run = Running(
            consumer,
            handler,
            dead_letter=dead,
            handler_policy=HandlerPolicy(attempts=2, backoff=0.05),
        )
        await run.until(lambda: len(done) == 36 and consumer.run_stats().dead_lettered == 5)
    assert await committed(shared_kafka, name, name) == [20, 21]
    letters = await read_all(shared_kafka, dead)
    by_value = {letter.value: letter for letter in letters}
    assert sorted(by_value) == sorted([b"{broken", *(b'{"n": %d}' % n for n in (7, 17, 27, 37))])
    broken = dict(by_value[b"{broken"].headers)
    assert by_value[b"{broken"].key == b"1"
    assert broken["trace"] == b"t1"
    assert broken["x-original-topic"] == name.encode()
    assert (broken["x-original-partition"], broken["x-original-offset"]) == (b"1", b"20")
    assert broken["x-error-type"] == b"json.decoder.JSONDecodeError"
    failed = dict(by_value[b'{"n": 17}'].headers)
    assert failed["x-attempts"] == b"2"
    assert failed["x-error-message"] == b"no such user"
    assert float(failed["x-first-failure-ago"]) >= 0.025


async def test_a_dead_letter_that_cannot_be_written_delays_the_commit(
    shared_kafka, name, read_all, produce, committed, consumer_of
):
    dead = f"{name}.dead"
    await shared_kafka.create_topic(name, partitions=2)
    # A broker that makes no topics would be a server of its own: too large is refused as surely.
    await shared_kafka.create_topic(dead, config={"max.message.bytes": "300"})
    await produce(shared_kafka, name, range(20), keys=10, value=b"%d" + b"x" * 400)
    done = []

    async def handler(record):
        if record.offset == 3 and record.partition == 0:
            raise ValueError
        done.append(record)

    async with consumer_of(shared_kafka, name) as consumer:
        run = Running(consumer, handler, dead_letter=dead, handler_policy=HandlerPolicy(attempts=1))
        await run.until(lambda: len(done) == 18)  # the next of its key waits behind it
        await asyncio.sleep(0.6)
        assert (consumer.run_stats().dead_lettered, consumer.run_stats().in_flight) == (0, 2)
        assert await committed(shared_kafka, name, name) == [3, 10]
    run.task.result()
    # Begun again with a topic that takes it: the record was not lost.
    good = f"{name}.good"
    await shared_kafka.create_topic(good)
    async with (
        ResilientKafkaProducer(bootstrap_servers=shared_kafka.bootstrap_servers) as producer,
        consumer_of(shared_kafka, name) as consumer,
    ):
        run = Running(
            consumer,
            handler,
            dead_letter=DeadLetter(topic=good, producer=producer),
            handler_policy=HandlerPolicy(attempts=1),
        )
        await run.until(lambda: (stats := consumer.run_stats()) and stats.dead_lettered == 1)
        await run.until(lambda: consumer.run_stats().in_flight == 0)
        await consumer.aclose()
        await producer.send_and_wait(good, b"it is still open")
    assert await committed(shared_kafka, name, name) == [10, 10]
    assert len(await read_all(shared_kafka, good)) == 2


async def test_run_can_be_called_again_after_a_failure_and_begins_with_that_record(
    shared_kafka, name, produce, committed, consumer_of
):
    await shared_kafka.create_topic(name, partitions=2)
    await produce(shared_kafka, name, range(200), keys=10)
    done, broken = [], True

    async def handler(record):
        if broken and int(record.value) == 77:
            raise LookupError("seventy-seven")
        done.append(int(record.value))

    async with consumer_of(shared_kafka, name) as consumer:
        with pytest.raises(LookupError) as caught:
            await consumer.run(handler, handler_policy=HandlerPolicy(attempts=2, backoff=0.01))
        assert f"{name}[1]@38" in caught.value.__notes__[0]
        assert 77 not in done
        broken = False
        run = Running(consumer, handler)
        await run.until(lambda: set(done) == set(range(200)))
    await run.task
    assert await committed(shared_kafka, name, name) == [100, 100]


@pytest.mark.parametrize("how", ["aclose", "cancel"])
async def test_ending_drains_commits_and_leaves_the_group(
    shared_kafka, name, how, members, produce, committed, consumer_of
):
    await shared_kafka.create_topic(name, partitions=2)
    await produce(shared_kafka, name, range(100), keys=10)
    begun, done, cancelled = [], [], []

    async def handler(record):
        begun.append(record)
        try:
            await asyncio.sleep(60.0 if record.key == b"9" else 0.3)
        except asyncio.CancelledError:
            cancelled.append(record)
            raise
        done.append(record)

    loop = asyncio.get_running_loop()
    async with consumer_of(shared_kafka, name) as consumer:
        run = Running(consumer, handler, concurrency=10)
        await run.until(lambda: len(begun) == 10)
        began = loop.time()
        if how == "cancel":
            run.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run.task
            assert loop.time() - began < 0.25
        await consumer.aclose()
        assert loop.time() - began < 8.0
    if how == "aclose":
        await run.task
    assert len(begun) == 10
    assert [record.key for record in cancelled] == [b"9"]
    # Key 9 is the fifth of its partition; nothing behind its first record may be committed.
    assert await committed(shared_kafka, name, name) == [5, 4]
    _, left = await members(shared_kafka, name)
    assert left == []


async def test_batches_are_handled_and_committed(
    shared_kafka, name, produce, committed, consumer_of
):
    await shared_kafka.create_topic(name, partitions=2)
    await produce(shared_kafka, name, range(500), keys=10)
    sizes, values = [], []

    async def handler(records):
        await asyncio.sleep(0.01)
        sizes.append(len(records))
        values.extend(int(record.value) for record in records)

    async with consumer_of(shared_kafka, name) as consumer:
        run = Running(consumer, handler, batch_size=50, order="partition", concurrency=4)
        await run.until(lambda: len(values) == 500)
    await run.task
    assert max(sizes) == 50
    assert sorted(values) == list(range(500))
    assert await committed(shared_kafka, name, name) == [250, 250]


async def test_handlers_that_hang_raise_and_cancel_do_not_affect_others(
    shared_kafka, name, caplog, produce, committed, consumer_of
):
    dead = f"{name}.dead"
    await shared_kafka.create_topic(name, partitions=2)
    await shared_kafka.create_topic(dead)
    await produce(shared_kafka, name, range(300), keys=300)
    done = []

    async def handler(record):
        number = int(record.value)
        match number % 60:
            case 10:
                await asyncio.sleep(3600)
            case 20:
                raise asyncio.CancelledError
            case 30:
                asyncio.current_task().cancel()
                await asyncio.sleep(1)
            case 40:
                raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
            case 50:
                raise TimeoutError
        done.append(number)

    with caplog.at_level(logging.INFO):
        async with consumer_of(shared_kafka, name) as consumer:
            run = Running(
                consumer,
                handler,
                dead_letter=dead,
                handler_policy=HandlerPolicy(attempts=2, backoff=0.02, timeout=0.5),
            )
            await run.until(lambda: len(done) == 275 and consumer.run_stats().dead_lettered == 25)
        await run.task
    assert await committed(shared_kafka, name, name) == [150, 150]
    assert len([each for each in caplog.records if each.name.startswith("resilient_io")]) <= 10


@pytest.mark.soak
async def test_a_handler_that_blocks_the_loop_past_the_session_costs_repeats_not_records(
    shared_kafka, name, produce, committed, consumer_of
):
    await shared_kafka.create_topic(name, partitions=2)
    await produce(shared_kafka, name, range(200), keys=10)
    done = []

    async def handler(record):
        if int(record.value) == 50 and 50 not in done:
            time.sleep(9.0)  # the session is over after 6 s
        done.append(int(record.value))

    async with consumer_of(shared_kafka, name) as consumer:
        run = Running(consumer, handler)
        await run.until(lambda: set(done) == set(range(200)))
        await produce(shared_kafka, name, range(20), keys=10)
        await run.until(lambda: len(done) >= 220)
        kept = []
        async with asyncio.timeout(SOON):  # it joins again, and commits what it has handled
            while kept != [110, 110]:
                await asyncio.sleep(0.2)
                kept = await committed(shared_kafka, name, name)
    await run.task


async def test_a_handler_longer_than_max_poll_interval_keeps_its_partition(
    shared_kafka, name, caplog, produce, consumer_of
):
    await shared_kafka.create_topic(name, partitions=2)
    await produce(shared_kafka, name, range(20), keys=10)
    done = []

    async def handler(record):
        await asyncio.sleep(3.0 if int(record.value) == 0 else 0.0)
        done.append(int(record.value))

    with caplog.at_level(logging.WARNING):
        async with consumer_of(shared_kafka, name, max_poll_interval_ms=1_500) as consumer:
            run = Running(consumer, handler, concurrency=4, limits=RunLimits(records=10))
            await run.until(lambda: len(done) == 20)
        await run.task
    assert len(set(done)) == len(done) == 20  # nothing came twice: the partition was never lost
    warned = [each for each in caplog.records if "has been running" in each.getMessage()]
    assert len(warned) == 1
    assert "max_poll_interval_ms=1500" in warned[0].getMessage()


async def test_run_refuses_invalid_arguments_and_a_second_user(shared_kafka, name, consumer_of):
    async def handler(record):
        await asyncio.sleep(0)

    await shared_kafka.create_topic(name)
    async with consumer_of(shared_kafka, name, group_id=None) as consumer:
        with pytest.raises(ConfigurationError, match="needs a group"):
            await consumer.run(handler)
    async with consumer_of(shared_kafka, name) as consumer:
        with pytest.raises(ConfigurationError, match='use order="key"'):
            await consumer.run(handler, order="keys")
        first = asyncio.create_task(consumer.run(handler))
        await asyncio.sleep(0.05)
        with pytest.raises(RuntimeError, match="running already"):
            await consumer.run(handler)
        with pytest.raises(RuntimeError, match="running already"):
            await anext(aiter(consumer))
        await consumer.aclose()
        await first


async def test_a_handler_may_close_the_consumer(
    shared_kafka, name, produce, committed, consumer_of
):
    await shared_kafka.create_topic(name, partitions=2)
    await produce(shared_kafka, name, range(100), keys=10)
    done = []

    async def handler(record):
        if len(done) == 50:
            record.done()
            await consumer.aclose()
        done.append(record.offset)

    loop = asyncio.get_running_loop()
    async with consumer_of(shared_kafka, name) as consumer:
        run = Running(consumer, handler, concurrency=1, order="none")
        await run.until(lambda: len(done) == 50)
        began = loop.time()
        await run.task
        assert loop.time() - began < 4.0
    assert sum(await committed(shared_kafka, name, name)) == 51


async def test_a_run_that_waits_for_a_cancelled_one_raises_closed(
    shared_kafka, name, produce, consumer_of
):
    await shared_kafka.create_topic(name)
    await produce(shared_kafka, name, range(10), keys=10, partitions=1)
    begun = []

    async def handler(record):
        begun.append(record.offset)
        await asyncio.sleep(0.5)

    async with consumer_of(shared_kafka, name) as consumer:
        first = Running(consumer, handler)
        await first.until(lambda: begun)
        first.task.cancel()
        await asyncio.wait([first.task])
        second = asyncio.create_task(consumer.run(handler), name="second run of the test")
        await asyncio.sleep(0)  # it waits, because the first one drains
        assert not second.done()
    async with asyncio.timeout(SOON):
        with pytest.raises(KafkaClosed):
            await second
