"""The private attributes of aiokafka that the producer relies on; fails when they change."""

import asyncio
import inspect

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder, MessageBatch
from aiokafka.producer.sender import AddPartitionsToTxnHandler, Sender
from aiokafka.structs import RecordMetadata

from resilient_io.kafka.producer.batch import (
    attempts_of,
    is_idempotent,
    newest_driver_batch,
    record_writer,
    roll_back_sequence,
    set_record_count,
)
from resilient_io.kafka.producer.transactions import correct_transactions, is_in_transaction


def mark_closed(producer):
    producer._closed = True  # it was never started, so there is nothing to stop


async def test_a_batch_is_found_in_the_queue_and_counts_its_attempts():
    producer = AIOKafkaProducer(enable_idempotence=True)
    tp = TopicPartition("topic", 0)
    assert newest_driver_batch(producer, tp) is None
    assert attempts_of(None) is None
    accumulator = producer._message_accumulator
    await accumulator.add_batch(producer.create_batch(), tp, 1)
    batch = newest_driver_batch(producer, tp)
    assert isinstance(batch, MessageBatch)
    assert attempts_of(batch) == 0
    batch.drain_ready()
    assert attempts_of(batch) == 1
    assert "retry_count" in vars(MessageBatch)
    batch.future.cancel()
    mark_closed(producer)


async def test_sequence_numbers_are_rolled_back():
    producer = AIOKafkaProducer(enable_idempotence=True)
    plain = AIOKafkaProducer()
    tp = TopicPartition("topic", 0)
    assert is_idempotent(producer)
    assert not is_idempotent(plain)
    producer._txn_manager.increment_sequence_number(tp, 10)
    roll_back_sequence(producer, tp, 3)
    assert producer._txn_manager.sequence_number(tp) == 7
    roll_back_sequence(plain, tp, 3)
    mark_closed(producer)
    mark_closed(plain)


def test_a_batch_accepts_records():
    batch = BatchBuilder(1000, 0)
    taken = batch.append(timestamp=None, key=None, value=b"x", headers=None)
    assert taken.timestamp > 1_500_000_000_000
    assert batch.append(timestamp=5, key=b"k", value=None, headers=[("a", None)]).timestamp == 5
    assert batch.append(timestamp=5, key=b"k", value=b"v" * 1000, headers=[]) is None
    assert batch.record_count() == 2
    large = BatchBuilder(10, 0)
    assert large.append(timestamp=5, key=None, value=b"v" * 1000, headers=[]) is not None


def test_the_record_writer_writes_the_same_bytes_as_append():
    def written(fill):
        batch = BatchBuilder(1000, 0)
        fill(batch)
        return batch.record_count(), batch.size(), bytes(batch._build())

    def by_writer(batch):
        write = record_writer(batch)
        assert write(0, 5, b"k", b"v", [("a", b"b")]) is not None
        assert write(1, 6, None, b"w", []) is not None
        assert write(2, 7, None, b"v" * 1000, []) is None
        set_record_count(batch, 2)

    def by_append(batch):
        batch.append(timestamp=5, key=b"k", value=b"v", headers=[("a", b"b")])
        batch.append(timestamp=6, key=None, value=b"w", headers=None)
        batch.append(timestamp=7, key=None, value=b"v" * 1000, headers=None)

    assert written(by_writer) == written(by_append)


def test_record_metadata_has_the_fields_that_the_producer_fills():
    assert RecordMetadata._fields == (
        "topic",
        "partition",
        "topic_partition",
        "offset",
        "timestamp",
        "timestamp_type",
        "log_start_offset",
    )


def test_send_batch_waits_only_for_metadata_and_the_accumulator():
    source = inspect.getsource(AIOKafkaProducer.send_batch)
    assert source.count("await ") == 2
    assert "asyncio" in dir(inspect.getmodule(AIOKafkaProducer))
    assert asyncio.iscoroutinefunction(AIOKafkaProducer.send_batch)


async def test_an_open_transaction_is_recognized():
    producer = AIOKafkaProducer(transactional_id="id")
    manager = producer._txn_manager
    assert not is_in_transaction(producer)
    manager.set_pid_and_epoch(1, 1)
    manager.begin_transaction()
    assert is_in_transaction(producer)
    manager.committing_transaction()
    assert not is_in_transaction(producer)
    mark_closed(producer)


async def test_refused_transaction_is_not_empty_when_it_is_aborted():
    producer = AIOKafkaProducer(transactional_id="id")
    correct_transactions(producer)
    manager = producer._txn_manager
    manager.set_pid_and_epoch(1, 1)
    for group in (None, "group"):
        manager.begin_transaction()
        assert manager.is_empty_transaction()
        manager.maybe_add_partition_to_txn(TopicPartition("topic", 0))
        manager.partition_added(TopicPartition("topic", 0))
        manager.maybe_add_partition_to_txn(TopicPartition("topic", 1))
        if group is not None:
            manager.consumer_group_added(group)
            manager.add_offsets_to_txn({}, group)
            assert manager.consumer_group_to_add() is None
            assert manager.offsets_to_commit() == ({}, group)
            manager._pending_txn_offsets.clear()
            manager.add_offsets_to_txn({}, "other")
            assert manager.consumer_group_to_add() == "other"
            manager._pending_txn_offsets.clear()
        manager.error_transaction(ValueError())
        assert is_in_transaction(producer)
        assert not manager.partitions_to_add()
        assert manager.txn_partitions == {TopicPartition("topic", 0)}
        assert manager._txn_consumer_group == group
        manager.aborting_transaction()
        manager.complete_transaction()
    send = inspect.getsource(Sender._maybe_do_transactional_request)
    assert send.index("txn_manager.consumer_group_to_add()") < send.index(".offsets_to_commit()")
    assert "txn_manager.error_transaction(" in inspect.getsource(AddPartitionsToTxnHandler)
    plain = AIOKafkaProducer()
    correct_transactions(plain)
    mark_closed(producer)
    mark_closed(plain)
