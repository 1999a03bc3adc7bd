"""Deliveries to a real broker: complete, in the right partition, in order."""

import asyncio
import json
from collections import Counter

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from resilient_io import Progress
from resilient_io.errors import Closed
from resilient_io.kafka.producer import (
    DeliverySettings,
    OutgoingRecord,
    ResilientKafkaProducer,
)


@pytest_asyncio.fixture
async def topic(shared_kafka, name):
    await shared_kafka.create_topic(name, partitions=4)
    return name


@pytest.fixture
def make(shared_kafka):
    def make(**options):
        return ResilientKafkaProducer(shared_kafka.bootstrap_servers, **options)

    return make


async def test_keys_go_to_the_partitions_of_aiokafka_and_offsets_are_correct(
    make, topic, shared_kafka, read_all
):
    keys = [b"key %d" % n for n in range(50)]
    async with make() as producer:
        futures = [await producer.send(topic, key, key=key) for key in keys]
        found = [await future for future in futures]
    theirs = AIOKafkaProducer(bootstrap_servers=shared_kafka.bootstrap_servers)
    await theirs.start()
    for key, metadata in zip(keys, found, strict=True):
        assert (await theirs.send_and_wait(topic, b"", key=key)).partition == metadata.partition
    await theirs.stop()
    places = {r.value: (r.partition, r.offset) for r in await read_all(shared_kafka, topic)}
    assert [places[key] for key in keys] == [(m.partition, m.offset) for m in found]


@pytest.mark.parametrize("compression", [None, "gzip"])
async def test_headers_timestamps_and_tombstones_arrive(
    compression, make, topic, shared_kafka, read_all
):
    async with make(compression_type=compression) as producer:
        metadata = await producer.send_and_wait(
            topic, b"v", b"k", 2, 1_600_000_000_000, [("a", b"1"), ("a", None)]
        )
        assert (metadata.partition, metadata.timestamp) == (2, 1_600_000_000_000)
        await producer.send_and_wait(topic, key=bytearray(b"gone"), partition=3)
    full, gone = sorted(await read_all(shared_kafka, topic), key=lambda r: r.partition)
    assert (full.key, full.value, full.timestamp) == (b"k", b"v", 1_600_000_000_000)
    assert list(full.headers) == [("a", b"1"), ("a", None)]
    assert (gone.key, gone.value) == (b"gone", None)
    assert abs(gone.timestamp - full.timestamp) > 1e11  # its timestamp is the time when it was sent


async def test_records_sent_together_keep_their_order_in_each_partition(
    make, topic, shared_kafka, read_all
):
    async with make(max_batch_size=2000) as producer:
        for n in range(2000):
            await producer.send(topic, b"%d" % n, key=b"%d" % (n % 7))
        await producer.flush()
        assert producer.stats().batches > 8
    seen = Counter()
    for record in await read_all(shared_kafka, topic):
        assert int(record.value) == seen[record.key] * 7 + int(record.key)
        seen[record.key] += 1
    assert sum(seen.values()) == 2000


async def test_records_without_a_key_share_batches_and_use_all_partitions(
    make, topic, shared_kafka, read_all
):
    async with make() as producer:
        for _ in range(40):
            await asyncio.gather(*[producer.send_and_wait(topic, b"x") for _ in range(20)])
        assert producer.stats().batches < 300
    used = Counter(record.partition for record in await read_all(shared_kafka, topic))
    assert len(used) == 4


async def test_lingering_collects_records_until_a_flush(make, topic):
    async with make(settings=DeliverySettings(linger=5.0)) as producer:
        began = asyncio.get_running_loop().time()
        futures = []
        for n in range(20):
            futures.append(await producer.send(topic, b"%d" % n, partition=0))
            await asyncio.sleep(0.005)
        await producer.flush()
        assert asyncio.get_running_loop().time() - began < 4.0
        assert all(future.done() for future in futures)
        assert producer.stats().batches == 1


async def test_the_partitioner_and_serializers_run_in_the_caller(
    make, topic, shared_kafka, read_all
):
    def dumps(value):
        return json.dumps(value).encode()

    async with make(
        value_serializer=dumps,
        key_serializer=str.encode,
        partitioner=lambda key, everyone, available: everyone[-1] if key == b"last" else 0,
    ) as producer:
        assert (await producer.send_and_wait(topic, {"a": 1}, key="last")).partition == 3
        assert (await producer.send_and_wait(topic, [1])).partition == 0
        with pytest.raises(TypeError, match="not JSON serializable"):
            await producer.send(topic, object())
        report = await producer.send_many(topic, [("last", 1), object(), ("other", 2)])
        assert report.delivered == 2
        assert [failure.position for failure in report.failures] == [1]
    values = sorted(r.value for r in await read_all(shared_kafka, topic))
    assert values == [b"1", b"2", b"[1]", b'{"a": 1}']


async def test_send_many_reports_by_partition_and_position(make, topic, shared_kafka, read_all):
    records = [
        *(b"%d" % n for n in range(3000)),
        (b"k", b"pair"),
        OutgoingRecord(b"own", partition=1, headers=[("h", b"1")], timestamp_ms=5),
        OutgoingRecord(b"nowhere", partition=9),
        "no bytes",
        b"x" * (2 * 1024 * 1024),
    ]
    async with make() as producer:
        report = await producer.send_many(topic, iter(records))
    assert report.taken == len(records)
    assert report.delivered == 3002
    assert report.complete
    assert not report.ok
    assert [failure.position for failure in report.failures] == [3002, 3003, 3004]
    assert {failure.progress for failure in report.failures} == {Progress.NOT_SENT}
    with pytest.raises(Exception, match="no partition 9") as caught:
        report.check()
    assert caught.value.__notes__ == ["3 of 3005 records failed, this one first"]
    found = await read_all(shared_kafka, topic)
    counts = Counter(record.partition for record in found)
    assert {partition: r.count for partition, r in report.offsets.items()} == counts
    for partition, offsets in report.offsets.items():
        assert (offsets.first, offsets.last) == (0, counts[partition] - 1)
    assert Counter(r.value for r in found) == Counter([*records[:3000], b"pair", b"own"])


async def test_send_many_does_not_wait_for_a_slow_source(make, topic):
    delivered = []

    async def source(producer):
        for n in range(3):
            yield b"%d" % n
            async with asyncio.timeout(5):
                while producer.stats().delivered <= n:  # noqa: ASYNC110 (counters can only be polled)
                    await asyncio.sleep(0.005)
            delivered.append(n)

    async with make() as producer:
        report = await producer.send_many(topic, source(producer))
    assert report.ok
    assert delivered == [0, 1, 2]


async def test_send_many_raises_the_error_of_its_source_and_drops_waiting_records(make, topic):
    def source():
        yield from [b"x"] * 10
        raise LookupError

    async with make() as producer:
        with pytest.raises(LookupError):
            await producer.send_many(topic, source())
        await producer.flush()
        assert producer.stats().buffered == 0


async def test_acks_of_zero_and_one_work_without_idempotence(make, topic, shared_kafka, read_all):
    async with make(acks=1) as producer:
        assert (await producer.send_and_wait(topic, b"1", partition=1)).offset == 0
    async with make(acks=0) as producer, asyncio.timeout(30):
        # Kafka does not confirm it, and a broker that is new to the partition drops it.
        while b"0" not in [record.value for record in await read_all(shared_kafka, topic)]:
            assert (await producer.send_and_wait(topic, b"0", partition=0)).offset == -1


async def test_a_producer_works_without_async_with_and_again_after_closing(make, topic):
    producer = make()
    await producer.send(topic, b"x")
    report = await producer.aclose()
    assert report.ok
    assert report.delivered == 1
    for call in (producer.send, producer.send_and_wait, producer.flush):
        with pytest.raises(Closed):
            await call(*([] if call == producer.flush else [topic, b"x"]))
    with pytest.raises(Closed):
        await producer.send_many(topic, [b"x"])
    async with producer:
        assert (await producer.send_and_wait(topic, b"x")).offset >= 0
