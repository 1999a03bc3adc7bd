"""Passes batches to the aiokafka producer in service, one at a time for each partition."""

from __future__ import annotations

import asyncio
import functools
import math
from typing import TYPE_CHECKING, Any

from aiokafka import errors as kafka_errors

from resilient_io.health import Cause
from resilient_io.histogram import Latencies
from resilient_io.tasks import wake
from resilient_io.wakeups import can_wake, deliver

from ..driver import DriverClosed
from ..error_codes import InvalidRecordError
from ..errors import classify_error
from .batch import (
    attempts_of,
    build_batch,
    complete_batch,
    fail_batch,
    is_idempotent,
    newest_driver_batch,
    put_back,
    roll_back_sequence,
)
from .partition_queue import SizeLimit, fail_waiting

if TYPE_CHECKING:
    from aiokafka.structs import RecordMetadata

    from resilient_io.health import Dependency
    from resilient_io.wakeups import Answer

    from ..driver import ProducerDriver
    from ..probe import KafkaProbe
    from ..supervisor import Supervisor
    from .batch import InFlightBatch
    from .buffer import BufferMemory
    from .errors import DeliveryErrors
    from .metadata import ProducerMetadata
    from .partition_queue import PartitionQueue
    from .records import DeliveryFailure
    from .transaction_state import TransactionState


# Seconds for which the offset of the wall clock from the loop's clock is reused.
_CLOCK_INTERVAL = 1.0

_FIRST_LEADER_PAUSE = 0.1
_MAX_LEADER_PAUSE = 0.5  # seconds between two requests for the leader of a partition that has none
# Seconds between two checks of which leaders answered: a little less than between two probes.
_ANSWER_INTERVAL = 0.9

_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)

_OF_ONE_RECORD = (InvalidRecordError, kafka_errors.InvalidTimestampError)
"""The broker rejects a batch as a whole because of one of its records."""

_MAX_SEARCH = 1024  # the size of a batch from which the search for a rejected record is over

_NO_ANSWER = "the record was sent, and the connection to Kafka was lost before an answer came"
_CLOSED = "the record was sent, and the producer was closed before an answer came"


class Sender:
    """Sends what waits in the partition queues whenever an aiokafka producer can take it."""

    def __init__(
        self,
        *,
        supervisor: Supervisor[ProducerDriver],
        metadata: ProducerMetadata,
        buffer: BufferMemory,
        health: Dependency,
        errors: DeliveryErrors,
        probe: KafkaProbe,
        transaction: TransactionState,
    ) -> None:
        self.in_flight: dict[PartitionQueue, InFlightBatch] = {}
        self.batches = 0
        self.latencies = Latencies()
        self._supervisor = supervisor
        self._metadata = metadata
        self._buffer = buffer
        self._health = health
        self._errors = errors
        self._probe = probe
        self._transaction = transaction
        self._loop = asyncio.get_running_loop()
        self._wakes_directly = can_wake(self._loop)
        self._context = supervisor.context()
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._on_hold: list[PartitionQueue] = []
        self._leader_search: asyncio.Task[None] | None = None
        self._unusable: ProducerDriver | None = None
        self._replace_for: Exception | None = None
        self._answered: dict[int | None, None] = {}  # nodes
        self._checked_answers_at = -math.inf
        self._clock_offset = 0.0
        self._clock_offset_until = -math.inf
        self._settled_waiters: list[asyncio.Future[None]] = []

    # --- sending

    def send_from(self, queue: PartitionQueue) -> None:
        """Send the front of a queue that has no batch in flight, or put the queue on hold."""
        driver = self._supervisor.driver
        if (
            driver is None
            or driver is self._unusable
            or not self._transaction.sendable
            or self._replace_for is not None
            or not self._health.available
        ):
            self._hold(queue)
            return
        if not self._metadata.has_leader(queue):
            self._hold(queue)
            if self._leader_search is None:
                self._leader_search = self._loop.create_task(
                    self._find_leaders(), name="resilient-io kafka leaders", context=self._context
                )
            return
        now = self._loop.time()
        if now >= self._clock_offset_until:
            self._read_clock(driver, now)
        batch, freed = build_batch(queue, driver, driver.create_batch(), now, self._clock_offset)
        if freed:
            self._buffer.release(freed)
            self.notify_settled()
        if not batch.count:
            queue.idle = True
            return
        self.in_flight[queue] = batch
        topic = self._metadata.topics.get(queue.topic)
        if topic is not None and topic.sticky is queue:
            topic.switch_sticky()
        self.batches += 1
        task = self._loop.create_task(
            self._send(batch, driver), name="resilient-io kafka batch", context=self._context
        )
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    def resume(self) -> None:
        """Try again to send from the queues on hold."""
        on_hold, self._on_hold = self._on_hold, []
        for queue in on_hold:
            queue.on_hold = False
            self.send_from(queue)

    def _hold(self, queue: PartitionQueue) -> None:
        if not queue.on_hold:
            queue.on_hold = True
            self._on_hold.append(queue)

    def _read_clock(self, driver: ProducerDriver, now: float) -> None:
        # Time comes from the loop only, so the wall clock is read where aiokafka reads it.
        read: Any = driver.create_batch().append(timestamp=None, key=None, value=b"")
        self._clock_offset = read.timestamp / 1000.0 - now
        self._clock_offset_until = now + _CLOCK_INTERVAL

    async def _send(self, batch: InFlightBatch, driver: ProducerDriver) -> None:
        tp = batch.queue.tp
        try:
            future = await driver.send_batch(batch.builder, tp.topic, partition=tp.partition)
        # The boundary to the driver, which also uses assertions. It accepted nothing if it raises.
        except Exception as error:  # noqa: BLE001
            self._not_accepted(batch, error)
        else:
            batch.driver_batch = newest_driver_batch(driver, tp)
            future.add_done_callback(functools.partial(self._answered_with, batch))

    # --- partitions without a leader

    async def _find_leaders(self) -> None:
        """Refresh metadata until no queue on hold lacks a leader, or the driver is gone."""
        pause = _FIRST_LEADER_PAUSE
        try:
            while leaderless := self._leaderless():
                driver = self._supervisor.driver
                if driver is None:
                    return
                try:
                    answered = await self._metadata.refresh(driver)
                except DriverClosed:
                    return
                if answered:
                    self._fail_deleted(leaderless)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_LEADER_PAUSE)
        finally:
            self._leader_search = None
        self.resume()

    def _leaderless(self) -> list[PartitionQueue]:
        """Return the queues on hold without a leader; release those in which nothing waits."""
        on_hold, self._on_hold = self._on_hold, []
        for queue in on_hold:
            if queue.entries:
                self._on_hold.append(queue)
            else:
                queue.on_hold, queue.idle = False, True
        return [queue for queue in self._on_hold if not self._metadata.has_leader(queue)]

    def _fail_deleted(self, leaderless: list[PartitionQueue]) -> None:
        """Fail what waits for topics that Kafka said several times not to have."""
        names = dict.fromkeys(q.topic for q in leaderless if self._metadata.is_deleted(q.topic))
        for name in names:
            fail_waiting(
                [queue for queue in self._metadata.queues if queue.topic == name],
                self._errors,
                self._buffer,
                self._errors.rejections(kafka_errors.UnknownTopicOrPartitionError(name)),
            )
        if names:
            self._metadata.forget(list(names))
            self.notify_settled()

    # --- the outcome of a batch

    def _answered_with(self, batch: InFlightBatch, future: asyncio.Future[RecordMetadata]) -> None:
        if self.in_flight.get(batch.queue) is not batch:
            if not future.cancelled():
                future.exception()
            return  # completed when its driver ended
        if future.cancelled():
            self._failed(batch, kafka_errors.KafkaError("aiokafka dropped the batch"))
            return
        error = future.exception()
        if error is None:
            self._note_answer(batch.queue)
            self.latencies.record(self._loop.time() - batch.sent_at)
            answers: list[Answer] | None = [] if self._wakes_directly else None
            complete_batch(batch, future.result(), self._errors, answers)
            if batch.queue.record_limit is not None:
                records = 2 * batch.queue.record_limit
                batch.queue.record_limit = None if records >= _MAX_SEARCH else records
            limit = batch.queue.size_limit
            if limit is not None and limit.ends_after(batch.size, self._loop.time()):
                batch.queue.size_limit = None
            self._finish(batch)
            if answers:
                deliver(self._loop, answers)
        elif isinstance(error, Exception):
            self._failed(batch, error)

    def _note_answer(self, queue: PartitionQueue) -> None:
        """Notify the probe when all leaders answered recently.

        A leader that is silent must be found by the probe, however often the others answer.
        """
        self._answered[self._metadata.leader_of(queue)] = None
        now = self._loop.time()
        if now - self._checked_answers_at >= _ANSWER_INTERVAL:
            self._checked_answers_at = now
            if self._metadata.leaders() <= self._answered.keys():
                self._probe.note_reply()
            self._answered.clear()

    def _not_accepted(self, batch: InFlightBatch, error: Exception) -> None:
        """Put a batch back that aiokafka did not accept; the next driver gets it."""
        if self.in_flight.get(batch.queue) is not batch:
            return
        if isinstance(error, DriverClosed):
            self._unusable = batch.driver
        elif not isinstance(error, kafka_errors.KafkaTimeoutError):
            self._replace(batch.driver, error)
        self._finish(batch, freed=put_back(batch))

    def _failed(self, batch: InFlightBatch, error: Exception) -> None:
        errors = self._errors
        if isinstance(error, DriverClosed):
            self._unusable = batch.driver
        if isinstance(error, DriverClosed) and not error.sent:
            self._finish(batch, freed=put_back(batch))
            return
        if isinstance(error, _TOO_LARGE) and batch.count > 1:
            self._split(batch, error)
            return
        if isinstance(error, _OF_ONE_RECORD) and batch.count > 1:
            self._search_record(batch, error)
            return
        meaning = classify_error(error)
        only_attempt = attempts_of(batch.driver_batch) == 1
        if meaning.kind == "permanent" or (meaning.cause is Cause.FENCED and only_attempt):
            fail_batch(batch, errors, errors.rejections(error))
        elif (
            only_attempt
            and meaning.kind in ("refused", "fatal")
            and isinstance(error, kafka_errors.BrokerResponseError)
        ):
            # The answer to the only attempt says that the batch was not written.
            why = errors.describe(error)
            fail_batch(batch, errors, lambda began, call: errors.refused(began, why, call))
        else:
            lost = isinstance(error, DriverClosed)
            why = _NO_ANSWER if lost else errors.describe(error)
            fail_batch(batch, errors, lambda began, call: errors.unknown(began, why, call))
        if not isinstance(error, DriverClosed):
            if meaning.fatal:
                self._replace(batch.driver, error)
            else:
                self._repair_sequence(batch, error)
        self._finish(batch)

    def _split(self, batch: InFlightBatch, error: Exception) -> None:
        """Send a batch that is too large for the topic again, in halves: nothing was written."""
        self._repair_sequence(batch, error)
        queue = batch.queue
        if queue.size_limit is None:
            size = batch.builder.size()
            queue.size_limit = SizeLimit(size, size)
        queue.size_limit.lower(batch.size, self._loop.time())
        self._finish(batch, freed=put_back(batch))

    def _search_record(self, batch: InFlightBatch, error: Exception) -> None:
        """Send half of a rejected batch again, so that only the record at fault fails."""
        self._repair_sequence(batch, error)
        batch.queue.record_limit = batch.count // 2
        self._finish(batch, freed=put_back(batch))

    def _repair_sequence(self, batch: InFlightBatch, error: Exception) -> None:
        """Have later batches of the partition numbered as the broker expects."""
        if not is_idempotent(batch.driver):
            return
        refused = classify_error(error).kind in ("permanent", "refused")
        if refused and attempts_of(batch.driver_batch) == 1:
            roll_back_sequence(batch.driver, batch.queue.tp, batch.count)
        elif self._replace_for is None:
            # It is unknown which attempts the broker saw: replace the driver once nothing is in
            # flight.
            self._replace_for = error

    def _finish(self, batch: InFlightBatch, *, freed: int | None = None) -> None:
        """Continue with the next batch of the queue."""
        queue = batch.queue
        self.in_flight.pop(queue, None)
        if self._replace_for is not None and not self.in_flight:
            error, self._replace_for = self._replace_for, None
            self._replace(batch.driver, error)
        if queue.entries:
            self.send_from(queue)
        else:
            queue.idle = True
        size = batch.size if freed is None else freed
        if size:
            self._buffer.release(size)
        self.notify_settled()

    def notify_settled(self) -> None:
        """Wake the tasks that wait for records to be settled."""
        if self._settled_waiters:
            waiters, self._settled_waiters = self._settled_waiters, []
            wake(waiters)

    async def wait_settled(self) -> None:
        """Wait until more records are settled."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._settled_waiters.append(waiter)
        await waiter

    def _replace(self, driver: ProducerDriver, error: Exception) -> None:
        """Have a driver replaced, and pass nothing more to it."""
        self._unusable = driver
        self._supervisor.driver_failed(driver, error)

    def driver_closed(self, driver: ProducerDriver, error: BaseException | None) -> None:
        """Settle the batches of a closed driver: its sockets are closed, no answer will come."""
        self._replace_for = None
        ended = DriverClosed("it ended", sent=True)
        ended.__cause__ = error
        for batch in list(self.in_flight.values()):
            if batch.driver is driver:
                attempts = 0 if batch.driver_batch is None else attempts_of(batch.driver_batch)
                self._failed(batch, DriverClosed("it ended") if attempts == 0 else ended)

    def fail_in_flight(self) -> list[DeliveryFailure]:
        """Fail what is in flight, with an unknown outcome; return the failures."""
        failures: list[DeliveryFailure] = []
        for batch in self.in_flight.values():
            failures += fail_batch(
                batch,
                self._errors,
                lambda began, call: self._errors.unknown(began, _CLOSED, call),
            )
        return failures

    async def aclose(self) -> None:
        """Cancel all tasks."""
        tasks = [*self._tasks]
        if self._leader_search is not None:
            tasks.append(self._leader_search)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
