"""Ends records whose time is up: one timer for all of them, not one for each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from resilient_io.health import Cause

from .partition_queue import Parcel, Slice

if TYPE_CHECKING:
    import asyncio
    from collections import deque
    from collections.abc import Callable

    from resilient_io.health import Dependency

    from .buffer import Room
    from .errors import Verdicts
    from .partition_queue import Cargo, Entry, Line, Record

__all__ = ["Expiry"]

_SPACING = 0.005
"""Least seconds between two looks."""

_SPACING_PER_RECORD = 1e-6
"""What each record that waits adds to it, so that looking never costs more than a few per cent."""

_TOO_LATE = "it was handed over, and no answer came in time"


class Expiry:
    """Looks through the lines when the earliest deadline has come.

    Attributes:
        at: When it looks next, in loop time; who brings an earlier deadline calls `set`.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        lines: list[Line],
        room: Room,
        verdicts: Verdicts,
        health: Dependency,
        suspicious: float,
        tombstone: Record,
        progressed: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            loop: Its clock and timers.
            lines: All lines there are, and will be.
            room: Gets the bytes of what ends.
            verdicts: Makes the errors.
            health: Told of batches that had no answer.
            suspicious: After so many seconds.
            tombstone: Takes the place of a record that ended in the middle of its line.
            progressed: Called after a look that ended something.
        """
        self.at = math.inf
        self._loop = loop
        self._lines = lines
        self._room = room
        self._verdicts = verdicts
        self._health = health
        self._suspicious = suspicious
        self._tombstone = tombstone
        self._progressed = progressed
        self._timer: asyncio.TimerHandle | None = None

    def set(self, until: float) -> None:
        """Look no later than at this time."""
        if self._timer is not None:
            self._timer.cancel()
        self.at = until
        self._timer = self._loop.call_at(until, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.at = None, -math.inf

    def sweep(self) -> None:
        """End what is late, drop what was cancelled, now."""
        if self._timer is not None:
            self._timer.cancel()
        self._look()

    def _look(self) -> None:
        self._timer, self.at = None, math.inf
        now = self._loop.time()
        earliest, seen = math.inf, 0
        for line in self._lines:
            if line.records:
                seen += len(line.records)
                earliest = min(earliest, self._look_at_waiting(line, now))
            if line.cargo is not None and not line.cargo.told:
                seen += line.cargo.count
                earliest = min(earliest, self._look_at_cargo(line.cargo, now))
        if earliest < math.inf:
            self.set(max(earliest, now + _SPACING + seen * _SPACING_PER_RECORD))
        self._progressed()

    def _look_at_waiting(self, line: Line, now: float) -> float:
        """End what is late in a line; return the earliest deadline of the others."""
        earliest, freed = math.inf, 0
        kept: list[Entry] = []
        dead = self._tombstone
        for entry in line.records:
            if isinstance(entry, Parcel):
                if entry.until > now and not entry.shipment.cancelled:
                    kept.append(entry)
                    earliest = min(earliest, entry.until)
                    continue
                freed += entry.left
                if entry.shipment.cancelled:
                    entry.drop()
                else:
                    self._end_parcel(line, entry)
            elif entry is not dead:
                future, until = entry[0], entry[5]
                if until > now and not future.done():
                    kept.append(entry)
                    earliest = min(earliest, until)
                    continue
                freed += entry[6]
                if not future.done():
                    self._verdicts.settle(future, self._verdicts.too_late(entry[7]))
            kept.append(dead)
        if freed:
            replace(line, kept, dead)
            line.waiting -= freed
            self._room.release(freed)
        return earliest

    def _end_parcel(self, line: Line, parcel: Parcel) -> None:
        rest = parcel.items[parcel.cursor :]
        parcel.drop()
        error = self._verdicts.too_late(parcel.sent, "send_many")
        self._verdicts.lost(error, len(rest))
        parcel.shipment.fail(line.tp, rest, error)

    def _look_at_cargo(self, cargo: Cargo, now: float) -> float:
        """Tell the callers of a batch whose time is up; return the earliest of the others."""
        earliest = math.inf
        told = True
        if now - cargo.at >= self._suspicious:
            self._health.failed(Cause.TIMED_OUT, "a batch had no answer in time")
        for entry in cargo.entries:
            if isinstance(entry, Slice):
                if entry.told:
                    continue
                if entry.parcel.until > now:
                    earliest, told = min(earliest, entry.parcel.until), False
                    continue
                error = self._verdicts.unknown(entry.parcel.sent, _TOO_LATE, "send_many")
                self._verdicts.lost(error, entry.count)
                entry.fail(cargo.line.tp, error)
            elif not entry[0].done():
                if entry[5] > now:
                    earliest, told = min(earliest, entry[5]), False
                else:
                    self._verdicts.settle(entry[0], self._verdicts.unknown(entry[7], _TOO_LATE))
        cargo.told = told
        return earliest


def replace(line: Line, kept: list[Entry], dead: Record) -> None:
    """Put the entries back, without what is dead at the front."""
    begin = 0
    while begin < len(kept) and kept[begin] is dead:
        begin += 1
    records: deque[Entry] = line.records
    records.clear()
    records.extend(kept[begin:])
    line.position += begin
