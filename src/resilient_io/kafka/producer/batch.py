"""One batch: built from the front of a partition queue, in flight, then completed or put back.

The functions at the end rely on private attributes of aiokafka 0.14's producer, which
`tests/unit/kafka/producer/test_batch_contract.py` checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count as count_from
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

from aiokafka.structs import RecordMetadata

from .partition_queue import BulkChunk, fail_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiokafka import TopicPartition
    from aiokafka.producer.message_accumulator import BatchBuilder

    from resilient_io.wakeups import Answer

    from ..driver import ProducerDriver
    from .errors import DeliveryErrors
    from .partition_queue import PartitionQueue, Record
    from .records import DeliveryFailure, Headers


_NO_HEADERS: Headers = []

_NO_TIMESTAMP = -1


@dataclass(slots=True, eq=False, repr=False)
class InFlightBatch:
    """One batch that was passed to aiokafka: its records may have been written."""

    queue: PartitionQueue
    driver: ProducerDriver
    builder: BatchBuilder
    sent_at: float
    entries: list[Record | ChunkSlice] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)  # of the single records, in milliseconds
    count: int = 0
    size: int = 0
    driver_batch: object = None  # aiokafka's own record of it, once aiokafka has accepted it
    settled: bool = False  # every caller knows the outcome, or that it is unknown

    def settle(self) -> None:
        """Note that every caller knows the outcome, or that it is unknown."""
        self.settled = True
        self.queue.unsettled_from = None


@dataclass(slots=True, eq=False, repr=False)
class ChunkSlice:
    """The records `first` to `last - 1` of a chunk, which are in one batch."""

    chunk: BulkChunk
    first: int
    last: int
    size: int
    settled: bool = False

    @property
    def count(self) -> int:
        """The number of records."""
        return self.last - self.first

    def confirm(self, tp: TopicPartition, base: int) -> None:
        """Report to the call that the records were written."""
        if not self.settled:
            self.settled = True
            self.chunk.bulk.confirm(tp.partition, base, self.count)

    def fail(self, tp: TopicPartition, error: Exception) -> list[DeliveryFailure]:
        """Report to the call that the records failed; return the failures."""
        if self.settled:
            return []
        self.settled = True
        return self.chunk.bulk.fail(tp, self.chunk.records[self.first : self.last], error)


def build_batch(
    queue: PartitionQueue,
    driver: ProducerDriver,
    builder: BatchBuilder,
    now: float,
    clock_offset: float,
) -> tuple[InFlightBatch, int]:
    """Move records from the front of a queue into a batch until it is full or none is left.

    Records that are done already (cancelled or expired) are dropped and never sent. Return the
    batch, and the bytes of the records that were dropped. `clock_offset` is the wall clock's time
    minus that of the loop.
    """
    waiting = queue.entries
    batch = InFlightBatch(queue, driver, builder, now)
    write = _writer_within_limits(queue, builder)
    entries, timestamps = batch.entries, batch.timestamps
    before, begin = len(waiting), queue.position
    size = freed = 0
    while waiting:
        entry = waiting[0]
        if isinstance(entry, BulkChunk):
            if entry.bulk.cancelled:
                freed += entry.waiting_bytes
                entry.drain()
            else:
                size += _add_chunk(entry, batch, write, clock_offset)
                if entry.cursor < len(entry.records):
                    break
            waiting.popleft()
            continue
        future, key, value, headers, timestamp, _, weight, sent_at = entry
        if future.done():
            freed += weight
            waiting.popleft()
            continue
        if timestamp is None:
            timestamp = int((sent_at + clock_offset) * 1000.0)
        if write(batch.count, timestamp, key, value, headers or _NO_HEADERS) is None:
            break
        waiting.popleft()
        entries.append(entry)
        timestamps.append(timestamp)
        size += weight
        batch.count += 1
    queue.position += before - len(waiting)
    queue.waiting_bytes -= size + freed
    batch.size = size
    if batch.count:
        queue.unsettled_from = begin
    set_record_count(builder, batch.count)
    return batch, freed


def _add_chunk(
    chunk: BulkChunk, batch: InFlightBatch, write: Callable[..., object], clock_offset: float
) -> int:
    """Add records of a chunk as far as they fit; return the bytes that they are counted as."""
    first = chunk.cursor
    default = int((chunk.sent_at + clock_offset) * 1000.0)
    offset = batch.count
    for _, key, value, headers, timestamp in islice(chunk.records, first, None):
        moment = default if timestamp is None else timestamp
        if write(offset, moment, key, value, headers or _NO_HEADERS) is None:
            break
        offset += 1
    added = offset - batch.count
    if not added:
        return 0
    size = chunk.take(added)
    batch.entries.append(ChunkSlice(chunk, first, first + added, size))
    batch.count = offset
    return size


def _writer_within_limits(queue: PartitionQueue, builder: BatchBuilder) -> Callable[..., object]:
    write = record_writer(builder)
    if queue.size_limit is not None:
        write = _limited(write, queue.size_limit.size)
    if queue.record_limit is not None:
        write = _limited_to(write, queue.record_limit)
    return write


def _limited(write: Callable[..., object], limit: int) -> Callable[..., object]:
    """End a batch earlier than aiokafka would, after the broker rejected one as too large."""
    left = limit

    def write_within_limit(
        place: int, timestamp: int, key: bytes | None, value: bytes | None, headers: Headers
    ) -> object:
        nonlocal left
        size = len(key or b"") + len(value or b"")
        if place and size > left:  # the first record always fits
            return None
        left -= size
        return write(place, timestamp, key, value, headers)

    return write_within_limit


def _limited_to(write: Callable[..., object], records: int) -> Callable[..., object]:
    """End a batch after some records, while a record that the broker rejects is searched."""

    def write_first(place: int, *rest: object) -> object:
        return None if place >= records else write(place, *rest)

    return write_first


def complete_batch(
    batch: InFlightBatch,
    metadata: RecordMetadata | None,
    errors: DeliveryErrors,
    answers: list[Answer] | None = None,
) -> None:
    """Report to the callers that a batch was written, and where.

    If `answers` is given, the results that a task waits for are added to it instead, and the caller
    must deliver them. By then all others are set, so that a task that waits for one record after
    the other continues once, and not for each record.
    """
    errors.delivered += batch.count
    batch.settle()
    queue = batch.queue
    if metadata is None:
        metadata = RecordMetadata(queue.topic, queue.partition, queue.tp, -1, -1, 0, None)
    timestamps = iter(batch.timestamps)
    if len(batch.entries) == len(batch.timestamps):
        _confirm(batch.entries, timestamps, metadata, answers)
        return
    for entry in batch.entries:
        if isinstance(entry, ChunkSlice):
            entry.confirm(queue.tp, metadata.offset)
            count = entry.count
        else:
            _confirm([entry], timestamps, metadata, answers)
            count = 1
        if metadata.offset >= 0:
            metadata = metadata._replace(offset=metadata.offset + count)


def _confirm(
    records: Iterable[Any],
    timestamps: Iterable[int],
    first: RecordMetadata,
    answers: list[Answer] | None,
) -> None:
    """Report consecutive records of `send`, the first of which has this metadata."""
    topic, partition, tp, base, timestamp, kind, start = first
    fields = zip(
        repeat(topic),
        repeat(partition),
        repeat(tp),
        count_from(base) if base >= 0 else repeat(base),
        timestamps if timestamp == _NO_TIMESTAMP else repeat(timestamp),
        repeat(kind),
        repeat(start),
        strict=False,
    )
    # `RecordMetadata(...)` would call a Python function for each record.
    new, cls = tuple.__new__, RecordMetadata
    for record, values in zip(records, fields, strict=False):
        future = record[0]
        if answers is not None and future._callbacks:
            answers.append((future, new(cls, values)))
        elif not future.done():
            future.set_result(new(cls, values))


def fail_batch(
    batch: InFlightBatch,
    errors: DeliveryErrors,
    make_error: Callable[[float, str], Exception],
) -> list[DeliveryFailure]:
    """Fail the records of a batch that have no outcome yet, and return the failures."""
    batch.settle()
    tp = batch.queue.tp
    failures: list[DeliveryFailure] = []
    for entry in batch.entries:
        if isinstance(entry, ChunkSlice):
            if not entry.settled:
                error = make_error(entry.chunk.sent_at, "send_many")
                errors.count_lost(error, entry.count)
                failures += entry.fail(tp, error)
        else:
            failures += fail_record(entry, tp, errors, make_error)
    return failures


def put_back(batch: InFlightBatch) -> int:
    """Put the records of a batch that certainly was not written back to the front of their queue.

    Return the bytes of those that are not put back because they have expired.
    """
    queue = batch.queue
    freed = 0
    for entry in reversed(batch.entries):
        if isinstance(entry, ChunkSlice):
            if entry.settled:
                freed += entry.size
                continue
            chunk = entry.chunk
            chunk.cursor = entry.first
            chunk.waiting_bytes += entry.size
            if queue.entries and queue.entries[0] is chunk:
                continue
            queue.entries.appendleft(chunk)
        else:
            queue.entries.appendleft(entry)
        queue.position -= 1
    queue.waiting_bytes += batch.size - freed
    batch.settle()
    return freed


# --- private attributes of aiokafka 0.14


def record_writer(builder: BatchBuilder) -> Callable[..., object]:
    """Return the function that adds a record: offset, timestamp (ms), key, value, headers (a list).

    It returns None when the batch is full. This is `BatchBuilder._builder.append`: the public
    `BatchBuilder.append`, which calls it, takes twice as long. Call `set_record_count` afterwards.
    """
    owner: Any = builder
    write: Callable[..., object] = owner._builder.append
    return write


def set_record_count(builder: BatchBuilder, count: int) -> None:
    """Set the number of records of a batch (`BatchBuilder._relative_offset`)."""
    owner: Any = builder
    owner._relative_offset = count


def newest_driver_batch(driver: ProducerDriver, tp: TopicPartition) -> object:
    """Return aiokafka's record of the batch that was just passed to it.

    `MessageAccumulator._batches` has it from `send_batch` until a request takes it.
    """
    owner: Any = driver
    queued = owner._message_accumulator._batches.get(tp)
    return queued[-1] if queued else None


def attempts_of(driver_batch: object) -> int | None:
    """Return how many requests contained a batch (`MessageBatch.retry_count`); None if unknown."""
    known: Any = driver_batch
    return None if known is None else int(known.retry_count)


def is_idempotent(driver: ProducerDriver) -> bool:
    """Return whether the batches of a producer are numbered (`AIOKafkaProducer._txn_manager`)."""
    owner: Any = driver
    return owner._txn_manager is not None


def roll_back_sequence(driver: ProducerDriver, tp: TopicPartition, count: int) -> None:
    """Roll back the sequence number of a batch that the broker refused at its only attempt.

    aiokafka numbers a batch when it first sends it and never rolls that back
    (`TransactionManager._sequence_numbers`), so every later batch would be out of order.
    """
    owner: Any = driver
    if owner._txn_manager is not None:
        owner._txn_manager.increment_sequence_number(tp, -count)
