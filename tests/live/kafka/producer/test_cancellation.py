"""Every public coroutine of the producer, cancelled at each point where it waits."""

import asyncio
import contextlib

import pytest
import pytest_asyncio
from aiokafka import TopicPartition

from resilient_io.kafka.producer import DeliverySettings, ResilientKafkaProducer
from resilient_io.testing import Problem, cancel_everywhere


@pytest_asyncio.fixture
async def topic(shared_kafka, name):
    await shared_kafka.create_topic(name, partitions=2)
    return name


@pytest_asyncio.fixture
async def producer(shared_kafka, topic):
    async with ResilientKafkaProducer(shared_kafka.bootstrap_servers) as producer:
        await producer.send_and_wait(topic, b"first")
        yield producer


@pytest.fixture
def works(topic):
    async def check(producer):
        metadata = await producer.send_and_wait(topic, b"check")
        assert metadata.topic == topic
        await producer.flush()
        stats = producer.stats()
        assert (stats.waiting, stats.in_flight, stats.buffered) == (0, 0, 0)
        assert stats.callers_waiting == 0

    return check


async def values():
    for n in range(3):
        yield b"%d" % n
        await asyncio.sleep(0)


CALLS = {
    "send_and_wait": lambda producer, topic: producer.send_and_wait(topic, b"x", key=b"k"),
    "send_many": lambda producer, topic: producer.send_many(topic, [b"x"] * 200),
    "send_many, async": lambda producer, topic: producer.send_many(topic, values()),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_cancelled_call_returns_immediately_and_leaves_nothing_behind(
    call, producer, topic, works
):
    @contextlib.asynccontextmanager
    async def setup():
        yield producer

    report = await cancel_everywhere(
        lambda producer: CALLS[call](producer, topic), setup=setup, check=works
    )
    report.assert_clean()


async def test_a_cancelled_flush_changes_nothing(producer, topic, works):
    async def send_and_flush():
        await producer.send(topic, b"x")
        await producer.flush()

    report = await cancel_everywhere(send_and_flush, check=lambda: works(producer))
    report.assert_clean()


async def test_waiting_for_room_and_for_a_topic_can_be_cancelled(shared_kafka, topic, works, name):
    settings = DeliverySettings(buffer_bytes=64 * 1024)
    numbers = iter(range(1000))
    async with ResilientKafkaProducer(
        shared_kafka.bootstrap_servers, settings=settings
    ) as producer:
        await producer.send_and_wait(topic, b"first")

        async def fill():
            futures = [await producer.send(topic, b"x" * 1000) for _ in range(60)]
            await producer.send(f"{name}-{next(numbers)}", b"x")
            await asyncio.gather(*futures)

        report = await cancel_everywhere(fill, check=lambda: works(producer), max_points=40)
        report.assert_clean()


async def test_a_cancelled_start_and_close_leave_nothing_behind(shared_kafka, topic):
    async def life():
        async with ResilientKafkaProducer(shared_kafka.bootstrap_servers) as producer:
            await producer.send_and_wait(topic, b"x")

    # A cancelled close returns immediately; closing continues in the background.
    report = await cancel_everywhere(life, settle=5.0)
    assert [finding for finding in report.findings if finding.problem is not Problem.LATE] == []


async def test_a_cancelled_aclose_returns_immediately_and_continues_in_the_background(
    shared_kafka, topic
):
    @contextlib.asynccontextmanager
    async def setup():
        producer = ResilientKafkaProducer(shared_kafka.bootstrap_servers)
        sent = await producer.send(topic, b"x")
        yield producer
        await producer.aclose()
        assert sent.done()

    report = await cancel_everywhere(lambda producer: producer.aclose(), setup=setup)
    report.assert_clean()


async def test_a_cancelled_transaction_returns_immediately_and_is_aborted(
    shared_kafka, topic, name, read_all
):
    numbers = iter(range(1000))
    done = []
    async with ResilientKafkaProducer(
        shared_kafka.bootstrap_servers, transactional_id=name
    ) as producer:

        async def work():
            number = next(numbers)
            async with producer.transaction() as transaction:
                await producer.send(topic, b"%d a" % number)
                await transaction.send_offsets({TopicPartition(topic, 0): number}, name)
                await producer.send_and_wait(topic, b"%d b" % number)
            done.append(number)

        async def check():
            async with producer.transaction():
                await producer.send(topic, b"check")

        await check()  # the transaction coordinator is available
        report = await cancel_everywhere(work, check=check, settle=2.0)
        report.assert_clean()
    seen = [r.value for r in await read_all(shared_kafka, topic, "read_committed")]
    whole = [value.split() for value in seen if value != b"check"]
    numbers_seen = [int(number) for number, _ in whole]
    assert all(numbers_seen.count(number) == 2 for number in numbers_seen)
    assert set(done) <= set(numbers_seen)
