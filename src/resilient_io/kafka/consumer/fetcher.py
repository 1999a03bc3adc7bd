"""Fetches records from the aiokafka instance in service, and survives its failures."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError

from resilient_io.errors import ConfigurationError
from resilient_io.health import State
from resilient_io.retry import Backoff
from resilient_io.tasks import wake

from ..driver import DriverClosed
from ..errors import (
    classify_error,
    is_connection_refusal,
    unavailable_because_of,
    without_secrets,
)
from ..record import UnreadableRecord
from ..topic_ids import missing_topics
from . import internals
from .assignment import AssignedPartition
from .fetched import fetched_partitions, raise_fetch_error, take_fetched
from .positions import GroupOffsets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiokafka import TopicPartition

    from resilient_io.health import Dependency

    from ..connect import KafkaTarget
    from ..driver import ConsumerDriver
    from ..record import PartitionProgress, Record
    from ..stats import ConsumerCounters
    from ..supervisor import Supervisor
    from .assignment import Assignment
    from .membership import SessionWatch
    from .positions import Positions
    from .topics import TopicDetector

    Deserializer = Callable[[bytes], Any]

_MAX_FAILURES = 5
"""Consecutive failures after which an instance is replaced, even if each seemed temporary."""

_BACKOFF = 0.1
_BACKOFF_CAP = 10.0

_METADATA_TIMEOUT = 5.0
_TOPICS_INTERVAL = 0.5  # seconds between two checks that topics exist
_CREATION_TIME = 5.0
"""Seconds for which a topic may be missing: it may just have been created."""


class Fetcher:
    """Delivers records of the assigned partitions that are not paused.

    It is the `RecordSource` of `run`. Without a group, no listener reports the partitions: then it
    discovers them itself.
    """

    def __init__(
        self,
        health: Dependency,
        *,
        target: KafkaTarget,
        supervisor: Supervisor[ConsumerDriver],
        assignment: Assignment,
        positions: Positions,
        topics: TopicDetector,
        drop: Callable[[tuple[TopicPartition, ...]], None],
        deserializer: RecordDeserializer,
        has_group: bool,
        session: SessionWatch,
        counters: ConsumerCounters,
    ) -> None:
        self.dependency = health.name
        self.closed = False
        self.held = False  # while the membership in the group is in doubt
        self._health = health
        self._target = target
        self._supervisor = supervisor
        self._assignment = assignment
        self._positions = positions
        self._topics = topics
        self._drop = drop
        self._deserializer = deserializer
        self._has_group = has_group
        self.session = session
        self._counters = counters
        self._instance: ConsumerDriver | None = None
        self._discovered: frozenset[TopicPartition] | None = None
        self._pause_reasons: dict[TopicPartition, list[str]] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._milestone: asyncio.Future[None] | None = None  # done at so many received records
        self._milestone_at = 0
        self._backoff = Backoff(_BACKOFF, _BACKOFF_CAP)
        self._backoff_delay = 0.0
        self._first = 0  # index of the assigned partition whose turn it is

    # --- state

    def use_instance(self, instance: ConsumerDriver | None) -> None:
        """Fetch from this instance (None: from none) from now on."""
        self._instance = instance
        self._backoff.reset()
        self.wake()

    def hold(self, *, held: bool) -> None:
        """Suspend delivery, or resume it. Kafka is polled meanwhile."""
        self.held = held
        self.wake()

    def close(self) -> None:
        """Deliver no more records."""
        self.closed = True
        self.wake()

    def received(self, count: int) -> asyncio.Future[None]:
        """Return a future that is done when `count` more records have been received."""
        if self._milestone is None or self._milestone.done():
            self._milestone = asyncio.get_running_loop().create_future()
            self._milestone_at = self._counters.records + count
        return self._milestone

    def wake(self) -> None:
        """Wake all tasks that wait for records, to check again."""
        waiting, self._waiting = self._waiting, []
        wake(waiting)

    def pause(self, partitions: Iterable[TopicPartition], reason: str) -> None:
        """Stop fetching from partitions, even after a rebalance, until `resume` is called."""
        for partition in partitions:
            reasons = self._pause_reasons.setdefault(partition, [])
            if reason not in reasons:
                reasons.append(reason)

    def resume(self, partitions: Iterable[TopicPartition], reason: str) -> None:
        """Remove a reason for pausing; a reason that was never given is ignored."""
        for partition in partitions:
            reasons = self._pause_reasons.get(partition)
            if reasons is not None and reason in reasons:
                reasons.remove(reason)
                if not reasons:
                    del self._pause_reasons[partition]
        self.wake()

    def paused(self, partition: TopicPartition) -> bool:
        """Return whether a partition is paused."""
        return partition in self._pause_reasons

    def paused_for(self, reason: str) -> tuple[TopicPartition, ...]:
        """Return the assigned partitions that are paused for a reason."""
        reasons = self._pause_reasons
        return tuple(
            each for each in self._assignment.partitions if reason in reasons.get(each, ())
        )

    def position(self, assigned: AssignedPartition) -> int | None:
        """Return the offset of the next record that is delivered; None while it is unknown."""
        if assigned.resetting:
            return None
        return assigned.buffered[0].offset if assigned.buffered else assigned.position

    def assignment(self) -> tuple[TopicPartition, ...]:
        """Return the assigned partitions, in a fixed order."""
        return self._assignment.partitions

    def progress(self, partition: TopicPartition) -> PartitionProgress | None:
        """Return the progress of a partition, or None if it is not assigned."""
        assigned = self._assignment.get(partition)
        return None if assigned is None else assigned.progress

    def check_membership(self) -> None:
        """Deliver nothing more if the partitions may belong to another member by now."""
        self.session.check()

    def put_back(self, partition: TopicPartition, records: list[Record]) -> bool:
        """Take back undelivered records to deliver them first; return whether they were kept."""
        assigned = self._assignment.get(partition)
        if assigned is None or not records or records[0]._progress is not assigned.progress:
            return False
        assigned.buffered[:0] = records
        return True

    def return_unhandled(self, partition: TopicPartition, records: list[Record]) -> None:
        """Take back delivered records that were not handled, to deliver them again."""
        if self.put_back(partition, records):
            self._counters.returned += len(records)

    # --- fetching

    async def require_topics(self, topics: tuple[str, ...]) -> None:
        """Raise ConfigurationError if one of these topics does not exist; wait for Kafka."""
        loop = asyncio.get_running_loop()
        until: float | None = None
        while not self.closed:
            self._raise_failure()
            missing: list[str] | None = None
            if self._instance is not None:
                with contextlib.suppress(KafkaError, DriverClosed, TimeoutError):
                    async with asyncio.timeout(_METADATA_TIMEOUT):
                        missing = await missing_topics(self._instance, topics)
            if missing == []:
                return
            if missing and until is None:
                until = loop.time() + _CREATION_TIME
            if missing and until is not None and loop.time() >= until:
                names = ", ".join(map(repr, missing))
                raise ConfigurationError(
                    f"missing topics: {names}. Create each retry topic, with as many partitions as "
                    f"the topic of its records"
                )
            await self._wait_for_arrival(_TOPICS_INTERVAL)

    async def fetch(self, max_records: int, max_wait: float) -> dict[TopicPartition, list[Record]]:
        """Return the next records by partition; see `fetch_assigned`."""
        found = await self.fetch_assigned(max_records, max_wait)
        return {assigned.partition: records for assigned, records in found}

    async def fetch_assigned(
        self, max_records: int, max_wait: float
    ) -> list[tuple[AssignedPartition, list[Record]]]:
        """Return the next records of the assigned partitions that are not paused."""
        # Each call counts as a poll for `max_poll_interval_ms`, even if all partitions are paused.
        # An outage raises no error: no records are returned. Cancelling loses no record.
        loop = asyncio.get_running_loop()
        until = loop.time() + max_wait
        while not self.closed:
            failures = self._backoff.failures
            found = await self._take(max_records)
            if found:
                return found
            left = until - loop.time()
            if left <= 0:
                break
            if self._backoff.failures > failures and self._instance is not None:
                # Records may have arrived before the failure: no event would report them again.
                await asyncio.sleep(min(left, self._backoff_delay))
            else:
                await self._wait_for_arrival(left)
        return []

    async def _take(self, most: int) -> list[tuple[AssignedPartition, list[Record]]]:
        """Return the records that are available now, without waiting."""
        instance = self._instance
        self.session.check()
        if instance is not None and not self._has_group:
            self._discover_partitions(instance)
        found = self._take_buffered(most)
        if not found:
            self._raise_failure()
        if instance is None:
            return found
        if found:
            internals.note_poll(instance)
            return found
        try:
            arrived = await self._request(instance, most)
        except DriverClosed:
            return []
        # The boundary to the driver, which may raise anything.
        except Exception as error:  # noqa: BLE001
            failure = error
        else:
            if arrived:
                self._note_arrival()
            return arrived
        if not self._positions.handle(instance, failure):
            self._handle_failure(instance, failure)
        return []

    def _discover_partitions(self, instance: ConsumerDriver) -> None:
        """Read the partitions of an instance without a group, which notifies no listener."""
        partitions = internals.partitions_of(instance)  # the same object until they change
        if partitions is self._discovered:
            return
        if any(each.instance is not instance for each in self._assignment.all):
            return  # those of the previous instance are still being drained
        self._discovered = partitions
        going = self._assignment.stop_fetching(instance)
        self._drop(tuple(each.partition for each in going))
        self._assignment.remove(going, remember=True)
        for partition in sorted(partitions):
            assigned = AssignedPartition(partition, instance, None, None, committed_known=True)
            self._assignment.add(assigned)
            self._positions.begin(assigned, GroupOffsets({}, {}))
        self.wake()

    def _take_buffered(self, most: int) -> list[tuple[AssignedPartition, list[Record]]]:
        found = []
        for assigned in self._assignment.all:
            if most <= 0 or self.held:
                break
            if assigned.buffered and self._may_fetch(assigned):
                records, assigned.buffered = assigned.buffered[:most], assigned.buffered[most:]
                ready = self._deserialize(assigned, records)
                most -= len(ready)
                found.append((assigned, ready))
        return found

    def _may_fetch(self, assigned: AssignedPartition) -> bool:
        return (
            assigned.fetchable
            and not assigned.resetting
            and assigned.partition not in self._pause_reasons
        )

    async def _request(
        self, instance: ConsumerDriver, most: int
    ) -> list[tuple[AssignedPartition, list[Record]]]:
        internals.raise_coordination_error(instance)
        internals.note_poll(instance)
        while not self.held and self._instance is instance and not internals.reassigning(instance):
            wanted = [each for each in self._assignment.all if self._may_fetch(each)]
            handled_before = self._counters.already_handled
            found = self._unpack(instance, wanted, most)
            if found:
                return found
            if self._counters.already_handled == handled_before:
                for assigned in wanted:
                    raise_fetch_error(instance, assigned.partition)
                break
            # All were handled before. More may be available, and no event would report them.
            await asyncio.sleep(0)
        return []

    def _unpack(
        self, instance: ConsumerDriver, wanted: list[AssignedPartition], most: int
    ) -> list[tuple[AssignedPartition, list[Record]]]:
        """Return the next records that have arrived, and have those after them fetched."""
        if not wanted:
            return []
        arrived = fetched_partitions(instance)
        first = self._first % len(wanted)
        ready = [
            assigned
            for assigned in wanted[first:] + wanted[:first]
            if assigned.fetched is not None or assigned.partition in arrived
        ]
        for assigned in ready:
            if assigned.fetched is None:
                assigned.fetched = take_fetched(instance, assigned.partition)
        found: list[tuple[AssignedPartition, list[Record]]] = []
        for assigned in ready:
            try:
                records = self._deserialize(assigned, self._receive(instance, assigned, most))
            except Exception:
                self._first = wanted.index(assigned) + 1  # the next one may be readable
                if found:
                    break  # the unreadable records are fetched again, and raise again
                raise
            if assigned.fetched is None:
                self._first = wanted.index(assigned) + 1
            if records:
                found.append((assigned, records))
                most -= len(records)
                if most <= 0:
                    break
        return found

    def _receive(
        self, instance: ConsumerDriver, assigned: AssignedPartition, most: int
    ) -> list[Record]:
        """Return the next records of a partition, without those that were handled before."""
        while not (records := assigned.next_records(most)):
            assigned.fetched = take_fetched(instance, assigned.partition)
            if assigned.fetched is None:
                return []
        assigned.progress.delivered_all([record.offset for record in records])
        self._counters.records += len(records)
        if not assigned.handled:
            return records
        unhandled = assigned.without_handled(records)
        self._counters.already_handled += len(records) - len(unhandled)
        return unhandled

    def _deserialize(self, assigned: AssignedPartition, records: list[Record]) -> list[Record]:
        """Deserialize as many records as time allows, and buffer the rest for the next call."""
        ready = self._deserializer.read(records, asyncio.get_running_loop().time)
        if ready < len(records):
            assigned.buffered[:0] = records[ready:]
            return records[:ready]
        return records

    def _handle_failure(self, instance: ConsumerDriver, error: Exception) -> None:
        meaning, refused = classify_error(error), is_connection_refusal(error)
        if meaning.kind == "permanent" and not refused:
            if internals.has_dead_member(instance):
                self._replace(instance, error)  # so that it is read again once it is permitted
            raise without_secrets(error, self._target.secrets())
        self._backoff_delay = self._backoff.next()
        if meaning.fatal or refused or self._backoff.failures >= _MAX_FAILURES:
            self._replace(instance, error)

    def _replace(self, instance: ConsumerDriver, error: Exception) -> None:
        if self._instance is instance:
            self._instance = None
        self._supervisor.driver_failed(instance, error)

    def _note_arrival(self) -> None:
        self._backoff.reset()
        if self._milestone is not None and self._counters.records >= self._milestone_at:
            wake([self._milestone])

    def _raise_failure(self) -> None:
        """Raise why no more records come, if waiting does not help."""
        failure = self._positions.failure() or self._topics.failure()
        if failure is None and self._instance is None:
            failure = self._permanent_failure()
        if failure is not None:
            raise failure

    def _permanent_failure(self) -> Exception | None:
        if self._supervisor.halted:
            return self._supervisor.permanent_error
        # After the first one, the fetcher waits for Kafka: health reports the outage.
        if self._supervisor.generation:
            return None
        if self._supervisor.permanent_error is not None:
            return self._supervisor.permanent_error
        cause = self._health.cause
        if cause is None or not cause.permanent or self._health.state is not State.DOWN:
            return None
        return unavailable_because_of(cause)(
            f"the cluster cannot be used: {self._health.detail or cause.value}",
            dependency=self.dependency,
            operation="next record",
        )

    async def _wait_for_arrival(self, timeout: float) -> None:
        """Wait until records may have arrived or the fetcher's state changed."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(woken)
        waiters = [woken, self._positions.change()]
        if self._instance is not None:
            waiters.append(internals.arrival(self._instance))
        try:
            await asyncio.wait(waiters, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if woken in self._waiting:
                self._waiting.remove(woken)
            for waiter in waiters:
                # The next request raises what the coordination reported here.
                if not waiter.done():
                    waiter.cancel()
                elif not waiter.cancelled():
                    waiter.exception()


_LONGEST_STRETCH = 0.005
"""Seconds of deserializing after which the event loop runs other tasks."""


class RecordDeserializer:
    """Replaces the keys and values of records by what the application's functions return.

    aiokafka's own deserializing would raise for the same record forever, without naming it.
    """

    def __init__(
        self, key: Deserializer | None, value: Deserializer | None, counters: ConsumerCounters
    ) -> None:
        self._key = key
        self._value = value
        self._counters = counters

    def read(self, records: list[Record], now: Callable[[], float]) -> int:
        """Deserialize records from the front; return how many are ready, perhaps not all."""
        if self._key is None and self._value is None:
            return len(records)
        until = now() + _LONGEST_STRETCH
        for count, record in enumerate(records, 1):
            if record._raw is None:
                self._read_one(record)
                if now() > until:
                    return count
        return len(records)

    def _read_one(self, record: Record) -> None:
        key, value = record.key, record.value
        record._raw = (key, value)
        try:
            if self._key is not None and key is not None:
                record.key = self._key(key)
            if self._value is not None and value is not None:
                record.value = self._value(value)
        # The boundary to the application's function: its exception belongs to this record.
        except Exception as error:  # noqa: BLE001
            record.error = error
            record.__class__ = UnreadableRecord
            self._counters.unreadable += 1
