"""Fetching for `run`: as much as there is room for, and polling while there is none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..consumer.record import Record, TopicPartition
    from ..consumer.source import Source
    from .dependencies import Gate
    from .scheduler import Backlog


_CHUNK = 400  # records of one fetch: as many as are new to the garbage collector at once
_POLL = 1.0  # longest wait of one fetch, in seconds
_POLL_BESIDE_SLOW = 0.05  # the same while a slow partition waits for its turn
_POLL_WHILE_HELD = 0.5  # and how often Kafka hears of us while nothing is wanted
_LARGE = 16_384.0  # what a record is taken for before the first came
_SPOONFUL = 1 / 16  # of the bounds, for one fetch: it may all come from one partition
_MUCH = 0.5  # of the bounds, for one partition
_FAST = 0.25  # and when it may go on
_FULL = "run: its bounds are reached"
_SLOW = "run: half of its bounds are reached by this partition"
_REQUIRED = "run: a required dependency is down"


class Intake:
    """Moves records from the source to the backlog.

    Args:
        source: Where they come from.
        backlog: Where they go.
        gate: Shut while nothing is to be fetched.
        arrived: Called when records were admitted.
    """

    def __init__(
        self, source: Source, backlog: Backlog, gate: Gate, arrived: Callable[[], None]
    ) -> None:
        self._source = source
        self._backlog = backlog
        self._gate = gate
        self._arrived = arrived
        self._slow: list[TopicPartition] = []
        self._change: asyncio.Future[None] | None = None
        self._size = _LARGE  # bytes of a record, as seen lately

    async def feed(self) -> None:
        """Fetch for ever.

        Raises:
            Exception: What Kafka refuses for good.
        """
        while True:
            if self._held:
                await self._hold()
                continue
            wait = _POLL_BESIDE_SLOW if self._slow else _POLL
            self._take(await self._source.fetch(self._most(), wait))
            self._spare_the_others()
            await asyncio.sleep(0)  # a full source does not suspend, and others have to run

    def change(self) -> None:
        """There is room again, or the gate moved."""
        if self._gate.shut:
            self._source.pause(self._source.assignment(), _REQUIRED)
        else:
            self._source.resume(self._source.assignment(), _REQUIRED)
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    def assigned(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Partitions became ours."""
        self.revoked(partitions)  # something may have moved while they were being taken away
        if self._gate.shut:
            self._source.pause(partitions, _REQUIRED)

    def revoked(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Partitions were taken away: reasons for pausing them go with them."""
        self._source.resume(partitions, _REQUIRED)
        self._source.resume(partitions, _FULL)
        self._source.resume(partitions, _SLOW)
        self._slow = [each for each in self._slow if each not in partitions]

    @property
    def _held(self) -> bool:
        return self._gate.shut or self._backlog.full or self._backlog.awaits_room

    async def _hold(self) -> None:
        """Poll, so that Kafka knows that we live, but take nothing, until there is room."""
        source, backlog = self._source, self._backlog
        if backlog.full:
            backlog.awaits_room = True
        try:
            while self._held:
                self._change = asyncio.get_running_loop().create_future()
                await asyncio.wait([self._change], timeout=_POLL_WHILE_HELD)
                if self._held:
                    source.pause(source.assignment(), _FULL)
                    self._take(await source.fetch(1, 0.0))
        finally:
            self._change = None
            source.resume(source.assignment(), _FULL)

    def _most(self) -> int:
        """Return how many records to fetch: those that fit, judging by the latest."""
        limits, backlog = self._backlog.limits, self._backlog
        records = min(limits.records - backlog.records, limits.records * _SPOONFUL, _CHUNK)
        size = min(limits.bytes - backlog.bytes, limits.bytes * _SPOONFUL)
        return max(1, int(min(records, size / self._size)))

    def _spare_the_others(self) -> None:
        """Fetch no more from a partition that fills half of the memory: the others shall go on."""
        for partition in list(self._slow):
            if self._share(partition) <= _FAST:
                self._slow.remove(partition)
                self._source.resume([partition], _SLOW)
        limits, backlog = self._backlog.limits, self._backlog
        if max(backlog.records / limits.records, backlog.bytes / limits.bytes) < _MUCH:
            return
        assignment = self._source.assignment()
        for partition in assignment if len(assignment) > 1 else ():
            if partition not in self._slow and self._share(partition) >= _MUCH:
                self._slow.append(partition)
                self._source.pause([partition], _SLOW)

    def _share(self, partition: TopicPartition) -> float:
        """Return how much of the bounds the records of one partition take."""
        progress, limits = self._source.progress(partition), self._backlog.limits
        if progress is None:
            return 0.0
        return progress.outstanding * max(1.0 / limits.records, self._size / limits.bytes)

    def _take(self, fetched: dict[TopicPartition, list[Record]]) -> None:
        backlog = self._backlog
        records_before, bytes_before = backlog.records, backlog.bytes
        for partition, records in fetched.items():
            progress = self._source.progress(partition)
            if progress is not None:  # or else it is no longer ours: its next owner handles them
                backlog.admit(backlog.open(partition, progress), records)
        came = backlog.records - records_before
        if came:
            # The greatest of what came lately: guessing too small costs memory.
            size = (backlog.bytes - bytes_before) / came
            self._size = max(1.0, size, self._size * 0.9)
            self._arrived()
