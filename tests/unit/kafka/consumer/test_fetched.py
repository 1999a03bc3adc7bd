"""Records are those that aiokafka would read from the same bytes; its private attributes exist."""

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
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder

from resilient_io.kafka.consumer.fetched import raise_fetch_error, take_fetched
from resilient_io.kafka.record import PartitionProgress, Record
from tests.unit.kafka.consumer import batches
from tests.unit.kafka.consumer.batches import fetch_result

P = TopicPartition("t", 3)
RECORDS = [
    (b"key", b"value", []),
    (None, b"value", [("h", b"1"), ("none", None)]),
    (b"deleted", None, []),
    (b"", b"", []),
]
CONTROL, LOG_APPEND_TIME = 0x20, 0x08
ABORT = struct.pack(">hh", 0, 0)


def batch_of(base, records=RECORDS, **options):
    return batches.batch_of(base, records, **options)


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

    def __init__(self, data, *, position=0, **options):
        self.state = State(position=position, paused=False)
        self.progress = PartitionProgress()
        self.fetcher = SimpleNamespace(
            _records={P: fetch_result(P, data, self.state, **options)},
            _wait_consume_future="the next request",
            _notify=(notified := []).append,
        )
        self.notified = notified
        self.driver = SimpleNamespace(_fetcher=self.fetcher)

    def take(self):
        return take_fetched(self.driver, P)

    def take_all(self, most):
        """Return all records, and the position after them."""
        records, fetched = [], self.take()
        while not fetched.exhausted:
            records += fetched.take(most, self.progress)
        assert fetched.next_offset == self.state.position
        return records, fetched.next_offset

    def theirs(self):
        """Return the same as aiokafka does."""
        result = self.fetcher._records[P]
        return result.getall(), self.state.position


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


@pytest.mark.parametrize("most", [1, 3, 4, 100])
@pytest.mark.parametrize("case", CASES)
def test_records_and_positions_are_those_of_aiokafka(case, most):
    theirs, their_position = Fetched(**CASES[case]).theirs()
    fetched = Fetched(**CASES[case])
    ours, position = fetched.take_all(most)
    assert [values_of(record) for record in ours] == [
        values_of(record) | {"checksum": None} for record in theirs
    ]
    assert position == their_position
    assert theirs or case == "only a control batch"
    assert all(type(record) is Record for record in ours)
    assert all(record._progress is fetched.progress for record in ours)


def test_the_next_request_is_made_before_the_records_are_unpacked():
    arrived = Fetched(batch_of(0) + batch_of(4))
    fetched = arrived.take()
    assert arrived.fetcher._records == {}
    assert arrived.notified == ["the next request"]
    assert arrived.state.position == 8
    for position in (3, 6, 8):
        assert fetched.take(3, arrived.progress)[-1].offset + 1 == position == fetched.next_offset
    assert arrived.take() is None


def test_nothing_is_taken_after_the_position_was_moved():
    arrived = Fetched(batch_of(0))
    arrived.state.position = 7
    assert arrived.take() is None
    assert arrived.fetcher._records == {}
    assert arrived.notified


def test_records_before_an_unreadable_batch_are_delivered():
    broken = bytearray(batch_of(4))
    broken[-1] ^= 1
    arrived = Fetched(batch_of(0) + bytes(broken) + batch_of(8))
    fetched = arrived.take()
    assert [record.offset for record in fetched.take(100, arrived.progress)] == [0, 1, 2, 3]
    assert not fetched.exhausted
    for _ in range(2):
        with pytest.raises(CorruptRecordException, match="invalid CRC"):
            fetched.take(100, arrived.progress)
        assert fetched.next_offset == 4

    arrived = Fetched(bytes(broken) + batch_of(8), position=4)
    with pytest.raises(CorruptRecordException, match="invalid CRC"):
        arrived.take().take(100, arrived.progress)


def test_batches_before_one_that_is_too_small_are_delivered():
    small = struct.pack(">qi", 4, 2) + b"no"
    arrived = Fetched(batch_of(0) + small)
    assert len(arrived.take_all(100)[0]) == 4
    assert arrived.state.position == 4
    arrived = Fetched(small, position=4)
    with pytest.raises(CorruptRecordException):
        arrived.take()
    assert arrived.state.position == 4


def test_an_error_of_a_request_is_raised_once():
    arrived = Fetched(batch_of(0))
    raise_fetch_error(arrived.driver, P)
    assert P in arrived.fetcher._records
    error = driver.FetchError(error=CorruptRecordException("as if"), backoff=0.0)
    arrived.fetcher._records[P] = error
    assert arrived.take() is None
    with pytest.raises(CorruptRecordException, match="as if"):
        raise_fetch_error(arrived.driver, P)
    raise_fetch_error(arrived.driver, P)
    assert arrived.notified


def test_fetched_data_is_freed_without_the_garbage_collector():
    arrived = Fetched(batch_of(0))
    fetched = arrived.take()
    fetched.take(2, arrived.progress)
    source = weakref.ref(fetched._source)
    gc.disable()
    try:
        del fetched
        assert source() is None
    finally:
        gc.enable()


def test_private_attributes_of_aiokafka():
    assert "self._records = collections.OrderedDict()" in inspect.getsource(driver.Fetcher)
    # What is done with results and errors, and must be done here, too.
    body = inspect.getsource(driver.Fetcher.fetched_records)
    assert body.count("self._records") == 5
    assert body.count("self._notify(self._wait_consume_future)") == 2
    assert "res_or_error.check_raise()" in body
    assert "consumed_to(self._partition_records.next_fetch_offset)" in inspect.getsource(
        driver.FetchResult._update_position
    )
    # What is done for each batch, and must be done here, too.
    body = inspect.getsource(driver.PartitionRecords._unpack_records)
    assert body.count("continue") == 3
    assert body.count("next_batch.") == 14
    assert "self._records_iterator" in inspect.getsource(driver.PartitionRecords.__init__)
    # Nothing else is requested from a broker until the records of all its partitions are taken.
    assert "if tp in self._records" in inspect.getsource(driver.Fetcher._get_actions_per_node)
