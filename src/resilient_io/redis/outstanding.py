"""What a lane has written and not heard back about: one record a write, not a call."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_io.health import LoopLag

    from .stats import Latencies

CALL_COST = 4096
"""Bytes that a call counts for beside its own, so that one bound covers calls and bytes."""


class Write:
    """The calls of one write: when they left, how many are unanswered, what they count for.

    `end` is the place of its last byte among all bytes that the lane wrote.
    """

    __slots__ = ("at", "cost", "end", "remaining", "stalled")

    def __init__(self, at: float, stalled: float, remaining: int, cost: int, end: int) -> None:
        self.at = at
        self.stalled = stalled
        self.remaining = remaining
        self.cost = cost
        self.end = end


class Outstanding:
    """The unanswered writes of a lane, oldest first, and the silence since.

    Time during which our own event loop was blocked is nobody's silence.
    """

    __slots__ = ("_lag", "_latencies", "_loop", "_moved", "_stalled", "last_byte", "writes")

    def __init__(self, latencies: Latencies, lag: LoopLag) -> None:
        self._loop = asyncio.get_running_loop()
        self._latencies = latencies
        self._lag = lag
        self.writes: deque[Write] = deque()
        self.last_byte = self._moved = self._loop.time()
        self._stalled = lag.stalled

    def wrote(self, count: int, size: int, end: int) -> float:
        """Note a write of `count` calls and `size` bytes up to `end`; return its time."""
        now = self._loop.time()
        self.writes.append(Write(now, self._lag.stalled, count, size + count * CALL_COST, end))
        return now

    def heard(self) -> None:
        """Note that bytes came."""
        self.last_byte = self._loop.time()
        self._stalled = self._lag.stalled

    @property
    def last_sign(self) -> float:
        """Loop time of the last sign of life: a byte came, or a part of what we wrote left."""
        return max(self.last_byte, self._moved)

    def moved(self) -> None:
        """Note that a part of what we wrote has left: that is no silence."""
        self._moved, self._stalled = self._loop.time(), self._lag.stalled

    def answered(self, count: int) -> int:
        """Take `count` replies off, oldest first; return what they counted for."""
        freed = 0
        while count:
            write = self.writes[0]
            taken = min(count, write.remaining)
            self._latencies.record(self.last_byte - write.at, taken)
            write.remaining -= taken
            count -= taken
            if not write.remaining:
                self.writes.popleft()
                freed += write.cost
        return freed

    def silence(self) -> float:
        """Seconds without a byte since the oldest unanswered write."""
        oldest = self.writes[0]
        since, stalled = oldest.at, oldest.stalled
        if self.last_sign > since:
            since, stalled = self.last_sign, self._stalled
        return self._loop.time() - since - (self._lag.stalled - stalled)

    def written_before(self, moment: float) -> int:
        """Count the unanswered calls that were written until then."""
        late = 0
        for write in self.writes:
            if write.at > moment:
                break
            late += write.remaining
        return late
