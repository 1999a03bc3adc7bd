"""Measures how long our own event loop was blocked: one measurement per loop, shared."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Self

from resilient_io.binding import PerLoop
from resilient_io.tasks import BEAT, beat_before

_TOLERANCE = 0.02
_CALM = 16  # how often in a row the timer must be in time to run half as often
_REMEMBERED = 512  # stalls to keep; there are at most eight a second

_watches: PerLoop[LoopLag] = PerLoop()


class LoopLag:
    """Measures the time during which the running event loop was blocked.

    A timer runs every 0.125 s, or 0.25 s after two seconds without a stall. If it is more than
    0.02 s late, the loop was blocked. Up to one interval of each stall is not measured. Call
    `LoopLag.acquire()` to get the measurement of the running loop and `release()` when done; the
    last release stops the timer.

    To subtract stalls from a measured time: `now - t0 - (lag.stalled - stalled_at_t0)`.

    Attributes:
        worst: Longest stall so far, in seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._time = loop.time
        self._users = 0
        self._stalled = 0.0
        self._current = 0.0
        self.worst = 0.0
        self._stalls: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)  # (end, seconds)
        self._due = 0.0
        self._in_time = 0  # how often in a row the timer was not late
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def acquire(cls, loop: asyncio.AbstractEventLoop | None = None) -> LoopLag:
        """Return the running measurement of the running loop. Call `release()` once for each.

        `loop` may be the running loop, if the caller knows it already.
        """
        loop = loop if loop is not None else asyncio.get_running_loop()
        return _watches.of(loop, partial(cls, loop)).use()

    def use(self) -> Self:
        """Count another user. The first one starts the timer."""
        self._users += 1
        if self._timer is None:
            self._arm(self._time(), BEAT / 2)
        return self

    def release(self) -> None:
        """Release the measurement. The last release stops the timer; further ones do nothing."""
        if self._users:
            self._users -= 1
        if not self._users and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            _watches.pop(self._loop, None)

    @property
    def stalled(self) -> float:
        """Total time the loop was blocked, in seconds, including a stall that is just ending."""
        return self._stalled + self._pending()

    def stalled_at(self, now: float) -> float:
        """Return the same at `now`, the current loop time, for callers that know it already."""
        late = now - self._due
        if late > _TOLERANCE and self._timer is not None:
            return self._stalled + late
        return self._stalled

    @property
    def current(self) -> float:
        """Delay of the latest timer, in seconds; 0.0 when the loop is not blocked."""
        return self._pending() or self._current

    def stalled_within(self, seconds: float) -> float:
        """Return for how many of the last `seconds` the loop was blocked.

        The last 512 stalls are known: at eight a second, the maximum, those of 64 s.
        """
        now = self._loop.time()
        total = min(self._pending(), seconds)
        for end, lasted in reversed(self._stalls):
            inside = min(lasted, end - (now - seconds))
            if inside <= 0:
                break
            total += inside
        return min(total, seconds)

    def _pending(self) -> float:
        """Return the part of a stall that the late timer has not counted yet."""
        if self._timer is None:
            return 0.0
        late = self._time() - self._due
        return late if late > _TOLERANCE else 0.0

    def _arm(self, now: float, interval: float) -> None:
        self._due = due = beat_before(now + interval, interval)
        self._timer = self._loop.call_at(due, self._beat)

    def _beat(self) -> None:
        now = self._time()
        late = now - self._due
        if late > _TOLERANCE:
            self._current = late
            self._stalled += late
            self.worst = max(self.worst, late)
            self._stalls.append((now, late))
            self._in_time = 0
        else:
            self._current = 0.0
            self._in_time += 1
        self._arm(now, BEAT / 2 if self._in_time < _CALM else BEAT)
