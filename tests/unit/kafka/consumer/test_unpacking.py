"""Records are unpacked as aiokafka would, from the same bytes, and its private attributes exist."""

import gc
import inspect
import struct
import weakref
from dataclasses import fields
from types import SimpleNamespace

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.consumer import fetcher as driver
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from resilient_io.kafka.consumer.unpacking import unpack_as_records
from resilient_io.kafka.record import PartitionProgress, Record

P = TopicPartition("t", 3)
RECORDS = [
    (b"key", b"value", []),
    (None, b"value", [("h", b"1"), ("none", None)]),
    (b"deleted", None, []),
    (b"", b"", []),
]
ATTRIBUTES_AT = 21
CRC_AT = 17
CONTROL, LOG_APPEND_TIME = 0x20, 0x08
ABORT = struct.pack(">hh", 0, 0)


def batch_of(base, records=RECORDS, *, codec=0, producer=-1, transactional=False, attributes=0):
    """Return the bytes of a batch whose first record has this offset."""
    builder = DefaultRecordBatchBuilder(2, codec, transactional, producer, 0, 0, 1 << 20)
    for number, (key, value, headers) in enumerate(records):
        builder.append(number, 1_000_000 + base + number, key, value, headers)
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, base)
    (found,) = struct.unpack_from(">h", data, ATTRIBUTES_AT)
    struct.pack_into(">h", data, ATTRIBUTES_AT, found | attributes)
    struct.pack_into(">I", data, CRC_AT, calc_crc32c(memoryview(data)[ATTRIBUTES_AT:]))
    return bytes(data)


def legacy(magic):
    builder = LegacyRecordBatchBuilder(magic, 0, 1 << 20)
    for number, (key, value, _) in enumerate(RECORDS):
        builder.append(number, 1_000 + number, key, value)
    return bytes(builder.build())


class State(SimpleNamespace):
    """aiokafka's state of a partition."""

    def consumed_to(self, position):
        self.position = position


class Fetched:
    """What one request has fetched, read by aiokafka or by us."""

    def __init__(self, data, *, ours, position=0, aborted=None, committed=False):
        self.state = state = State(position=position, paused=False)
        self.progress = PartitionProgress()
        self.result = driver.FetchResult(
            P,
            assignment=SimpleNamespace(active=True, state_value=lambda partition: state),
            partition_records=driver.PartitionRecords(
                P, MemoryRecords(data), aborted, position, None, None, True, int(committed)
            ),
            backoff=0.0,
        )
        if ours:
            fetcher = SimpleNamespace(_records={P: self.result, "error": object()})
            for _ in range(2):  # the second time, nothing is left to do
                unpack_as_records(SimpleNamespace(_fetcher=fetcher), {P: self.progress}.get)

    def take(self, most=None):
        """Return all records, the position after each call, and whether nothing is left."""
        records, positions = [], []
        while self.result.has_more():
            records += self.result.getall(most)
            positions.append(self.state.position)
        return records, positions


def values_of(record):
    return {field.name: getattr(record, field.name) for field in fields(ConsumerRecord)}


CASES = {
    "plain": {"data": batch_of(0) + batch_of(4) + batch_of(8)},
    "compressed": {"data": batch_of(0, codec=1) + batch_of(4, codec=1)},
    "from the middle of a batch": {"data": batch_of(0, codec=1) + batch_of(4), "position": 2},
    "after a compacted gap": {"data": batch_of(7) + batch_of(90)},
    "time of the broker": {"data": batch_of(0, attributes=LOG_APPEND_TIME)},
    "control batch": {
        "data": batch_of(0, transactional=True, producer=5)
        + batch_of(4, [(ABORT, b"", [])], transactional=True, producer=5, attributes=CONTROL)
        + batch_of(5),
    },
    "aborted": {
        "data": batch_of(0, transactional=True, producer=5)
        + batch_of(4, transactional=True, producer=6)
        + batch_of(8, [(ABORT, b"", [])], transactional=True, producer=5, attributes=CONTROL)
        + batch_of(9, transactional=True, producer=5),
        "aborted": [(5, 0)],
        "committed": True,
    },
    "only a control batch": {
        "data": batch_of(0, [(ABORT, b"", [])], producer=5, attributes=CONTROL)
    },
    "old format 0": {"data": legacy(0)},
    "old format 1": {"data": legacy(1), "position": 1},
    "cut off": {"data": batch_of(0) + batch_of(4)[:-5]},
}


@pytest.mark.parametrize("most", [None, 1, 3, 4, 100])
@pytest.mark.parametrize("case", CASES)
def test_records_and_positions_are_those_of_aiokafka(case, most):
    options = dict(CASES[case])
    data = options.pop("data")
    theirs, their_positions = Fetched(data, ours=False, **options).take(most)
    fetched = Fetched(data, ours=True, **options)
    ours, positions = fetched.take(most)
    assert [values_of(record) for record in ours] == [
        values_of(record) | {"checksum": None} for record in theirs
    ]
    assert positions[-1] == their_positions[-1]
    assert theirs or case == "only a control batch"
    assert all(type(record) is Record for record in ours)
    assert all(record._progress is fetched.progress for record in ours)


def test_a_position_is_after_the_records_that_were_taken():
    fetched = Fetched(batch_of(0) + batch_of(4), ours=True)
    for position in (2, 4, 6, 8):
        assert fetched.result.getall(2)[-1].offset + 1 == position == fetched.state.position
    assert fetched.result.has_more()
    assert fetched.result.getall(2) == []
    assert not fetched.result.has_more()
    assert fetched.result.getall(2) == []


@pytest.mark.parametrize("change", ["position", "paused", "active"])
def test_nothing_is_taken_after_a_seek_or_a_revocation(change):
    fetched = Fetched(batch_of(0) + batch_of(4), ours=True)
    fetched.result.getall(2)
    if change == "active":
        fetched.result._assignment.active = False
    else:
        setattr(fetched.state, change, 7)
    assert fetched.result.getall(2) == []
    assert not fetched.result.has_more()


def test_records_before_an_unreadable_batch_are_delivered():
    broken = bytearray(batch_of(4))
    broken[-1] ^= 1
    fetched = Fetched(batch_of(0) + bytes(broken) + batch_of(8), ours=True)
    assert [record.offset for record in fetched.result.getall()] == [0, 1, 2, 3]
    assert fetched.state.position == 4
    assert not fetched.result.has_more()  # it is fetched again

    fetched = Fetched(bytes(broken) + batch_of(8), ours=True, position=4)
    with pytest.raises(CorruptRecordException, match="invalid CRC"):
        fetched.result.getall()
    assert fetched.state.position == 4
    assert fetched.result.getall() == []


def test_fetched_data_is_freed_without_the_garbage_collector():
    fetched = Fetched(batch_of(0), ours=True)
    fetched.result.getall(2)
    kept = [weakref.ref(each) for each in (fetched.result, fetched.result._partition_records)]
    gc.disable()
    try:
        del fetched
        assert [each() for each in kept] == [None, None]
    finally:
        gc.enable()


def test_a_record_of_a_partition_that_was_revoked_refers_to_an_unused_progress():
    fetched = Fetched(batch_of(0), ours=False)
    fetcher = SimpleNamespace(_records={P: fetched.result})
    unpack_as_records(SimpleNamespace(_fetcher=fetcher), lambda partition: None)
    record = fetched.result.getall()[0]
    record.done()
    assert record.handled


def test_private_attributes_of_aiokafka():
    assert "self._records = collections.OrderedDict()" in inspect.getsource(driver.Fetcher)
    body = inspect.getsource(driver.Fetcher.fetched_records)
    assert "type(res_or_error) is FetchResult" in body
    assert "res_or_error.getall(max_records)" in body
    assert "if not res_or_error.has_more()" in body
    # What is done for each batch, and must be done here, too.
    body = inspect.getsource(driver.PartitionRecords._unpack_records)
    assert body.count("continue") == 3
    assert body.count("next_batch.") == 14
    assert "self._records_iterator" in inspect.getsource(driver.PartitionRecords.__init__)
