"""Accepts records: chooses their partition queue, accounts for their bytes, schedules the sender.

A record that can be accepted at once takes `append`; any other takes `append_when_ready`.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from aiokafka.errors import IllegalOperation

from resilient_io.deadlines import current_deadline, earlier
from resilient_io.errors import ResilientIOError
from resilient_io.health import Cause

from .batch import ChunkSlice
from .partition_queue import BulkChunk, create_placeholder, fail_waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka.structs import RecordMetadata

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from .batch import InFlightBatch
    from .buffer import BufferMemory
    from .errors import DeliveryErrors
    from .metadata import ProducerMetadata, TopicPartitions
    from .options import DeliverySettings
    from .partition_queue import Entry, PartitionQueue
    from .records import DeliveryFailure, Headers
    from .sender import Sender
    from .transaction_state import OpenTransaction, TransactionState

# Bytes of records that are put into batches in one iteration of the event loop.
_BYTES_PER_ITERATION = 2 * 1024 * 1024
# Minimum seconds between two searches for cancelled records when the buffer is full.
_SWEEP_INTERVAL = 0.1
_EXPIRY_INTERVAL = 0.005  # minimum seconds between two searches for expired records
# Added to it for each record held, so that searching never takes more than a few per cent.
_EXPIRY_INTERVAL_PER_RECORD = 1e-6

_NO_ANSWER = "the record was sent, and no answer came in time"


@dataclass(slots=True)
class WaitingCall:
    """One call that has to wait before its records are accepted."""

    operation: str
    began: float
    until: float | None
    transaction: OpenTransaction | None


class Accumulator:
    """Holds the records of a producer until they are sent."""

    def __init__(
        self,
        *,
        metadata: ProducerMetadata,
        buffer: BufferMemory,
        sender: Sender,
        health: Dependency,
        errors: DeliveryErrors,
        transaction: TransactionState,
        policy: RetryPolicy,
        settings: DeliverySettings,
        max_request_size: int,
        max_batch_size: int,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.buffer = buffer
        self.sender = sender
        self.errors = errors
        self.transaction = transaction
        self.settings = settings
        self.max_request_size = max_request_size
        self.closed = False
        self.expiry = Expiry(
            loop=self.loop,
            queues=metadata.queues,
            sender=sender,
            buffer=buffer,
            errors=errors,
            health=health,
            response_timeout=policy.response_timeout,
        )
        self._metadata = metadata
        self._topics = metadata.topics
        self._health = health
        self._waits_while_down = policy.while_down == "wait"
        self._deadline = policy.deadline
        self._linger = settings.linger
        self._max_batch_size = max_batch_size
        self._linger_bytes = max_batch_size if settings.linger else math.inf
        self._lingering: dict[PartitionQueue, asyncio.TimerHandle] = {}
        self._due: list[PartitionQueue] = []
        self._scheduled = False
        self._swept_at = -math.inf
        self._time = self.loop.time
        self._create_future: Callable[[], asyncio.Future[RecordMetadata]]
        self._create_future = partial(asyncio.Future, loop=self.loop)

    # --- accepting a record

    def append(  # noqa: C901, PLR0912, PLR0917 (the hottest path: calls and keywords cost)
        self,
        name: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: int | None,
        headers: Headers | None,
        size: int,
        lifetime: float,
    ) -> asyncio.Future[RecordMetadata] | None:
        """Accept a record if that needs no waiting; otherwise return None."""
        topic = self._topics.get(name)
        if topic is None or not self._health.available:
            return None
        if partition is not None:
            queue = topic.queues.get(partition)
            if queue is None:
                return None
        elif key is None:
            queue = topic.sticky
            if queue is None or queue.waiting_bytes >= topic.sticky_limit:
                queue = topic.choose(None)
        else:
            queue = topic.queue_by_key.get(key)
            if queue is None:
                queue = topic.choose(key)
        buffer = self.buffer
        allowance = buffer.allowance - size
        if allowance < 0:
            return None
        now = self._time()
        until = now + lifetime
        bound = current_deadline()
        if bound is not None and bound < until:
            if bound <= now:
                return None
            until = bound
        buffer.allowance = allowance
        if until < self.expiry.next_check:
            self.expiry.check_at(until)
        future = self._create_future()
        queue.entries.append((future, key, value, headers, timestamp, until, size, now))
        queue.waiting_bytes += size
        if queue.idle:
            self._schedule(queue)
        elif queue.waiting_bytes >= self._linger_bytes:
            self._end_linger(queue)
        return future

    async def append_when_ready(  # noqa: PLR0917 (the parameters of `append`)
        self,
        name: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: int | None,
        headers: Headers | None,
        size: int,
        lifetime: float,
        operation: str,
    ) -> asyncio.Future[RecordMetadata]:
        """Accept a record as soon as the topic is known and there is room.

        If cancelled, the record is not sent.
        """
        call = self.begin_call(operation)
        try:
            topic = await self.find_topic(name, call)
            if partition is not None and partition not in topic.queues:
                await self._metadata.refresh_within(call.until)
                topic.queue_of(partition)
            await self.reserve(size, call)
        except ResilientIOError as error:
            self.errors.count(error)
            raise
        chosen = False
        try:
            queue = topic.choose(key) if partition is None else topic.queues[partition]
            chosen = True
        finally:
            if not chosen:  # the user's partitioner raised
                self.buffer.release(size)
        now = self._time()
        # The time of `send_and_wait` counts from the call, that of a record from here.
        until = (call.began if operation == "send_and_wait" else now) + lifetime
        bound = current_deadline()
        if bound is not None and bound < until:
            until = bound
        future = self._create_future()
        self.enqueue(queue, (future, key, value, headers, timestamp, until, size, now), size, until)
        return future

    def enqueue(self, queue: PartitionQueue, entry: Entry, size: int, until: float) -> None:
        """Put an entry, for which room was reserved, into its queue."""
        if until < self.expiry.next_check:
            self.expiry.check_at(until)
        queue.entries.append(entry)
        queue.waiting_bytes += size
        if queue.idle:
            self._schedule(queue)
        elif queue.waiting_bytes >= self._linger_bytes:
            self._end_linger(queue)

    # --- calls that wait

    @property
    def available(self) -> bool:
        """Whether calls are accepted as far as Kafka's health is concerned."""
        return self._health.available or self._waits_while_down

    def begin_call(self, operation: str, timeout: float | None = None) -> WaitingCall:
        """Return a new call."""
        began = self._time()
        timeout = self._deadline if timeout is None else timeout
        until = earlier(None if timeout is None else began + timeout, current_deadline())
        return WaitingCall(operation, began, until, self.transaction.current)

    def check_call(self, call: WaitingCall) -> None:
        """Raise if a call must not wait."""
        if self.closed:
            raise self.errors.closed(operation=call.operation)
        if not self.available:
            raise self.errors.down(call.began, call.operation)
        if call.until is not None and call.until <= self._time():
            raise self.errors.too_late(call.began, call.operation)

    async def find_topic(self, name: str, call: WaitingCall) -> TopicPartitions:
        """Return a topic once its partitions are known."""
        self.check_call(call)
        topic = self._topics.get(name)
        if topic is None:
            try:
                topic = await self._metadata.find(name, call.until)
            except ResilientIOError as error:
                error.operation = call.operation  # a copy: the lookup is shared
                raise
            self.check_call(call)
        if topic is None:
            late = self.errors.too_late(call.began, call.operation)
            late.add_note(f"the partitions of topic {name!r} are not known yet")
            raise late
        return topic

    async def reserve(self, size: int, call: WaitingCall) -> None:
        """Reserve buffer memory as soon as there is enough."""
        # After each burst the event loop must run: that sends the first batches.
        await asyncio.sleep(0)
        self.check_call(call)
        if not self.buffer.has_room(size) and self._time() - self._swept_at >= _SWEEP_INTERVAL:
            self._swept_at = self._time()
            self.expiry.check_now()  # cancelled records may occupy the room
        if not await self.buffer.reserve(size, call.until):
            if self.closed:
                raise self.errors.closed(operation=call.operation)
            raise self.errors.overloaded(call.began, self.buffer.limit, call.operation)
        if self.closed or not self.available or self.transaction.current is not call.transaction:
            self.buffer.release(size)
            self.check_call(call)
            raise IllegalOperation("the transaction ended while the call waited for buffer memory")

    # --- scheduling the sender

    def _schedule(self, queue: PartitionQueue) -> None:
        """Have an idle queue sent: at the end of this iteration of the loop, or after lingering."""
        queue.idle = False
        if self._linger and queue.waiting_bytes < self._max_batch_size:
            self._lingering[queue] = self.loop.call_later(self._linger, self._end_linger, queue)
        else:
            self._make_due(queue)

    def _end_linger(self, queue: PartitionQueue) -> None:
        timer = self._lingering.pop(queue, None)
        if timer is not None:  # otherwise it is due already, or has a batch in flight
            timer.cancel()
            self._make_due(queue)

    def _make_due(self, queue: PartitionQueue) -> None:
        self._due.append(queue)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._send_due)

    def _send_due(self) -> None:
        due, self._due = self._due, []
        sent = 0
        send_from = self.sender.send_from
        for place, queue in enumerate(due):
            sent += queue.waiting_bytes
            send_from(queue)
            if sent >= _BYTES_PER_ITERATION:
                self._due = due[place + 1 :] + self._due
                break
        self._scheduled = bool(self._due)
        if self._scheduled:
            self.loop.call_soon(self._send_due)
        self.buffer.refill()

    # --- the end

    async def flush(self, transaction: OpenTransaction | None = None) -> None:
        """Send without lingering, and wait until all records accepted so far have an outcome."""
        self._end_all_lingers()
        targets = [(queue, queue.end) for queue in self._metadata.queues]
        while True:
            targets = [(queue, end) for queue, end in targets if queue.settled_to < end]
            if not targets or (transaction is not None and transaction.abort_reason is not None):
                return
            await self.sender.wait_settled()

    def fail_waiting(self, make_error: Callable[[float, str], Exception]) -> list[DeliveryFailure]:
        """Fail every record that waits, and return the failures. None of them was sent."""
        failures = fail_waiting(self._metadata.queues, self.errors, self.buffer, make_error)
        self.sender.notify_settled()
        return failures

    def count_lost(self, error: Exception, records: int = 1) -> None:
        """Count records that failed before they were queued; wake tasks in `flush()`.

        A transaction is aborted then, so its commit must not wait for more records.
        """
        self.errors.count_lost(error, records)
        self.sender.notify_settled()

    def close(self) -> None:
        """Accept no more records."""
        self.closed = True
        self.buffer.close()
        self._end_all_lingers()

    def cancel_timers(self) -> None:
        """Cancel all timers."""
        self.expiry.close()
        for timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()

    def _end_all_lingers(self) -> None:
        for queue in list(self._lingering):
            self._end_linger(queue)


class Expiry:
    """Fails records whose deadline has passed. One timer serves all of them."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        queues: list[PartitionQueue],
        sender: Sender,
        buffer: BufferMemory,
        errors: DeliveryErrors,
        health: Dependency,
        response_timeout: float,
    ) -> None:
        self.next_check = math.inf
        self._loop = loop
        self._queues = queues
        self._sender = sender
        self._buffer = buffer
        self._errors = errors
        self._health = health
        self._response_timeout = response_timeout
        self._placeholder = create_placeholder(loop)
        self._timer: asyncio.TimerHandle | None = None

    def check_at(self, until: float) -> None:
        """Check no later than at this loop time."""
        if self._timer is not None:
            self._timer.cancel()
        self.next_check = until
        self._timer = self._loop.call_at(until, self._check)

    def check_now(self) -> None:
        """Fail what is late and drop what was cancelled."""
        if self._timer is not None:
            self._timer.cancel()
        self._check()

    def close(self) -> None:
        """Check no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.next_check = None, -math.inf

    def _check(self) -> None:
        self._timer, self.next_check = None, math.inf
        now = self._loop.time()
        earliest, records = math.inf, 0
        for queue in self._queues:
            if queue.entries:
                records += len(queue.entries)
                earliest = min(earliest, self._check_waiting(queue, now))
        for batch in self._sender.in_flight.values():
            if not batch.settled:
                records += batch.count
                earliest = min(earliest, self._check_in_flight(batch, now))
        if earliest < math.inf:
            interval = _EXPIRY_INTERVAL + records * _EXPIRY_INTERVAL_PER_RECORD
            self.check_at(max(earliest, now + interval))
        self._sender.notify_settled()

    def _check_waiting(self, queue: PartitionQueue, now: float) -> float:
        """Fail late records of a queue; return the earliest deadline of the others."""
        earliest, freed = math.inf, 0
        kept: list[Entry] = []
        placeholder = self._placeholder
        for entry in queue.entries:
            if isinstance(entry, BulkChunk):
                if entry.deadline > now and not entry.bulk.cancelled:
                    kept.append(entry)
                    earliest = min(earliest, entry.deadline)
                    continue
                freed += entry.waiting_bytes
                rest = entry.drain()
                if not entry.bulk.cancelled:
                    error = self._errors.too_late(entry.sent_at, "send_many")
                    self._errors.count_lost(error, len(rest))
                    entry.bulk.fail(queue.tp, rest, error)
            elif entry is not placeholder:
                future, until = entry[0], entry[5]
                if until > now and not future.done():
                    kept.append(entry)
                    earliest = min(earliest, until)
                    continue
                freed += entry[6]
                if not future.done():
                    self._errors.fail(future, self._errors.too_late(entry[7]))
            kept.append(placeholder)
        if freed:
            queue.replace(kept, placeholder)
            queue.waiting_bytes -= freed
            self._buffer.release(freed)
        return earliest

    def _check_in_flight(self, batch: InFlightBatch, now: float) -> float:
        """Fail late records of a batch; return the earliest deadline of the others."""
        earliest = math.inf
        if now - batch.sent_at >= self._response_timeout:
            self._health.failed(Cause.TIMED_OUT, "no answer to a batch of records in time")
        for entry in batch.entries:
            if isinstance(entry, ChunkSlice):
                if entry.settled:
                    continue
                chunk = entry.chunk
                if chunk.deadline > now:
                    earliest = min(earliest, chunk.deadline)
                    continue
                error = self._errors.unknown(chunk.sent_at, _NO_ANSWER, "send_many")
                self._errors.count_lost(error, entry.count)
                entry.fail(batch.queue.tp, error)
            elif not entry[0].done():
                if entry[5] > now:
                    earliest = min(earliest, entry[5])
                else:
                    self._errors.fail(entry[0], self._errors.unknown(entry[7], _NO_ANSWER))
        if earliest == math.inf:
            batch.settle()
        return earliest
