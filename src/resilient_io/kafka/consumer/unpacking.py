"""Unpacks `Record`s from what aiokafka has fetched.

aiokafka 0.14 creates each record in a generator, as a dataclass, and appends it to a list
(`PartitionRecords`, `FetchResult.getall`), which takes most of a consumer's time. A loop that
creates our records from the same batches takes less than half of it.

`tests/unit/kafka/consumer/test_unpacking.py` fails when a new version of aiokafka changes any of
the private attributes that are used here.
"""

from __future__ import annotations

import weakref
from itertools import chain, dropwhile, islice
from typing import TYPE_CHECKING, Any

from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult
from aiokafka.errors import CorruptRecordException

from ..record import PartitionProgress, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiokafka import TopicPartition

    from ..driver import ConsumerDriver

    ProgressOf = Callable[[TopicPartition], PartitionProgress | None]


def unpack_as_records(instance: ConsumerDriver, progress_of: ProgressOf) -> None:
    """Have `getmany` return `Record`s of what has been fetched so far (`Fetcher._records`).

    `progress_of` returns the progress that records of a partition advance; None if the partition
    is not assigned any more.
    """
    driver: Any = instance
    for result in driver._fetcher._records.values():
        if type(result) is FetchResult and "getall" not in vars(result):
            fetched: Any = result
            fetched.getall = _Unpacker(fetched, progress_of).take


class _Unpacker:
    """Unpacks what one request has fetched from one partition, instead of `FetchResult.getall`."""

    __slots__ = ("_batch", "_batch_end", "_fetched", "_progress_of", "_result")

    def __init__(self, result: Any, progress_of: ProgressOf) -> None:
        # With cycles of references, what was fetched would stay in memory for long. The unused
        # generator refers to its own object.
        self._result: Any = weakref.proxy(result)
        self._fetched = result._partition_records  # batches, and the position in them
        self._fetched._records_iterator = None
        self._progress_of = progress_of
        self._batch: Iterator[Any] | None = None  # the rest of the current batch
        self._batch_end = 0  # the offset after that batch

    def take(self, max_records: int | None = None) -> list[Record]:
        """Return the next records.

        Raises:
            Exception: The next batch is corrupt, or its codec is unknown. It is fetched again.
        """
        result = self._result
        if not result.has_more() or not result.check_assignment(result._topic_partition):
            return []
        found: list[Record] = []
        try:
            more = self._unpack(found, max_records)
        except Exception:
            if not found:
                result._partition_records = None
                raise
            more = False  # deliver the records before the unreadable batch
            self._fetched.next_fetch_offset = found[-1].offset + 1
        result._update_position()
        if not more:
            result._partition_records = None
        return found

    def _unpack(self, found: list[Record], left: int | None) -> bool:
        """Add up to `left` records to a list; return whether there may be more."""
        fetched, partition = self._fetched, self._result._topic_partition
        progress = self._progress_of(partition) or PartitionProgress()
        topic, number = partition
        create, add = object.__new__, found.append
        while left is None or left > 0:
            if self._batch is None:
                batch = self._next_batch()
                if batch is None:
                    return False
                self._batch, self._batch_end = self._begin(batch), batch.next_offset
            before = len(found)
            for source in islice(self._batch, left):
                # `Record(...)` would call a Python function for each record.
                record = create(Record)
                record.topic = topic
                record.partition = number
                record.offset = source.offset
                record.timestamp = source.timestamp
                record.timestamp_type = source.timestamp_type
                record.key = source.key
                record.value = source.value
                record._progress = progress
                headers = source.headers
                if headers:
                    record.headers = tuple(headers)
                add(record)
            added = len(found) - before
            if left is None or added < left:
                # If the last records of a batch were compacted, the position is after them.
                self._batch, fetched.next_fetch_offset = None, self._batch_end
            else:
                fetched.next_fetch_offset = found[-1].offset + 1
            if left is not None:
                left -= added
        return True

    def _begin(self, batch: Any) -> Iterator[Any]:
        """Return the records of a batch, from the requested offset on."""
        first = self._fetched.next_fetch_offset
        if getattr(batch, "base_offset", -1) >= first:  # batches of Kafka before 0.11 have none
            return chain(batch)  # a batch itself cannot be iterated in parts
        return dropwhile(lambda source: source.offset < first, batch)

    def _next_batch(self) -> Any:
        """Return the next batch with records to deliver, or None (`_unpack_records`)."""
        fetched = self._fetched
        while fetched._records.has_next():
            batch = fetched._records.next_batch()
            if fetched._check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"invalid CRC in {self._result._topic_partition}")
            if not self._aborted(batch) and not batch.is_control_batch:
                return batch
            fetched.next_fetch_offset = batch.next_offset
        return None

    def _aborted(self, batch: Any) -> bool:
        """Return whether a batch belongs to an aborted transaction, if only committed are read."""
        fetched, producer = self._fetched, batch.producer_id
        if fetched._isolation_level != READ_COMMITTED or producer is None:
            return False
        fetched._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and fetched._contains_abort_marker(batch):
            fetched._aborted_producers.discard(producer)  # the transaction ends here
        return batch.is_transactional and producer in fetched._aborted_producers
