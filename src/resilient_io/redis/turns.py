"""Turns and pauses: how many connections are opened at the same time, and how often."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Self

from resilient_io.binding import PerLoop
from resilient_io.retry import Backoff

if TYPE_CHECKING:
    import random

    from resilient_io.tasks import Signal

MOST_CONNECTING = 32
"""Connections that one event loop opens at the same time. Further attempts wait for their turn."""

_BACKOFF = 0.1
_BACKOFF_FLOOR = 0.01
_BACKOFF_CAP = 1.0
_PERMANENT_CAP = 10.0

_STABLE = 1.0
"""Seconds after which the loss of a connection does not count as a failed attempt to connect."""

_queues: PerLoop[_Queue] = PerLoop()


class ConnectTurn:
    """The turn of one attempt to connect. Turns are given in the order in which they are requested.

    Thousands of attempts at the same time would each take so long that all of them exceed their
    time limits. The wait for a turn does not count as connecting.

    Args:
        standby: Whether all other attempts go first.
    """

    __slots__ = ("_began", "_queue", "_standby", "_waited")

    def __init__(self, *, standby: bool = False) -> None:
        self._standby = standby
        self._queue: _Queue | None = None  # while it has its turn
        self._began: float | None = None  # when the wait began
        self._waited: float | None = None

    @property
    def waited(self) -> float:
        """Seconds that the attempt has waited for its turn, up to now."""
        if self._waited is not None:
            return self._waited
        return 0.0 if self._began is None else asyncio.get_running_loop().time() - self._began

    async def begin(self) -> None:
        """Wait for the turn. Cancelling leaves the queue."""
        loop = asyncio.get_running_loop()
        self._began, self._waited = loop.time(), None
        queue = _queues.of(loop, partial(_Queue, loop))
        waited = await queue.enter(standby=self._standby)
        self._queue = queue
        self._waited = loop.time() - self._began if waited else 0.0

    def end(self) -> None:
        """End the turn, so that the next attempt begins. Idempotent."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.leave()

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.end()


class ConnectBackoff(Backoff):
    """The pauses between the attempts to open one connection, which may be lost again."""

    __slots__ = ("_early_losses",)

    def __init__(self, rng: random.Random) -> None:
        super().__init__(_BACKOFF, _BACKOFF_CAP, rng, floor=_BACKOFF_FLOOR)
        self._early_losses = 0  # of connections that were open for less than a second, in a row

    async def pause(self, improved: Signal, *, permanent: bool = False) -> None:
        """Wait after a failed attempt, at most until `improved` is set."""
        pause = self.next(cap=_PERMANENT_CAP if permanent else None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await improved.wait()

    async def pause_after_loss(self, lived: float, improved: Signal) -> None:
        """Wait after the loss of a connection, if it is the second that was lost early in a row."""
        if lived >= _STABLE:
            self._early_losses = 0
        self.failures = self._early_losses  # the attempts that failed before it was open are over
        if lived < _STABLE:
            self._early_losses += 1
            if self.failures:
                await self.pause(improved)


class _Queue:
    """The attempts to connect of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._connecting = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._standby: deque[asyncio.Future[None]] = deque()

    async def enter(self, *, standby: bool) -> bool:
        """Return whether the attempt had to wait."""
        if self._connecting < MOST_CONNECTING:
            self._connecting += 1
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._standby if standby else self._waiting).append(turn)
        entered = False
        try:
            await turn
            entered = True
            return True
        finally:
            if not entered and turn.done() and not turn.cancelled():
                self.leave()  # cancelled in the moment in which its turn came

    def leave(self) -> None:
        for queue in (self._waiting, self._standby):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._connecting -= 1
        if not self._connecting:
            _queues.pop(self._loop, None)
