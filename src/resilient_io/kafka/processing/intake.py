"""Fetching for `run`: as much as there is room for, and polling while there is none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.kafka.consumer.record import Record, TopicPartition
    from resilient_io.kafka.consumer.source import Source

    from .backlog import Backlog
    from .gatekeeping import Gate

__all__ = ["Intake"]

_CHUNK = 400  # records of one fetch: as many as are new to the garbage collector at once
_POLL = 1.0  # longest wait of one fetch, in seconds
_POLL_WHILE_HELD = 0.5  # and how often Kafka hears of us while nothing is wanted
_LARGE = 16_384.0  # what a record is taken for before the first came
_FULL = "run: its bounds are reached"
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
            self._take(await self._source.fetch(self._most(), _POLL))
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
        if self._gate.shut:
            self._source.pause(partitions, _REQUIRED)

    def revoked(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Partitions were taken away: reasons for pausing them go with them."""
        self._source.resume(partitions, _REQUIRED)
        self._source.resume(partitions, _FULL)

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
        fitting = min(limits.records - backlog.records, (limits.bytes - backlog.bytes) / self._size)
        return max(1, min(_CHUNK, int(fitting)))

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
