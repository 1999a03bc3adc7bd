"""The unanswered writes of a multiplexed connection: what they cost, and how long it is silent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_io.health import LoopLag
    from resilient_io.histogram import Latencies

CALL_COST = 4096
"""Bytes added to the size of each call, so that one limit covers both calls and bytes."""


class InFlightWrite:
    """The unanswered calls of one write."""

    __slots__ = ("at", "cost", "end", "remaining", "stalled")

    def __init__(self, at: float, stalled: float, remaining: int, cost: int, end: int) -> None:
        self.at = at
        self.stalled = stalled
        self.remaining = remaining
        self.cost = cost
        self.end = end


class InFlightWrites:
    """The unanswered writes of a connection, oldest first, and how long it has been silent.

    Time during which the event loop was blocked does not count as silence.
    """

    __slots__ = ("_lag", "_latencies", "_loop", "_progress", "_stalled", "last_byte", "writes")

    def __init__(self, latencies: Latencies, lag: LoopLag) -> None:
        self._loop = asyncio.get_running_loop()
        self._latencies = latencies
        self._lag = lag
        self.writes: list[InFlightWrite] = []  # few; an empty deque takes 0.7 KB
        self.last_byte = self._progress = self._loop.time()
        self._stalled = lag.stalled

    @property
    def last_activity(self) -> float:
        """Loop time of the last activity: a byte arrived, or a part of a request left."""
        return max(self.last_byte, self._progress)

    def add(self, count: int, size: int, end: int) -> float:
        """Add a write of `count` calls and `size` bytes up to position `end`. Return its time."""
        now = self._loop.time()
        cost = size + count * CALL_COST
        self.writes.append(InFlightWrite(now, self._lag.stalled_at(now), count, cost, end))
        return now

    def note_bytes(self) -> float:
        """Note that bytes arrived. Return the time."""
        now = self.last_byte = self._loop.time()
        self._stalled = self._lag.stalled_at(now)
        return now

    def note_progress(self) -> None:
        """Note that a part of a request has left, so the connection is not silent."""
        self._progress, self._stalled = self._loop.time(), self._lag.stalled

    def answer(self, count: int) -> int:
        """Remove the oldest `count` calls, which were answered. Return the cost that they free."""
        freed = 0
        while count:
            write = self.writes[0]
            taken = min(count, write.remaining)
            self._latencies.record(self.last_byte - write.at, taken)
            write.remaining -= taken
            count -= taken
            if not write.remaining:
                del self.writes[0]
                freed += write.cost
        return freed

    def silence(self) -> float:
        """Return the seconds without activity since the oldest unanswered write."""
        oldest = self.writes[0]
        since, stalled = oldest.at, oldest.stalled
        if self.last_activity > since:
            since, stalled = self.last_activity, self._stalled
        return self._loop.time() - since - (self._lag.stalled - stalled)

    def find(self, from_end: int) -> InFlightWrite | None:
        """Return the write of a call, by its distance from the end, or None if it was answered."""
        for write in reversed(self.writes):
            if from_end <= write.remaining:
                return write
            from_end -= write.remaining
        return None

    def count_before(self, moment: float) -> int:
        """Return the number of unanswered calls that were written until `moment`."""
        late = 0
        for write in self.writes:
            if write.at > moment:
                break
            late += write.remaining
        return late
