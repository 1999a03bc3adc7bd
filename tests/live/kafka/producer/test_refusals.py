"""Error answers, and missing answers, to single batches."""

import asyncio

import pytest
import pytest_asyncio
from aiokafka.errors import (
    MessageSizeTooLargeError,
    ProducerFenced,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from resilient_io import Overloaded, Progress, RetryPolicy, deadline
from resilient_io.kafka.errors import (
    KafkaAuthenticationFailed,
    KafkaDeadlineExceeded,
    KafkaOutcomeUnknown,
    KafkaUnavailable,
)
from resilient_io.kafka.producer import DeliverySettings, ResilientKafkaProducer
from resilient_io.testing import KafkaServer, produce_error

OUT_OF_ORDER, UNKNOWN_PRODUCER, STALE_EPOCH, TOO_LARGE = 45, 59, 47, 10
NOT_ALLOWED, NOT_ENOUGH_REPLICAS, UNKNOWN, CORRUPT = 29, 19, -1, 2


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


@pytest_asyncio.fixture
async def producer(proxy, topic):
    async with ResilientKafkaProducer(proxy.bootstrap_servers) as producer:
        await producer.send_and_wait(topic, b"first", partition=0)
        yield producer


def values(records, partition=0):
    return [record.value for record in records if record.partition == partition]


@pytest.mark.parametrize("code", [OUT_OF_ORDER, UNKNOWN_PRODUCER, STALE_EPOCH])
async def test_a_broken_driver_is_replaced_and_the_callers_get_the_error(
    code, producer, proxy, topic, server, read_all
):
    proxy.answer("Produce", produce_error(code))
    with pytest.raises((KafkaUnavailable, ProducerFenced)) as caught:
        await producer.send_and_wait(topic, b"lost", partition=0)
    if code != STALE_EPOCH:
        assert caught.value.progress is Progress.REFUSED
    for n in range(3):
        await producer.send_and_wait(topic, b"%d" % n, partition=0)
    assert producer.stats().instances == 2
    assert values(await read_all(server, topic)) == [b"first", b"0", b"1", b"2"]


async def test_waiting_records_move_to_the_next_driver_in_order(
    producer, proxy, topic, server, read_all
):
    held = proxy.hold("Produce")
    in_flight = await producer.send(topic, b"in flight", partition=1)
    await held.happened()
    waiting = [await producer.send(topic, b"%d" % n, partition=1) for n in range(50)]
    proxy.answer("Produce", produce_error(OUT_OF_ORDER))
    held.release()
    await in_flight
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, KafkaUnavailable) for outcome in outcomes)
    more = [await producer.send(topic, b"more %d" % n, partition=1) for n in range(50)]
    assert [(await future).offset for future in more] == list(range(1, 51))
    assert values(await read_all(server, topic), 1) == [
        b"in flight",
        *(b"more %d" % n for n in range(50)),
    ]


@pytest.mark.parametrize(
    ("code", "error"),
    [(NOT_ALLOWED, TopicAuthorizationFailedError), (TOO_LARGE, MessageSizeTooLargeError)],
)
async def test_a_permanently_refused_batch_fails_alone_and_the_numbering_continues(
    code, error, producer, proxy, topic, server, read_all
):
    proxy.answer("Produce", produce_error(code))
    with pytest.raises(error) as caught:
        await producer.send_and_wait(topic, b"refused", partition=0)
    assert any("permanently" in note for note in caught.value.__notes__)
    for n in range(3):
        await producer.send_and_wait(topic, b"%d" % n, partition=0)
    assert producer.stats().instances == 1
    assert values(await read_all(server, topic)) == [b"first", b"0", b"1", b"2"]


async def test_a_temporary_refusal_is_retried_silently(producer, proxy, topic):
    proxy.answer("Produce", produce_error(NOT_ENOUGH_REPLICAS), times=2)
    assert (await producer.send_and_wait(topic, b"x", partition=0)).offset == 1


async def test_the_outcome_after_an_unknown_error_is_unknown_and_the_order_is_kept(
    producer, proxy, topic, server, read_all
):
    proxy.answer("Produce", produce_error(UNKNOWN))
    with pytest.raises(KafkaOutcomeUnknown):
        await producer.send_and_wait(topic, b"unknown", partition=0)
    for n in range(3):
        await producer.send_and_wait(topic, b"%d" % n, partition=0)
    assert producer.stats().instances == 2
    assert values(await read_all(server, topic)) == [b"first", b"0", b"1", b"2"]


async def test_a_request_whose_answer_was_lost_is_repeated_and_the_record_written_once(
    proxy, topic, server, read_all
):
    async with ResilientKafkaProducer(proxy.bootstrap_servers, request_timeout_ms=500) as producer:
        await producer.send_and_wait(topic, b"first", partition=0)
        lost = proxy.drop_reply("Produce")
        assert (await producer.send_and_wait(topic, b"once", partition=0)).offset == 1
        assert lost.struck
    assert values(await read_all(server, topic)) == [b"first", b"once"]


async def test_a_batch_without_an_answer_blocks_only_its_partition(
    producer, proxy, topic, server, read_all
):
    held = proxy.hold("Produce")
    with pytest.raises(KafkaOutcomeUnknown) as unknown, deadline(0.3):
        await producer.send_and_wait(topic, b"held", partition=0)
    assert unknown.value.progress is Progress.MAYBE_APPLIED
    with pytest.raises(KafkaDeadlineExceeded) as late, deadline(0.3):
        await producer.send_and_wait(topic, b"behind", partition=0)
    assert late.value.progress is Progress.NOT_SENT
    assert producer.stats().instances == 1
    held.release()
    assert (await producer.send_and_wait(topic, b"next", partition=0)).offset == 2
    assert (await producer.send_and_wait(topic, b"next", partition=1)).offset == 0
    assert values(await read_all(server, topic)) == [b"first", b"held", b"next"]


async def test_a_cancelled_record_that_was_not_sent_yet_is_not_sent(
    producer, proxy, topic, server, read_all
):
    held = proxy.hold("Produce")
    sent = await producer.send(topic, b"sent", partition=0)
    await held.happened()
    task = asyncio.create_task(producer.send_and_wait(topic, b"cancelled", partition=0))
    future = await producer.send(topic, b"cancelled, too", partition=0)
    kept = await producer.send(topic, b"kept", partition=0)
    await asyncio.sleep(0)
    task.cancel()
    future.cancel()
    held.release()
    assert (await sent).offset == 1
    assert (await kept).offset == 2
    with pytest.raises(asyncio.CancelledError):
        await task
    assert values(await read_all(server, topic)) == [b"first", b"sent", b"kept"]
    assert producer.stats().buffered == 0


async def test_the_delivery_timeout_fails_waiting_records_and_those_in_flight(proxy, topic):
    settings = DeliverySettings(delivery_timeout=0.5)
    async with ResilientKafkaProducer(proxy.bootstrap_servers, settings=settings) as producer:
        await producer.send_and_wait(topic, b"first", partition=0)
        held = proxy.hold("Produce")
        in_flight = await producer.send(topic, b"in flight", partition=0)
        await held.happened()
        waiting = await producer.send(topic, b"waits", partition=0)
        outcomes = await asyncio.gather(in_flight, waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [
            KafkaOutcomeUnknown,
            KafkaDeadlineExceeded,
        ]
        held.release()
        assert producer.stats().ended == {"KafkaOutcomeUnknown": 1, "KafkaDeadlineExceeded": 1}
        await producer.flush()


async def test_a_batch_that_is_too_large_for_its_topic_is_split_and_a_record_fails_alone(
    server, proxy, name, read_all
):
    await server.create_topic(name, config={"max.message.bytes": "2000"})
    async with ResilientKafkaProducer(proxy.bootstrap_servers) as producer:
        small = [await producer.send(name, b"%03d" % n + b"." * 97) for n in range(60)]
        large = await producer.send(name, b"L" * 5000)
        more = [await producer.send(name, b"%03d" % n + b"." * 97) for n in range(60, 80)]
        await producer.flush()
        assert isinstance(large.exception(), MessageSizeTooLargeError)
        assert [future.result().offset for future in small + more] == list(range(80))
        assert producer.stats().instances == 1
    assert [int(value[:3]) for value in values(await read_all(server, name))] == list(range(80))


@pytest.fixture
async def compacted(server, name):
    """Return a topic that rejects records without a key."""
    await server.create_topic(name, config={"cleanup.policy": "compact"})
    return name


async def test_a_record_that_the_broker_rejects_fails_alone(server, proxy, compacted, read_all):
    async with ResilientKafkaProducer(proxy.bootstrap_servers) as producer:
        futures = [
            await producer.send(compacted, b"%d" % n, key=None if n == 23 else b"k")
            for n in range(60)
        ]
        await producer.flush()
        assert [n for n, future in enumerate(futures) if future.exception()] == [23]
        assert type(futures[23].exception()).__name__ == "InvalidRecordError"
        assert producer.stats().instances == 1
        # The search is over.
        later = [await producer.send(compacted, b"%d" % n, key=b"k") for n in range(60, 100)]
        await producer.flush()
        assert [future.result().offset for future in later] == list(range(59, 99))
    expected = [n for n in range(100) if n != 23]
    assert [int(value) for value in values(await read_all(server, compacted))] == expected


async def test_a_topic_that_does_not_exist_is_waited_for_within_the_deadline(name):
    async with (
        KafkaServer(options={"auto.create.topics.enable": False}) as server,
        ResilientKafkaProducer(server.bootstrap_servers) as producer,
    ):
        loop = asyncio.get_running_loop()
        began = loop.time()
        with deadline(1.0), pytest.raises(UnknownTopicOrPartitionError, match=name):
            await producer.send(name, b"x")
        assert 0.9 < loop.time() - began < 4.0
        early = [asyncio.create_task(producer.send_and_wait(name, b"x")) for _ in range(3)]
        await asyncio.sleep(1.5)
        await server.create_topic(name)
        assert sorted([sent.offset for sent in await asyncio.gather(*early)]) == [0, 1, 2]


async def test_a_topic_that_the_broker_creates_is_found(producer, name):
    assert (await producer.send_and_wait(f"{name}-new", b"x")).offset == 0


async def test_a_record_larger_than_max_request_size_is_rejected_immediately(producer, topic):
    with pytest.raises(MessageSizeTooLargeError, match="max_request_size"):
        await producer.send(topic, b"x" * (1024 * 1024 + 1))
    with pytest.raises(UnknownTopicOrPartitionError, match="no partition 7"):
        await producer.send(topic, b"x", partition=7)


async def test_the_buffer_limits_the_records_held_while_the_broker_does_not_answer(proxy, topic):
    settings = DeliverySettings(buffer_bytes=64 * 1024)
    policy = RetryPolicy(deadline=0.5, response_timeout=0.4, connect_timeout=0.4)
    async with ResilientKafkaProducer(
        proxy.bootstrap_servers, settings=settings, policy=policy
    ) as producer:
        with deadline(5.0):
            await producer.send(topic, b"first", partition=0)
            await producer.flush()
        held = proxy.hold("Produce", times=None)
        sent = []
        with pytest.raises(Overloaded) as caught:
            while True:
                sent += [await producer.send(topic, b"x" * 1000, partition=0)]
        assert 40 <= len(sent) <= 60
        assert caught.value.progress is Progress.NOT_SENT
        held.remove()
        held.release()
        await asyncio.gather(*sent)
        await producer.send_and_wait(topic, b"again", partition=0)
        assert producer.stats().buffered == 0


async def test_missing_permissions_and_wrong_credentials_are_reported(name):
    users = {"admin": "admin-secret", "alice": "alice-secret"}
    async with KafkaServer(users=users, superusers=["admin"]) as server:
        await server.create_topic(name)

        def producer_of(user, password, **options):
            return ResilientKafkaProducer(
                server.bootstrap_servers,
                security_protocol="SASL_PLAINTEXT",
                sasl_plain_username=user,
                sasl_plain_password=password,
                **options,
            )

        async with producer_of("admin", "admin-secret") as producer:
            assert (await producer.send_and_wait(name, b"x")).offset == 0
        async with producer_of("alice", "alice-secret", enable_idempotence=False) as producer:
            began = asyncio.get_running_loop().time()
            with pytest.raises((TopicAuthorizationFailedError, UnknownTopicOrPartitionError)):
                await producer.send_and_wait(name, b"x")
            assert asyncio.get_running_loop().time() - began < 4.0
        async with producer_of("alice", "wrong-secret") as producer:
            with pytest.raises(KafkaAuthenticationFailed) as caught:
                await producer.send_and_wait(name, b"x")
            assert caught.value.progress is Progress.NOT_SENT
            assert "wrong-secret" not in str(caught.value)
