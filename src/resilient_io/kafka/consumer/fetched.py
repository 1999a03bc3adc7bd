"""What aiokafka has fetched from one partition, and the records in it.

aiokafka 0.14 creates each record in a generator, as a dataclass, and appends it to a list
(`PartitionRecords`, `FetchResult.getall`), which takes most of a consumer's time. A loop that
creates our records from the same batches takes less than half of it. And aiokafka requests no more
from a broker until the records of all its partitions are taken. So what has arrived is taken before
it is unpacked, and the next request is answered meanwhile.

`tests/unit/kafka/consumer/test_fetched.py` fails when a new version of aiokafka changes any of the
private attributes that are used here.
"""

from __future__ import annotations

from collections import deque
from itertools import chain, dropwhile, islice
from typing import TYPE_CHECKING, Any

from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult
from aiokafka.errors import CorruptRecordException

from ..record import Record

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from aiokafka import TopicPartition

    from ..driver import ConsumerDriver
    from ..record import PartitionProgress


class FetchedRecords:
    """The batches that one request has fetched from one partition, and the position in them."""

    __slots__ = ("_batch", "_batch_end", "_batches", "_error", "_rest", "_source", "next_offset")

    def __init__(self, source: Any, batches: deque[Any]) -> None:
        self.next_offset: int = source.next_fetch_offset
        self._source = source  # aiokafka's `PartitionRecords`: how to read the batches
        self._batches = batches
        self._rest: Iterator[Any] = iter(())
        self._batch: Iterator[Any] | None = None  # what is left of the current batch
        self._batch_end = 0  # the offset after that batch
        self._error: Exception | None = None

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left."""
        return self._batch is None and not self._batches and self._error is None

    def take(self, most: int, progress: PartitionProgress) -> list[Record]:
        """Return the next records, which advance `progress` when they are done.

        Raises:
            Exception: A batch is corrupt, or its codec is unknown. `next_offset` is its beginning,
                or that of the first unreadable record.
        """
        if self._error is not None:
            raise self._error
        found: list[Record] = []
        try:
            self._unpack(found, most, progress)
        except Exception as error:
            if not found:
                raise
            self._error = error
            self.next_offset = found[-1].offset + 1
        return found

    def _unpack(self, found: list[Record], left: int, progress: PartitionProgress) -> None:
        topic, number = self._source._tp
        create, add = object.__new__, found.append
        while left > 0:
            if self._batch is None:
                batch = self._next_batch()
                if batch is None:
                    return
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
                record.key = key = source.key
                record.value = value = source.value
                record.serialized_key_size = -1 if key is None else len(key)
                record.serialized_value_size = -1 if value is None else len(value)
                record._progress = progress
                headers = source.headers
                if headers:
                    record.headers = tuple(headers)
                add(record)
            left -= len(found) - before
            following = next(self._batch, None)
            if following is None:
                # If the last records of a batch were compacted, the position is after them.
                self._batch, self.next_offset = None, self._batch_end
            else:
                self._batch = chain((following,), self._rest)
                self.next_offset = following.offset

    def _begin(self, batch: Any) -> Iterator[Any]:
        """Return the records of a batch, from the position on."""
        first = self.next_offset
        self._rest = chain(batch)  # a batch itself cannot be iterated in parts
        if getattr(batch, "base_offset", -1) < first:  # batches of Kafka before 0.11 have none
            self._rest = dropwhile(lambda source: source.offset < first, self._rest)
        return self._rest

    def _next_batch(self) -> Any:
        """Return the next batch with records to deliver, or None (`_unpack_records`)."""
        while self._batches:
            batch = self._batches.popleft()
            if self._source._check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"invalid CRC in {self._source._tp}")
            if not self._aborted(batch) and not batch.is_control_batch:
                return batch
            self.next_offset = batch.next_offset
        return None

    def _aborted(self, batch: Any) -> bool:
        """Return whether a batch belongs to an aborted transaction, if only committed are read."""
        source, producer = self._source, batch.producer_id
        if source._isolation_level != READ_COMMITTED or producer is None:
            return False
        source._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and source._contains_abort_marker(batch):
            source._aborted_producers.discard(producer)  # the transaction ends here
        return batch.is_transactional and producer in source._aborted_producers


def fetched_partitions(instance: ConsumerDriver) -> Container[TopicPartition]:
    """Return the partitions from which records have arrived, or an error."""
    driver: Any = instance
    partitions: Container[TopicPartition] = driver._fetcher._records
    return partitions


def take_fetched(instance: ConsumerDriver, partition: TopicPartition) -> FetchedRecords | None:
    """Take what has been fetched from a partition, or None (`Fetcher._records`).

    aiokafka's position moves behind it, and what follows is requested.

    Raises:
        CorruptRecordException: The first batch is too small. It is fetched again.
    """
    driver: Any = instance
    result = driver._fetcher._records.get(partition)
    if type(result) is not FetchResult:
        return None
    _forget(driver, partition)
    if not result.check_assignment(partition):
        return None  # the position was moved since
    fetched: Any = result
    source, batches = fetched._partition_records, deque[Any]()
    source._records_iterator = None  # an unused generator, which refers to the object
    try:
        while source._records.has_next():
            batches.append(source._records.next_batch())
    except CorruptRecordException:
        if not batches:
            raise
    # The batches before an unreadable one are delivered; then it is fetched again.
    fetched._assignment.state_value(partition).consumed_to(batches[-1].next_offset)
    return FetchedRecords(source, batches)


def raise_fetch_error(instance: ConsumerDriver, partition: TopicPartition) -> None:
    """Raise the error of fetching from a partition, if there is one (`FetchError`)."""
    driver: Any = instance
    result = driver._fetcher._records.get(partition)
    if result is not None and type(result) is not FetchResult:
        _forget(driver, partition)
        result.check_raise()


def _forget(driver: Any, partition: TopicPartition) -> None:
    fetcher = driver._fetcher
    del fetcher._records[partition]
    fetcher._notify(fetcher._wait_consume_future)
