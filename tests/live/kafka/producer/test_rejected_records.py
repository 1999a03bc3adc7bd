"""A record that the broker rejects fails alone, however it was sent; a transaction is aborted."""

import asyncio

import pytest
from aiokafka.errors import InvalidTimestampError, MessageSizeTooLargeError

from resilient_io import DependencyUnavailable
from resilient_io.kafka.error_codes import ADDED
from resilient_io.kafka.producer import OutgoingRecord, ResilientKafkaProducer

COUNT = 60
BAD = {7, 41}
INVALID_RECORD = ADDED[87]


class Kind:
    """A kind of records that a topic rejects."""

    def __init__(self, config, error, **fields):
        self.config = config
        self.error = error
        self.fields = fields

    def record(self, number, *, good):
        fields = {"value": b"%d" % number, "key": b"k", "partition": 0}
        return fields if good else fields | self.fields


KINDS = {
    "no key": Kind({"cleanup.policy": "compact"}, INVALID_RECORD, key=None),
    "old": Kind(
        {"message.timestamp.before.max.ms": "60000"}, InvalidTimestampError, timestamp_ms=1000
    ),
    "too large": Kind({"max.message.bytes": "3000"}, MessageSizeTooLargeError, value=b"L" * 5000),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture
def create(proxied_kafka, name):
    """Create a topic that rejects records of a kind: `await create(kind)`."""

    async def create(kind):
        await proxied_kafka.create_topic(name, config=kind.config)
        return name

    return create


@pytest.fixture
def producer_of(kafka_proxy):
    def create(**options):
        return ResilientKafkaProducer(kafka_proxy.bootstrap_servers, **options)

    return create


def records(kind, numbers=range(COUNT), bad=BAD):
    return [kind.record(number, good=number not in bad) for number in numbers]


async def check_content(server, topic, read_all, expected, isolation="read_uncommitted"):
    found = [int(record.value) for record in await read_all(server, topic, isolation)]
    assert found == expected


GOOD = [number for number in range(COUNT) if number not in BAD]


@each_kind
@pytest.mark.parametrize("wait", [False, True], ids=["send", "send_and_wait"])
async def test_rejected_record_fails_alone(
    proxied_kafka, producer_of, create, read_all, kind, wait
):
    topic = await create(kind)
    async with producer_of() as producer:
        if wait:
            calls = [producer.send_and_wait(topic, **fields) for fields in records(kind)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        else:
            futures = [await producer.send(topic, **fields) for fields in records(kind)]
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
        failed = {n: error for n, error in enumerate(outcomes) if isinstance(error, Exception)}
        assert failed.keys() == BAD
        assert {type(error) for error in failed.values()} == {kind.error}
        assert all("permanently" in error.__notes__[0] for error in failed.values())
        assert producer.stats().instances == 1
    await check_content(proxied_kafka, topic, read_all, GOOD)


@each_kind
async def test_rejected_record_of_send_many_fails_alone(
    proxied_kafka, producer_of, create, read_all, kind
):
    topic = await create(kind)
    async with producer_of() as producer:
        many = [OutgoingRecord(**fields) for fields in records(kind, range(500), {7, 300})]
        report = await producer.send_many(topic, many)
        assert report.delivered == 498
        assert sorted(failure.position for failure in report.failures) == [7, 300]
        assert {type(failure.error) for failure in report.failures} == {kind.error}
    expected = [number for number in range(500) if number not in {7, 300}]
    await check_content(proxied_kafka, topic, read_all, expected)


@each_kind
@pytest.mark.parametrize("bulk", [False, True], ids=["send", "send_many"])
async def test_rejected_record_aborts_its_transaction_and_is_the_only_one_that_is_blamed(
    proxied_kafka, producer_of, create, read_all, kind, bulk
):
    topic = await create(kind)
    sent = records(kind, bad={41})
    async with producer_of(transactional_id=topic) as producer:
        with pytest.raises(kind.error) as caught:
            async with producer.transaction():
                if bulk:
                    many = [OutgoingRecord(**fields) for fields in sent]
                    report = await producer.send_many(topic, many)
                    outcomes = {failure.position: failure.error for failure in report.failures}
                else:
                    futures = [await producer.send(topic, **fields) for fields in sent]
        if not bulk:
            outcomes = {n: future.exception() for n, future in enumerate(futures)}
        blamed = [n for n, error in outcomes.items() if isinstance(error, kind.error)]
        assert blamed == [41]
        # What was not sent yet when the transaction was aborted.
        others = {type(error) for n, error in outcomes.items() if error and n != 41}
        assert all(issubclass(other, DependencyUnavailable) for other in others)
        assert any("none of it becomes visible" in note for note in caught.value.__notes__)

        async with producer.transaction():
            await producer.send_many(
                topic, [OutgoingRecord(**fields) for fields in records(kind, bad=())]
            )
        assert producer.stats().instances == 1
    expected = [*range(COUNT)]
    await check_content(proxied_kafka, topic, read_all, expected, "read_committed")


@each_kind
async def test_rejected_record_can_be_caught_and_the_transaction_is_still_aborted(
    proxied_kafka, producer_of, create, read_all, kind
):
    topic = await create(kind)
    async with producer_of(transactional_id=topic) as producer:
        with pytest.raises(kind.error):
            async with producer.transaction():
                await producer.send_and_wait(topic, **kind.record(0, good=True))
                with pytest.raises(kind.error):
                    await producer.send_and_wait(topic, **kind.record(1, good=False))
                with pytest.raises(kind.error):
                    await producer.send_and_wait(topic, **kind.record(2, good=True))
        async with producer.transaction():
            await producer.send_and_wait(topic, **kind.record(3, good=True))
    await check_content(proxied_kafka, topic, read_all, [3], "read_committed")
