"""Transactions on a real broker: readers see all records of one, or none."""

import asyncio
import contextlib

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalOperation, MessageSizeTooLargeError, ProducerFenced

from resilient_io import DeadlineExceeded, DependencyUnavailable, OutcomeUnknown, RetryPolicy
from resilient_io.errors import ConfigurationError
from resilient_io.kafka.producer import ResilientKafkaProducer


@pytest.fixture
def server(proxied_kafka):
    return proxied_kafka


@pytest.fixture
def proxy(kafka_proxy):
    return kafka_proxy


@pytest_asyncio.fixture
async def topic(server, name):
    await server.create_topic(name, partitions=2)
    return name


@pytest.fixture
def make(proxy, name):
    def make(**options):
        options = {"transactional_id": name, **options}
        return ResilientKafkaProducer(proxy.bootstrap_servers, **options)

    return make


@pytest.fixture
def committed(server, topic, read_all):
    async def read():
        return sorted(r.value for r in await read_all(server, topic, "read_committed"))

    return read


async def test_records_of_a_transaction_become_visible_together_with_the_offsets(
    make, topic, committed, server, name
):
    async with make() as producer:
        async with producer.transaction() as transaction:
            futures = [await producer.send(topic, b"%d" % n) for n in range(5)]
            await producer.send_many(topic, [b"5", b"6"])
            await transaction.send_offsets({TopicPartition(topic, 0): 7}, f"{name}-group")
            assert await committed() == []
        assert all(future.done() for future in futures)
        assert await committed() == [b"%d" % n for n in range(7)]
        async with producer.transaction():
            await producer.send_and_wait(topic, b"7")
        assert await committed() == [b"%d" % n for n in range(8)]
    reader = AIOKafkaConsumer(bootstrap_servers=server.direct_servers, group_id=f"{name}-group")
    await reader.start()
    assert await reader.committed(TopicPartition(topic, 0)) == 7
    await reader.stop()


async def test_offsets_of_several_groups_are_committed(make, topic, server):
    groups = [f"{topic}-{number}" for number in range(3)]
    async with make() as producer:
        async with producer.transaction() as transaction:
            for offset, group in enumerate([*groups, groups[0]], 1):
                await transaction.send_offsets({TopicPartition(topic, 0): offset}, group)
        with pytest.raises(KeyError):
            async with producer.transaction() as transaction:
                for group in groups:
                    await transaction.send_offsets({TopicPartition(topic, 0): 10}, group)
                raise KeyError
        async with producer.transaction():  # it begins when the offsets are visible
            await producer.send(topic, b"x")
        assert producer.stats().instances == 1
    for group, offset in zip(groups, (4, 2, 3), strict=True):
        async with AIOKafkaConsumer(
            bootstrap_servers=server.direct_servers, group_id=group
        ) as reader:
            assert await reader.committed(TopicPartition(topic, 0)) == offset


async def test_an_exception_aborts_and_the_next_transaction_starts_clean(make, topic, committed):
    async with make() as producer:
        with pytest.raises(KeyError):
            async with producer.transaction():
                await producer.send_and_wait(topic, b"written, and aborted")
                waiting = await producer.send(topic, b"not sent")
                raise KeyError
        assert isinstance(waiting.exception(), DependencyUnavailable)
        async with producer.transaction():
            await producer.send(topic, b"good")
        assert await committed() == [b"good"]
        assert producer.stats().instances == 1


async def test_a_record_that_fails_aborts_the_transaction_with_its_error(
    make, server, name, topic, committed
):
    await server.create_topic(f"{name}-small", config={"max.message.bytes": "500"})
    async with make() as producer:
        with pytest.raises(MessageSizeTooLargeError) as caught:
            async with producer.transaction():
                await producer.send(topic, b"good")
                await producer.send(f"{name}-small", b"x" * 1000)
        assert any("aborted" in note for note in caught.value.__notes__)
        assert await committed() == []
        async with producer.transaction():
            await producer.send(topic, b"next")
        assert await committed() == [b"next"]


async def test_cancelling_inside_returns_immediately_and_the_abort_continues(
    make, topic, committed
):
    async with make() as producer:

        async def work():
            async with producer.transaction():
                await producer.send_and_wait(topic, b"x")
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        while not producer.stats().delivered:  # noqa: ASYNC110 (counters can only be polled)
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with producer.transaction():
            await producer.send(topic, b"y")
        assert await committed() == [b"y"]
        assert producer.stats().instances == 1


async def test_a_fenced_producer_takes_the_id_back_only_with_its_next_transaction(
    make, topic, committed
):
    async with make() as old, contextlib.AsyncExitStack() as later:
        async with old.transaction():
            await old.send(topic, b"old 1")
        new = None
        with pytest.raises((ProducerFenced, OutcomeUnknown)) as caught:
            async with old.transaction():
                await old.send_and_wait(topic, b"old 2")
                new = await later.enter_async_context(make())
                async with new.transaction():
                    await new.send(topic, b"new 1")
                await old.send_and_wait(topic, b"old 3")
        assert isinstance(caught.value, ProducerFenced)
        await asyncio.sleep(0.5)
        assert old.stats().instances == 1  # it does not take the id back on its own
        async with new.transaction():
            await new.send(topic, b"new 2")
        async with old.transaction():
            await old.send(topic, b"old 4")
        assert old.stats().instances == 2
    assert await committed() == [b"new 1", b"new 2", b"old 1", b"old 4"]


async def test_two_producers_that_fence_each_other_stop(make, topic):
    async with make() as one, make() as other:
        refused = 0
        for _ in range(6):
            with pytest.raises((ProducerFenced, OutcomeUnknown)):
                async with one.transaction():
                    async with asyncio.timeout(10), other.transaction():
                        await other.send_and_wait(topic, b"x")
                    await one.send_and_wait(topic, b"y")
            refused += 1
        assert refused == 6
        assert one.stats().instances <= 4


async def test_a_commit_without_an_answer_has_an_unknown_outcome_and_the_next_one_works(
    make, proxy, topic, committed
):
    policy = RetryPolicy(deadline=1.5, response_timeout=1.0)
    async with make(policy=policy) as producer:
        await producer.health.until_up(10)
        await _begun(producer, topic)
        lost = proxy.drop_reply("EndTxn")
        with pytest.raises(OutcomeUnknown) as caught:
            async with producer.transaction():
                await producer.send(topic, b"maybe")
        assert caught.value.operation == "commit"
        assert lost.struck
        await _begun(producer, topic)
        assert producer.stats().instances == 2
        assert await committed() == [b"begun", b"begun", b"maybe"]


async def test_a_transaction_is_aborted_when_its_driver_ends(make, topic, committed, proxy):
    async with make() as producer:
        with pytest.raises(DependencyUnavailable):
            async with producer.transaction():
                await producer.send_and_wait(topic, b"lost")
                core = producer._core
                core.supervisor.driver_failed(core.supervisor.driver, RuntimeError("broken"))
                while core.supervisor.generation < 2:  # noqa: ASYNC110 (counters can only be polled)
                    await asyncio.sleep(0.01)
                await producer.send(topic, b"refused")
        await _begun(producer, topic)
        assert await committed() == [b"begun"]


async def test_one_transaction_is_open_at_a_time_and_nothing_is_sent_outside(make, topic, proxy):
    async with make() as producer:
        with pytest.raises(IllegalOperation, match="only in transactions"):
            await producer.send(topic, b"x")
        async with producer.transaction() as transaction:
            with pytest.raises(IllegalOperation, match="still open"):
                async with producer.transaction():
                    pass
        with pytest.raises(IllegalOperation):
            await transaction.send_offsets({TopicPartition(topic, 0): 1}, "group")
        with pytest.raises(IllegalOperation, match="used once"):
            async with transaction:
                pass
    async with ResilientKafkaProducer(proxy.bootstrap_servers) as plain:
        with pytest.raises(ConfigurationError, match="transactional_id"):
            async with plain.transaction():
                pass


async def test_closing_aborts_the_open_transaction(make, topic, committed):
    producer = make()
    async with producer:
        transaction = producer.transaction()
        await transaction.__aenter__()
        await producer.send_and_wait(topic, b"never committed")
    async with make() as other, other.transaction():
        await other.send(topic, b"other")
    assert await committed() == [b"other"]


@pytest.mark.parametrize("ended_by", ["closing", "replacement"])
@pytest.mark.parametrize("request_name", ["EndTxn", "AddOffsetsToTxn"])
async def test_a_call_that_waits_for_an_answer_when_its_driver_ends_fails_and_is_not_cancelled(
    make, proxy, topic, ended_by, request_name
):
    producer = make(policy=RetryPolicy(deadline=30.0))
    async with producer:
        await _begun(producer, topic)
        lost = proxy.drop_reply(request_name)

        async def use():
            async with producer.transaction() as transaction:
                await producer.send_and_wait(topic, b"x")
                if request_name != "EndTxn":
                    await transaction.send_offsets({TopicPartition(topic, 0): 1}, "group")

        using = asyncio.create_task(use())
        async with asyncio.timeout(10):
            while not lost.struck:  # noqa: ASYNC110 (counters can only be polled)
                await asyncio.sleep(0.01)
        if ended_by == "closing":
            await producer.aclose(0.2)
        else:
            supervisor = producer._core.supervisor
            supervisor.driver_failed(supervisor.driver, RuntimeError("broken"))
        async with asyncio.timeout(10):
            await asyncio.wait([using])
        assert not using.cancelled()
        wanted = OutcomeUnknown if request_name == "EndTxn" else DependencyUnavailable
        assert isinstance(using.exception(), wanted)
        if ended_by == "closing":
            return
        await _begun(producer, topic)


async def _begun(producer, topic):
    """Commit one record, however long the driver takes to start."""
    async with asyncio.timeout(20):
        while True:
            try:
                async with producer.transaction():
                    await producer.send_and_wait(topic, b"begun")
            except (DeadlineExceeded, DependencyUnavailable):
                continue
            else:
                return
