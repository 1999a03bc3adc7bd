"""What the producer leans on inside aiokafka; fails when a new aiokafka changes it."""

import asyncio
import inspect

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder, MessageBatch
from aiokafka.structs import RecordMetadata

from resilient_io.kafka.producer.sequence import (
    attempts_of,
    is_idempotent,
    is_in_transaction,
    newest_batch,
    take_back,
    told_count,
    writer_of,
)


def ended(producer):
    producer._closed = True  # it was never started, so there is nothing to stop


async def test_a_batch_is_queued_where_we_look_for_it_and_counts_its_attempts():
    producer = AIOKafkaProducer(enable_idempotence=True)
    tp = TopicPartition("topic", 0)
    assert newest_batch(producer, tp) is None
    assert attempts_of(None) is None
    accumulator = producer._message_accumulator
    await accumulator.add_batch(producer.create_batch(), tp, 1)
    batch = newest_batch(producer, tp)
    assert isinstance(batch, MessageBatch)
    assert attempts_of(batch) == 0
    batch.drain_ready()
    assert attempts_of(batch) == 1
    assert "retry_count" in vars(MessageBatch)
    batch.future.cancel()
    ended(producer)


async def test_numbers_are_taken_back():
    producer = AIOKafkaProducer(enable_idempotence=True)
    plain = AIOKafkaProducer()
    tp = TopicPartition("topic", 0)
    assert is_idempotent(producer)
    assert not is_idempotent(plain)
    producer._txn_manager.increment_sequence_number(tp, 10)
    take_back(producer, tp, 3)
    assert producer._txn_manager.sequence_number(tp) == 7
    take_back(plain, tp, 3)
    ended(producer)
    ended(plain)


def test_a_batch_takes_records_as_we_give_them():
    batch = BatchBuilder(1000, 0)
    taken = batch.append(timestamp=None, key=None, value=b"x", headers=None)
    assert taken.timestamp > 1_500_000_000_000
    assert batch.append(timestamp=5, key=b"k", value=None, headers=[("a", None)]).timestamp == 5
    assert batch.append(timestamp=5, key=b"k", value=b"v" * 1000, headers=[]) is None
    assert batch.record_count() == 2
    large = BatchBuilder(10, 0)
    assert large.append(timestamp=5, key=None, value=b"v" * 1000, headers=[]) is not None


def test_a_record_is_written_past_the_batchs_own_method_as_by_it():
    def written(fill):
        batch = BatchBuilder(1000, 0)
        fill(batch)
        return batch.record_count(), batch.size(), bytes(batch._build())

    def ours(batch):
        write = writer_of(batch)
        assert write(0, 5, b"k", b"v", [("a", b"b")]) is not None
        assert write(1, 6, None, b"w", []) is not None
        assert write(2, 7, None, b"v" * 1000, []) is None
        told_count(batch, 2)

    def its(batch):
        batch.append(timestamp=5, key=b"k", value=b"v", headers=[("a", b"b")])
        batch.append(timestamp=6, key=None, value=b"w", headers=None)
        batch.append(timestamp=7, key=None, value=b"v" * 1000, headers=None)

    assert written(ours) == written(its)


def test_the_metadata_of_a_record_have_the_fields_that_we_fill():
    assert RecordMetadata._fields == (
        "topic",
        "partition",
        "topic_partition",
        "offset",
        "timestamp",
        "timestamp_type",
        "log_start_offset",
    )


def test_handing_over_a_batch_waits_only_for_metadata_and_its_turn():
    source = inspect.getsource(AIOKafkaProducer.send_batch)
    assert source.count("await ") == 2
    assert "asyncio" in dir(inspect.getmodule(AIOKafkaProducer))
    assert asyncio.iscoroutinefunction(AIOKafkaProducer.send_batch)


async def test_whether_a_transaction_is_open_is_told():
    producer = AIOKafkaProducer(transactional_id="id")
    manager = producer._txn_manager
    assert not is_in_transaction(producer)
    manager.set_pid_and_epoch(1, 1)
    manager.begin_transaction()
    assert is_in_transaction(producer)
    manager.committing_transaction()
    assert not is_in_transaction(producer)
    ended(producer)
