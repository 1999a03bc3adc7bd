"""Iteration over records or batches, which are handled once the next one is requested.

The iterator that a caller holds and the record stream that the consumer holds are separate
objects: `break` and exceptions only drop the iterator, so its deletion must end the stream.
"""

from __future__ import annotations

import asyncio
import math
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from resilient_io.deadlines import current_deadline
from resilient_io.tasks import beat_before, wake

from ..errors import KafkaClosed, KafkaDeadlineExceeded
from ..processing import Processor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiokafka import TopicPartition

    from ..record import Record
    from .assignment import AssignedPartition
    from .fetcher import Fetcher

    Chunk = tuple[AssignedPartition, list[Record]]

T = TypeVar("T")

_POLL_INTERVAL = 1.0
"""Longest wait for records, in seconds, before aiokafka is polled again."""

_HANDLED_CHECK_INTERVAL = 0.02
"""Seconds between two checks whether the record in hand was marked as handled."""

_MEMBERSHIP_CHECK_INTERVAL = 0.001
"""Seconds of handling records after which the clock is read before the next record."""

_RECORDS_PER_CHECK = 32
"""Most records that are delivered between two readings of the clock."""


class ExclusiveUse:
    """Holds what receives the records: the stream of one loop, or the processor of one `run`."""

    def __init__(self, dependency: str, began: Callable[[tuple[str, ...]], None]) -> None:
        self.current: RecordStream[Any] | Processor | None = None
        self._began = began  # called with the retry topics of a new user
        self._dependency = dependency
        self._closed = False
        self._ending = False
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def processor(self) -> Processor | None:
        """The processor of the current `run`; None while there is none."""
        return self.current if isinstance(self.current, Processor) else None

    @property
    def stream(self) -> RecordStream[Any] | None:
        """The record stream of the current loop; None while there is none."""
        return None if isinstance(self.current, Processor) else self.current

    async def acquire(self, user: RecordStream[Any] | Processor) -> None:
        """Make `user` the only one that receives records; wait only for one that is ending."""
        while self.current is not None:
            if not self._ending:
                raise RuntimeError(
                    f"this consumer is {self.current.activity} already: one loop or run() at a "
                    f"time; create a second consumer of the same group for more"
                )
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        if self._closed:
            raise KafkaClosed(
                "the consumer was closed", dependency=self._dependency, operation="consume"
            )
        self.current = user
        self._began(user.retry_topics)

    def expect_release(self) -> None:
        """Note that the current user receives no more records and releases soon."""
        self._ending = self.current is not None

    def release(self) -> None:
        """Allow another user to acquire the consumer."""
        self.current = None
        self._ending = False
        waiting, self._waiting = self._waiting, []
        wake(waiting)

    def close(self) -> None:
        """Refuse every further user."""
        self._closed = True

    # --- what the current user must know

    def assigned(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Report that these partitions are assigned."""
        if isinstance(self.current, Processor):
            self.current.assigned(partitions)

    def drop(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Discard fetched records of these partitions that were not delivered yet."""
        if self.stream is not None:
            self.stream.drop(partitions)

    async def drain(self, partitions: tuple[TopicPartition, ...], timeout: float) -> None:
        """Wait until no record of these partitions is in hand, for at most `timeout` seconds."""
        if isinstance(self.current, Processor):
            await self.current.drain(partitions)
        elif self.current is not None:
            await self.current.drain(partitions, timeout)

    def hold(self, *, held: bool) -> None:
        """Deliver no further record until this is called again with False."""
        if isinstance(self.current, Processor):
            self.current.hold(held=held)
        elif self.current is not None and held:
            self.current.hold()

    def settle(self) -> None:
        """Update the progress of the partitions with what the current loop has handled."""
        if self.stream is not None:
            self.stream.settle()


class RecordStream(Generic[T]):
    """Delivers records to one loop; base of the streams of single records and of batches."""

    activity: ClassVar[str]
    """What the consumer is doing meanwhile, for errors."""

    retry_topics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, fetcher: Fetcher, use: ExclusiveUse, released: Callable[[], None]) -> None:
        self._fetcher = fetcher
        self._session = fetcher.session
        self._time = asyncio.get_running_loop().time
        self._use = use
        self._released = released
        self._next_requested: asyncio.Future[None] | None = None
        self._task: asyncio.Task[object] | None = None
        self._acquired = False
        self._ended = False
        self._finding = False
        self._last_seen: object = None

    # --- for the consumer

    def settle(self) -> None:
        """Update the progress of the partitions with what was handled."""

    def made_progress(self) -> bool:
        """Return whether a new record or batch is in hand since the last call."""
        in_hand = self._in_hand()
        before, self._last_seen = self._last_seen, in_hand[0][1][0] if in_hand else None
        return self._last_seen is not before

    def drop(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Discard undelivered records of these partitions."""
        raise NotImplementedError

    def hold(self) -> None:
        """Put undelivered records back: the fetcher delivers nothing while it is held."""
        for assigned, records in reversed(self._take_undelivered()):
            self._fetcher.put_back(assigned.partition, records)

    async def drain(
        self,
        partitions: tuple[TopicPartition, ...],
        timeout: float,
        caller: asyncio.Task[object] | None = None,
    ) -> None:
        """Drop undelivered records of these partitions; wait until those in hand are handled."""
        # There is no wait if `caller`, the task that waits, runs the loop itself: it cannot request
        # the next record meanwhile.
        self.drop(partitions)
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while self._holds(partitions) and caller is not self._task:
            left = until - loop.time()
            if left <= 0 or not self._acquired:
                break
            self._next_requested = self._next_requested or loop.create_future()
            await asyncio.wait([self._next_requested], timeout=min(_HANDLED_CHECK_INTERVAL, left))
        self.settle()

    # --- for the iterator

    async def next(self) -> T:
        """Return the next record or batch; the one in hand before is handled."""
        if self._finding:
            raise RuntimeError(
                "this iterator is in use by another task: iterate in one task, and use "
                "run(handler, concurrency=...) to handle records concurrently"
            )
        self._finding = True
        found: T | None = None
        try:
            await self._begin()
            self._session.check()  # which puts back the rest of the chunk of the record in hand
            self._finish()
            if self._next_requested is not None:
                wake([self._next_requested])
                self._next_requested = None
            # A loop that handles records without awaiting anything must not block other tasks.
            await asyncio.sleep(0)
            found = await self._find()
        finally:
            self._finding = False
            # Also if cancelled: the traceback keeps the iterator alive, so __del__ is not called.
            if found is None:
                self._release()
        if found is None:
            self._ended = True
            raise StopAsyncIteration
        return found

    def leave(self) -> None:
        """End the stream: unhandled records in hand are delivered again to the next loop."""
        self._ended = True
        self._release()

    def _finish(self) -> None:
        """Count the delivered records as handled."""
        for _, records in self._in_hand():
            records[-1]._progress.reached(records[-1].offset + 1)
        self._clear()

    def _holds(self, partitions: tuple[TopicPartition, ...]) -> bool:
        """Return whether an unhandled record of these partitions is in hand."""
        return any(
            assigned.assigned
            and assigned.partition in partitions
            and not all(record.handled for record in records)
            for assigned, records in self._in_hand()
        )

    async def _begin(self) -> None:
        self._task = asyncio.current_task()
        if self._ended:
            raise StopAsyncIteration
        if not self._acquired:
            await self._use.acquire(self)
            self._acquired = True

    def _release(self) -> None:
        """Allow another loop or run to receive records, until the next record is requested."""
        if self._acquired:
            self._acquired = False
            self.settle()
            for assigned, records in reversed(self._in_hand() + self._take_undelivered()):
                unhandled = [record for record in records if not record.handled]
                self._fetcher.return_unhandled(assigned.partition, unhandled)
            self._clear()
            self._use.release()
            self._released()

    def _poll_timeout(self) -> float:
        """Return how long to wait for records now, in seconds."""
        at, now = current_deadline(), self._time()
        if at is None:
            return beat_before(now + _POLL_INTERVAL) - now
        left = at - now
        if left <= 0:
            raise KafkaDeadlineExceeded(
                "no record came in time",
                dependency=self._fetcher.dependency,
                operation=self.activity,
            )
        return min(_POLL_INTERVAL, left)

    # --- for subclasses

    async def _find(self) -> T | None:
        """Wait for the next record or batch; return None once no more will come."""
        raise NotImplementedError

    def _in_hand(self) -> list[Chunk]:
        """Return the records that the caller has."""
        raise NotImplementedError

    def _take_undelivered(self) -> list[Chunk]:
        """Remove and return the records that were fetched and not delivered."""
        raise NotImplementedError

    def _clear(self) -> None:
        """Forget the delivered records."""
        raise NotImplementedError


class StreamIterator(Generic[T]):
    """Iterates over a stream, and ends it when the iterator is deleted."""

    __slots__ = ("_stream",)

    def __init__(self, stream: RecordStream[T]) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return await self._stream.next()

    def __del__(self) -> None:
        self._stream.leave()

    async def aclose(self) -> None:
        """End the iteration. Needed only for an iterator that is kept beyond its loop.

        Records in hand that are not `done()` are delivered again by the next loop.
        """
        self._stream.leave()


class BatchIterator(StreamIterator["list[Record]"]):
    """Iterates over lists of records; created by `consumer.batches()`."""

    __slots__ = ()


class RecordIterator(StreamIterator["Record"]):
    """Iterates over records; created by `async for record in consumer`."""

    __slots__ = ()
    _stream: SingleRecordStream

    async def __anext__(self) -> Record:
        # The hot path: one call per record while a chunk lasts.
        stream = self._stream
        for record in stream.records:
            stream.in_hand = record
            return record
        for record in stream.continue_chunk():
            stream.in_hand = record
            return record
        return await stream.next()


class SingleRecordStream(RecordStream["Record"]):
    """Delivers one record at a time."""

    activity = "iterating"

    def __init__(
        self,
        fetcher: Fetcher,
        use: ExclusiveUse,
        released: Callable[[], None],
        fetch_records: int,
    ) -> None:
        super().__init__(fetcher, use, released)
        # The records before the next reading of the clock, and then the rest of the current chunk.
        self.records: Iterator[Record] = iter(())
        self._rest: Iterator[Record] = iter(())
        self._per_check = 1
        self._checked_at = -math.inf
        self.in_hand: Record | None = None  # the record that the caller has
        self._fetch_records = fetch_records
        self._chunks: list[Chunk] = []
        self._assigned: AssignedPartition | None = None  # that of the current chunk

    def continue_chunk(self) -> Iterator[Record]:
        """Return the next records of the chunk; none if the membership must be checked first.

        A process that was stopped for a whole session finds the next record here, before any timer
        is called. Reading the clock for each record would cost as much as all else. So records
        that are handled slowly are delivered one by one, and others as many as take about a
        millisecond.
        """
        now = self._time()
        if now >= self._session.valid_until:
            return iter(())
        fast = now - self._checked_at < _MEMBERSHIP_CHECK_INTERVAL
        self._per_check = min(2 * self._per_check, _RECORDS_PER_CHECK) if fast else 1
        self._checked_at = now
        self.records = islice(self._rest, self._per_check)
        return self.records

    async def _find(self) -> Record | None:
        while not self._fetcher.closed:
            while self._chunks:
                assigned, records = self._chunks.pop(0)
                if assigned.fetchable:
                    self._assigned = assigned
                    self._rest = iter(records)
                    self.in_hand = next(self._rest)
                    return self.in_hand
            self._chunks = await self._fetcher.fetch_assigned(
                self._fetch_records, self._poll_timeout()
            )
        return None

    def settle(self) -> None:
        """Update the progress of the partition of the record in hand."""
        if self.in_hand is not None:
            self.in_hand._progress.reached(self.in_hand.offset + self.in_hand.handled)

    def drop(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Discard undelivered records of these partitions."""
        self._chunks = [chunk for chunk in self._chunks if chunk[0].partition not in partitions]
        if self._assigned is not None and self._assigned.partition in partitions:
            self.records = self._rest = iter(())

    def _in_hand(self) -> list[Chunk]:
        if self.in_hand is None or self._assigned is None:
            return []
        return [(self._assigned, [self.in_hand])]

    def _take_undelivered(self) -> list[Chunk]:
        rest, chunks = [*self.records, *self._rest], self._chunks
        self.records = self._rest = iter(())
        self._chunks = []
        return chunks if self._assigned is None else [(self._assigned, rest), *chunks]

    def _clear(self) -> None:
        self.in_hand = self._assigned = None


class BatchStream(RecordStream["list[Record]"]):
    """Delivers one batch at a time."""

    activity = "iterating over batches"

    def __init__(
        self,
        fetcher: Fetcher,
        use: ExclusiveUse,
        released: Callable[[], None],
        max_records: int,
        max_wait: float,
    ) -> None:
        super().__init__(fetcher, use, released)
        self._max_records = max_records
        self._max_wait = max_wait
        self._gathered: list[Chunk] = []
        self._batch: list[Chunk] = []

    async def _find(self) -> list[Record] | None:
        while not self._fetcher.closed:
            await self._gather()
            self._session.check()  # which puts back what was gathered
            if self._gathered and not self._fetcher.closed:
                self._batch, self._gathered = self._gathered, []
                return [record for _, records in self._batch for record in records]
        return None

    async def _gather(self) -> None:
        """Wait for records, and then for more of them within `max_wait`."""
        loop = asyncio.get_running_loop()
        until: float | None = None
        while not self._fetcher.closed:
            count = sum(len(records) for _, records in self._gathered)
            if count and until is None:
                until = min(loop.time() + self._max_wait, current_deadline() or math.inf)
            left = (
                self._poll_timeout() if until is None else min(_POLL_INTERVAL, until - loop.time())
            )
            if count >= self._max_records or left <= 0:
                return
            # If this is cancelled, the gathered records stay for the next call.
            found = await self._fetcher.fetch_assigned(self._max_records - count, left)
            self._gathered += found  # not before: a rebalance may have dropped records meanwhile

    def drop(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Discard undelivered records of these partitions; the batch in hand stays."""
        self._gathered = [each for each in self._gathered if each[0].partition not in partitions]

    def _in_hand(self) -> list[Chunk]:
        return self._batch

    def _take_undelivered(self) -> list[Chunk]:
        chunks, self._gathered = self._gathered, []
        return chunks

    def _clear(self) -> None:
        self._batch = []
