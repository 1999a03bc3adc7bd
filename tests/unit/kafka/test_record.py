"""A record knows its position, and whether it is handled."""

import pytest
from aiokafka import ConsumerRecord, TopicPartition

from resilient_io.kafka.record import PartitionProgress, Record, UnreadableRecord


def record_at(offset: int, progress: PartitionProgress, kind: type[Record] = Record) -> Record:
    record = ConsumerRecord(
        "orders", 2, offset, 1000, 0, b"key", b"secret", None, 3, 6, (("h", b"1"),)
    )
    record.__class__ = kind
    record._progress = progress
    progress.delivered(offset)
    return record


def test_done_advances_the_partition_once():
    progress = PartitionProgress()
    first, second = record_at(1, progress), record_at(2, progress)
    assert not first.handled
    second.done()
    assert progress.committable is None
    first.done()
    first.done()
    assert first.handled
    assert progress.committable == 3


def test_a_record_is_a_driver_record_and_equal_by_its_position():
    progress = PartitionProgress()
    record = record_at(1, progress)
    assert isinstance(record, ConsumerRecord)
    assert record.topic_partition == TopicPartition("orders", 2)
    assert record == record_at(1, progress)
    assert record != record_at(2, progress)
    assert record != "orders"
    assert len({record, record_at(1, progress)}) == 1
    assert (record.raw_key, record.raw_value) == (b"key", b"secret")


def test_repr_contains_no_content():
    assert repr(record_at(7, PartitionProgress())) == "<Record orders[2]@7, 6 bytes>"


def test_an_unreadable_record_has_its_bytes_but_no_value():
    record = record_at(7, PartitionProgress(), UnreadableRecord)
    record._raw = (b"key", b"secret")
    record.error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")
    with pytest.raises(UnicodeDecodeError):
        _ = record.value
    with pytest.raises(UnicodeDecodeError):
        _ = record.key
    assert record.raw_value == b"secret"
    assert repr(record) == "<Record orders[2]@7, 6 bytes, unreadable: UnicodeDecodeError>"
    assert len({record}) == 1
