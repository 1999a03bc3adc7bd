"""How long our own event loop was blocked: one watch per loop, shared."""

from __future__ import annotations

import asyncio
from collections import deque

_BEAT = 0.1
_TOLERANCE = 0.02
_REMEMBERED = 512
"""Stalls; more than ten a second there are not."""

_watches: dict[asyncio.AbstractEventLoop, LoopLag] = {}


class LoopLag:
    """Measures the time during which the running event loop could not run anything.

    A timer beats every 0.1 s; a beat that is more than 0.02 s late shows that the loop was
    blocked. Up to one beat of each stall goes unseen. Get one with `LoopLag.acquire()` and give
    it back with `release()`; the loop's last user stops the timer.

    To take stalls off a time that you measure: `now - t0 - (lag.stalled - stalled_at_t0)`.

    Attributes:
        worst: Longest stall so far, in seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._users = 0
        self._stalled = 0.0
        self._current = 0.0
        self.worst = 0.0
        self._stalls: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)  # (end, seconds)
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def acquire(cls) -> LoopLag:
        """Return the running loop's watch, started; `release()` it once for each acquire."""
        loop = asyncio.get_running_loop()
        watch = _watches.get(loop)
        if watch is None:
            for other in [other for other in _watches if other.is_closed()]:
                del _watches[other]  # closed without a release: nobody else would free it
            watch = _watches[loop] = cls(loop)
        watch._users += 1
        if watch._timer is None:
            watch._arm()
        return watch

    def release(self) -> None:
        """Give the watch back; the last one out stops the timer. More often does no harm."""
        if self._users:
            self._users -= 1
        if not self._users and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            _watches.pop(self._loop, None)

    @property
    def stalled(self) -> float:
        """Total seconds the loop was blocked, the stall that is only now ending included."""
        return self._stalled + self._pending()

    @property
    def current(self) -> float:
        """Seconds of the latest beat's delay; 0.0 when the loop is not blocked."""
        return self._pending() or self._current

    def stalled_within(self, seconds: float) -> float:
        """Return for how many of the last `seconds` the loop was blocked, as far as remembered.

        The last 512 stalls are; at ten a second, the most there are, that is 51 s.
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
        """Return how much of a stall the late beat has not yet booked."""
        if self._timer is None:
            return 0.0
        late = self._loop.time() - self._due
        return late if late > _TOLERANCE else 0.0

    def _arm(self) -> None:
        self._due = self._loop.time() + _BEAT
        self._timer = self._loop.call_at(self._due, self._beat)

    def _beat(self) -> None:
        late = self._pending()
        self._current = late
        if late:
            self._stalled += late
            self.worst = max(self.worst, late)
            self._stalls.append((self._loop.time(), late))
        self._arm()
