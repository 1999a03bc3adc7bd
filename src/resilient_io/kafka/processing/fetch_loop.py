"""Fetches records for `run`, as many as the limits allow, and polls while they allow none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from resilient_io.tasks import wake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiokafka import TopicPartition

    from ..record import PartitionProgress, Record
    from .dependencies import DependencyGate
    from .retry_topics import RetryTopics
    from .scheduler import Scheduler


class RecordSource(Protocol):
    """What `run` needs of the consumer's fetcher, which is above this package."""

    async def fetch(self, max_records: int, max_wait: float) -> dict[TopicPartition, list[Record]]:
        """Poll Kafka, and return the next records of the partitions that are not paused."""
        raise NotImplementedError

    async def require_topics(self, topics: tuple[str, ...]) -> None:
        """Raise ConfigurationError if one of these topics does not exist; wait for Kafka."""

    def put_back(self, partition: TopicPartition, records: list[Record]) -> bool:
        """Take back fetched records, to return them first; return whether they were kept."""
        raise NotImplementedError

    def pause(self, partitions: Iterable[TopicPartition], reason: str) -> None:
        """Stop fetching from partitions until `resume` is called with the same reason."""

    def resume(self, partitions: Iterable[TopicPartition], reason: str) -> None:
        """Remove a reason for pausing."""

    def assignment(self) -> tuple[TopicPartition, ...]:
        """Return the assigned partitions, in a fixed order."""
        raise NotImplementedError

    def progress(self, partition: TopicPartition) -> PartitionProgress | None:
        """Return the progress of a partition, or None if it is not assigned."""

    def check_membership(self) -> None:
        """Hold `run` if the partitions may belong to another member of the group by now."""


_CHUNK = 400  # most records of one fetch: all of them are new to the garbage collector together
_POLL_INTERVAL = 1.0  # longest wait of one fetch, in seconds
_POLL_INTERVAL_BESIDE_SLOW = 0.05  # the same while a slow partition is paused
_POLL_INTERVAL_WHILE_HELD = 0.5  # interval of polls while no records are wanted
_INITIAL_RECORD_SIZE = 16_384.0  # assumed before the first record came, in bytes
_FETCH_SHARE = 1 / 16  # of the limits, for one fetch: all its records may be of one partition
_SLOW_SHARE = 0.5  # of the limits: a partition that fills it is paused
_CAUGHT_UP_SHARE = 0.25  # of the limits: then the partition is resumed
_FULL = "run: the limits are reached"
_SLOW = "run: half of the limits is reached by this partition"
_REQUIRED = "run: a required dependency is down"
_NOT_DUE = "run: the next record of the retry topic is not due"


class FetchLoop:
    """Fetches records for the scheduler unless the gate is shut or a limit is reached."""

    def __init__(
        self,
        source: RecordSource,
        scheduler: Scheduler,
        gate: DependencyGate,
        retry_topics: RetryTopics,
        arrived: Callable[[], None],
    ) -> None:
        self._source = source
        self._scheduler = scheduler
        self._gate = gate
        self._retry_topics = retry_topics
        self._due_timers: dict[TopicPartition, asyncio.TimerHandle] = {}
        self._waited: dict[TopicPartition, int] = {}  # records before this offset are due
        self._arrived = arrived
        self._slow: list[TopicPartition] = []
        self._changed: asyncio.Future[None] | None = None
        self._record_size = _INITIAL_RECORD_SIZE  # in bytes, estimated from recent records

    async def run(self) -> None:
        """Fetch until the task is cancelled."""
        if self._retry_topics.names:
            await self._source.require_topics(self._retry_topics.names)
        while True:
            if self._held:
                await self._poll_while_held()
                continue
            wait = _POLL_INTERVAL_BESIDE_SLOW if self._slow else _POLL_INTERVAL
            self._add(await self._source.fetch(self._max_records(), wait))
            self._pause_slow_partitions()
            await asyncio.sleep(0)  # a fetch that finds records does not suspend

    def check_again(self) -> None:
        """Check again whether records may be fetched: there is room, or the gate has changed."""
        if self._gate.shut:
            self._source.pause(self._source.assignment(), _REQUIRED)
        else:
            self._source.resume(self._source.assignment(), _REQUIRED)
        if self._changed is not None:
            wake([self._changed])

    def assigned(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Note that partitions were assigned."""
        self.revoked(partitions)  # a reason may have been given while they were being revoked
        if self._gate.shut:
            self._source.pause(partitions, _REQUIRED)

    def revoked(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Remove all reasons for pausing partitions that were revoked."""
        self._source.resume(partitions, _REQUIRED)
        self._source.resume(partitions, _FULL)
        self._source.resume(partitions, _SLOW)
        self._source.resume(partitions, _NOT_DUE)
        for partition in partitions:
            self._waited.pop(partition, None)
            if (timer := self._due_timers.pop(partition, None)) is not None:
                timer.cancel()
        self._slow = [each for each in self._slow if each not in partitions]

    @property
    def _held(self) -> bool:
        return self._gate.shut or self._scheduler.full or self._scheduler.awaits_room

    async def _poll_while_held(self) -> None:
        """Poll, so that the group keeps this member, but fetch nothing until there is room."""
        source, scheduler = self._source, self._scheduler
        if scheduler.full:
            scheduler.awaits_room = True
        try:
            while self._held:
                self._changed = asyncio.get_running_loop().create_future()
                await asyncio.wait([self._changed], timeout=_POLL_INTERVAL_WHILE_HELD)
                if self._held:
                    source.pause(source.assignment(), _FULL)
                    self._add(await source.fetch(1, 0.0))
        finally:
            self._changed = None
            source.resume(source.assignment(), _FULL)

    def _max_records(self) -> int:
        """Return how many records fit into memory, judging by the size of recent ones."""
        limits, scheduler = self._scheduler.limits, self._scheduler
        records = min(limits.records - scheduler.records, limits.records * _FETCH_SHARE, _CHUNK)
        size = min(limits.bytes - scheduler.bytes, limits.bytes * _FETCH_SHARE)
        return max(1, int(min(records, size / self._record_size)))

    def _pause_slow_partitions(self) -> None:
        """Pause a partition that fills half of the memory, to leave room for the others."""
        for partition in list(self._slow):
            if self._share(partition) <= _CAUGHT_UP_SHARE:
                self._slow.remove(partition)
                self._source.resume([partition], _SLOW)
        limits, scheduler = self._scheduler.limits, self._scheduler
        used = max(scheduler.records / limits.records, scheduler.bytes / limits.bytes)
        if used < _SLOW_SHARE:
            return
        assignment = self._source.assignment()
        for partition in assignment if len(assignment) > 1 else ():
            if partition not in self._slow and self._share(partition) >= _SLOW_SHARE:
                self._slow.append(partition)
                self._source.pause([partition], _SLOW)

    def _share(self, partition: TopicPartition) -> float:
        """Return the share of the limits that the records of a partition use."""
        progress, limits = self._source.progress(partition), self._scheduler.limits
        if progress is None:
            return 0.0
        return progress.outstanding * max(1.0 / limits.records, self._record_size / limits.bytes)

    def _add(self, fetched: dict[TopicPartition, list[Record]]) -> None:
        scheduler = self._scheduler
        records_before, bytes_before = scheduler.records, scheduler.bytes
        for partition, records in fetched.items():
            progress = self._source.progress(partition)
            if progress is None:  # the partition was revoked meanwhile
                continue
            if self._retry_topics.names and partition.topic in self._retry_topics.names:
                records = self._due(partition, progress, records)  # noqa: PLW2901
            if records:
                scheduler.admit(scheduler.open(partition, progress), records)
        added = scheduler.records - records_before
        if added:
            # The largest average of recent fetches: an estimate that is too small costs memory.
            size = (scheduler.bytes - bytes_before) / added
            self._record_size = max(1.0, size, self._record_size * 0.9)
            self._arrived()

    def _due(
        self, partition: TopicPartition, progress: PartitionProgress, records: list[Record]
    ) -> list[Record]:
        """Return the records of a retry topic that are due, and hold its partition for the rest."""
        due: list[Record] = []
        for index, record in enumerate(records):
            if self._retry_topics.is_of_other_group(record):
                progress.done(record.offset)
                continue
            wait = self._retry_topics.seconds_until_due(record)
            if wait > 0.0 and record.offset >= self._waited.get(partition, 0):
                rest = records[index:]
                if self._source.put_back(partition, rest):
                    self._hold(partition, wait, rest[-1].offset + 1)
                break
            due.append(record)
        return due

    def _hold(self, partition: TopicPartition, seconds: float, end: int) -> None:
        delay, until = self._retry_topics.delays[partition.topic], 0
        if seconds > delay:
            # The clock of the writer was ahead of this one. After the delay, all records that were
            # known at its begin are due.
            seconds, until = delay, end
        self._source.pause([partition], _NOT_DUE)
        self._due_timers[partition] = asyncio.get_running_loop().call_later(
            seconds, self._release, partition, until
        )

    def _release(self, partition: TopicPartition, waited_until: int) -> None:
        del self._due_timers[partition]
        self._waited[partition] = waited_until
        self._source.resume([partition], _NOT_DUE)
