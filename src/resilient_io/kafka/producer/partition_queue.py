"""The queue of one partition: the records, in order, that wait for the next batch."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from aiokafka import TopicPartition
from aiokafka.structs import RecordMetadata

from resilient_io.errors import Progress, ResilientIOError

from .records import DeliveryFailure, DeliveryReport, Headers, OffsetRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .buffer import BufferMemory
    from .errors import DeliveryErrors


# Seconds after which larger batches are tried, when one was rejected: the first time, and at most.
_FIRST_RAISE = 15.0
_MAX_RAISE = 3600.0

Record: TypeAlias = tuple[
    asyncio.Future[RecordMetadata],
    bytes | None,
    bytes | None,
    Headers | None,
    int | None,
    float,
    int,
    float,
]
"""Future, key, value, headers, timestamp (ms), deadline (loop time), size, sent at (loop time).

A tuple and not a class, because one is created for each record on the hottest path.
"""

BulkRecord: TypeAlias = "tuple[int, bytes | None, bytes | None, Headers | None, int | None]"
"""The position among the given records, key, value, headers and timestamp (ms)."""

Entry: TypeAlias = "Record | BulkChunk"


@dataclass(slots=True, eq=False, repr=False)
class SizeLimit:
    """The limit of a batch's size, in bytes, after the broker rejected a batch as too large.

    The limit of the topic may be raised later. So the size is doubled when it was accepted for some
    time, which is longer after each time that it was too large, until it exceeds what was rejected.
    """

    size: int
    rejected: int  # size of the batch that was rejected first
    raised_at: float = 0.0  # loop time from which the limit may be raised
    interval: float = _FIRST_RAISE / 2  # seconds before the limit is raised

    def lower(self, size: int, now: float) -> None:
        """Lower the limit, after a batch with this size was rejected."""
        self.size = max(1, min(self.size, size) // 2)
        if now >= self.raised_at:  # otherwise, it was not raised since the last rejection
            self.interval = min(2 * self.interval, _MAX_RAISE)
        self.raised_at = now + self.interval

    def ends_after(self, size: int, now: float) -> bool:
        """Raise the limit if a batch with this size shows that it is time to; return if it ends."""
        if now >= self.raised_at and 2 * size >= self.size:
            self.size *= 2
        return self.size > self.rejected


@dataclass(slots=True, eq=False, repr=False)
class PartitionQueue:
    """The records of one partition: those that wait, and the position of those that left.

    One batch of a partition is in flight at a time, so that the order of its records is kept.
    """

    topic: str
    partition: int
    tp: TopicPartition = field(init=False)
    entries: deque[Entry] = field(default_factory=deque)  # that wait, oldest first
    position: int = 0  # number of entries that have ever left the front of `entries`
    waiting_bytes: int = 0  # size of what waits, as buffer memory counts it
    idle: bool = True  # nothing waits or is in flight: the next record has to schedule the queue
    on_hold: bool = False  # records wait, but the sender cannot send them now
    size_limit: SizeLimit | None = None  # of a batch, once the broker rejected one as too large
    record_limit: int | None = None  # of a batch, while a rejected record is searched
    unsettled_from: int | None = None  # position of the batch in flight until it has an outcome

    def __post_init__(self) -> None:
        self.tp = TopicPartition(self.topic, self.partition)

    @property
    def end(self) -> int:
        """The position after the newest entry."""
        return self.position + len(self.entries)

    @property
    def settled_to(self) -> int:
        """The position before which every entry has an outcome."""
        return self.position if self.unsettled_from is None else self.unsettled_from

    def replace(self, kept: list[Entry], placeholder: Record) -> None:
        """Replace the entries, and drop placeholders from the front."""
        begin = 0
        while begin < len(kept) and kept[begin] is placeholder:
            begin += 1
        self.entries.clear()
        self.entries.extend(kept[begin:])
        self.position += begin


def create_placeholder(loop: asyncio.AbstractEventLoop) -> Record:
    """Return what takes the place of a record that failed in the middle of its queue.

    Positions in the queue stay valid, and `build_batch` skips it because its future is done.
    """
    done: asyncio.Future[RecordMetadata] = loop.create_future()
    done.cancel()
    return (done, None, b"", None, 0, math.inf, 0, 0.0)


class BulkSend:
    """One call of `send_many`: collects the outcomes of its records."""

    __slots__ = ("_offsets", "_settled", "_waiter", "cancelled", "delivered", "failures", "taken")

    def __init__(self) -> None:
        self.cancelled = False  # the caller was cancelled: records that were not sent are dropped
        self.failures: list[DeliveryFailure] = []
        self.delivered = 0
        self.taken = 0
        self._settled = 0
        self._offsets: dict[int, OffsetRange] = {}
        self._waiter: asyncio.Future[None] | None = None

    def confirm(self, partition: int, base: int, count: int) -> None:
        """Count consecutive records that were written at offsets from `base` on."""
        self.delivered += count
        known = self._offsets.get(partition)
        last = base + count - 1 if base >= 0 else -1
        if known is None:
            self._offsets[partition] = OffsetRange(base, last, count)
        else:
            known.first = min(known.first, base) if known.first >= 0 else base
            known.last = max(known.last, last)
            known.count += count
        self._settle(count)

    def fail(
        self, tp: TopicPartition, records: Iterable[BulkRecord], error: Exception
    ) -> list[DeliveryFailure]:
        """Record that records failed, all with the same error, and return the failures."""
        failures = [failure_of(tp, record, error) for record in records]
        self.failures += failures
        self._settle(len(failures))
        return failures

    def reject(self, failure: DeliveryFailure) -> None:
        """Record that a record failed before it had a partition."""
        self.failures.append(failure)
        self._settle(1)

    async def wait_settled(self) -> None:
        """Wait until every record taken so far has an outcome."""
        while self._settled < self.taken:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def report(self, *, complete: bool) -> DeliveryReport:
        """Return the report of the call."""
        return DeliveryReport(
            delivered=self.delivered,
            failures=tuple(sorted(self.failures, key=lambda failure: failure.position)),
            offsets=dict(sorted(self._offsets.items())),
            taken=self.taken,
            complete=complete,
        )

    def _settle(self, count: int) -> None:
        self._settled += count
        if self._waiter is not None and self._settled >= self.taken and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(slots=True, eq=False, repr=False)
class BulkChunk:
    """Consecutive records of one `send_many` for one partition: one entry of its queue."""

    bulk: BulkSend
    records: list[BulkRecord]
    size: int
    sent_at: float
    deadline: float
    cursor: int = 0  # index of the first record that is not in a batch yet
    waiting_bytes: int = field(init=False)  # size of the records that are not in a batch yet

    def __post_init__(self) -> None:
        self.waiting_bytes = self.size

    def take(self, count: int) -> int:
        """Move the cursor past `count` records, and return the bytes that they are counted as."""
        rest = len(self.records) - self.cursor
        taken = self.waiting_bytes if count >= rest else self.size * count // len(self.records)
        self.cursor += count
        self.waiting_bytes -= taken
        return taken

    def drain(self) -> list[BulkRecord]:
        """Return the records that are not in a batch yet, and leave none."""
        rest = self.records[self.cursor :]
        self.cursor, self.waiting_bytes = len(self.records), 0
        return rest


def fail_waiting(
    queues: Iterable[PartitionQueue],
    errors: DeliveryErrors,
    buffer: BufferMemory,
    make_error: Callable[[float, str], Exception],
) -> list[DeliveryFailure]:
    """Fail every waiting record, and return the failures. None of the records was sent."""
    failures: list[DeliveryFailure] = []
    for queue in queues:
        for entry in queue.entries:
            if isinstance(entry, BulkChunk):
                rest = entry.drain()
                if rest:
                    error = make_error(entry.sent_at, "send_many")
                    errors.count_lost(error, len(rest))
                    failures += entry.bulk.fail(queue.tp, rest, error)
            else:
                failures += fail_record(entry, queue.tp, errors, make_error)
        queue.position += len(queue.entries)
        queue.entries.clear()
        freed, queue.waiting_bytes = queue.waiting_bytes, 0
        if freed:
            buffer.release(freed)
    return failures


def fail_record(
    record: Record,
    tp: TopicPartition,
    errors: DeliveryErrors,
    make_error: Callable[[float, str], Exception],
) -> list[DeliveryFailure]:
    """Fail a record of `send` unless it has an outcome, and return the failure."""
    future, key, value, headers, timestamp_ms, *_, sent_at = record
    if future.done():
        return []
    error = make_error(sent_at, "send")
    errors.fail(future, error)
    return [failure_of(tp, (-1, key, value, headers, timestamp_ms), error)]


def failure_of(tp: TopicPartition, record: BulkRecord, error: Exception) -> DeliveryFailure:
    """Return the failure of one record."""
    position, key, value, headers, timestamp_ms = record
    return DeliveryFailure(
        position=position,
        topic=tp.topic,
        partition=tp.partition,
        key=key,
        value=value,
        headers=headers,
        timestamp_ms=timestamp_ms,
        error=error,
        # An error of aiokafka is the broker's refusal.
        progress=error.progress if isinstance(error, ResilientIOError) else Progress.REFUSED,
    )
