"""The calls that wait for a connection, in their order, and those that keep a place among them.

Failed attempts to connect may end their wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from .connection import CHECK_CLOCK, LeftBehind, PendingRequest, Promoted, Undeliverable

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health import Dependency

    from .connection import Entry, MultiplexedConnection
    from .errors import ConnectionFailure
    from .large_values import Packed

_LONGEST_HOLD = 0.5  # seconds for which calls wait at most for an earlier one on another connection


class Barrier(PendingRequest):
    """The place of a call that is sent on another connection, which is not open yet.

    The calls before it are sent first; those behind it wait until it is released.
    """

    __slots__ = ("_choose", "_timer", "reached")

    def __init__(self, choose: Callable[[], None]) -> None:
        super().__init__(b"")
        loop = self.future.get_loop()
        self._choose = choose
        self._timer = loop.call_later(_LONGEST_HOLD, self.release)
        self.reached: asyncio.Future[None] = loop.create_future()
        """Done when the calls before it were sent, or after half a second."""

    def release(self) -> None:
        """Send the calls behind it. Idempotent."""
        if not self.done():
            self.interrupt(CHECK_CLOCK)
            self._choose()

    def interrupt(self, reason: Exception) -> None:
        """Leave the queue."""
        super().interrupt(reason)
        self._timer.cancel()
        self.reach()

    def reach(self) -> None:
        """Note that the calls before it were sent."""
        if not self.reached.done():
            self.reached.set_result(None)


class WaitingRequests:
    """The queue of requests that wait for a connection. Each waiting caller has one entry."""

    __slots__ = ("_abandoned", "_closed", "_requests")

    def __init__(self) -> None:
        self._requests: deque[PendingRequest] | tuple[()] = ()  # a deque takes 0.7 KB
        self._abandoned = 0
        self._closed: Exception | None = None

    def __len__(self) -> int:
        """Return the number of entries, including abandoned ones."""
        return len(self._requests)

    @property
    def waiting(self) -> int:
        """The number of waiting callers."""
        return sum(
            not (request.done() or isinstance(request, Barrier)) for request in self._requests
        )

    @property
    def blocked(self) -> bool:
        """Whether the first request is a barrier that was not released."""
        first = self._requests[0] if self._requests else None
        return isinstance(first, Barrier) and not first.done()

    def add_barrier(self, barrier: Barrier) -> None:
        """Add a barrier at the end. It is reached unless a call waits before it."""
        last = self._requests[-1] if self._requests else None
        if last is None or (isinstance(last, Barrier) and last.reached.done()):
            barrier.reach()
        self.append(barrier)

    def reach_barriers(self) -> None:
        """Notify the barriers before which no call waits any more."""
        for request in self._requests:
            if not isinstance(request, Barrier) or request.reached.done():
                return
            request.reach()

    def append(self, request: PendingRequest) -> None:
        """Add a new call at the end."""
        if self._closed is None:
            self._queue().append(request)
        else:
            request.interrupt(self._closed)

    def put_back(self, unsent: list[tuple[Entry, Packed]]) -> None:
        """Put calls that a connection did not write at the front, in their order.

        Plain futures become requests, because their callers now wait longer than usual.
        """
        for entry, data in reversed(unsent):
            if self._closed is not None:
                _interrupt(entry, self._closed)
                continue
            if not isinstance(entry, PendingRequest):
                request = PendingRequest(data)
                entry.set_result(Promoted(request))
            elif not entry.movable and entry.connection is not None:
                entry.interrupt(LeftBehind(entry.connection))
                continue
            elif data:
                request = entry
            else:
                continue  # another command of a request that its first entry moves
            request.assign(None)
            self._queue().appendleft(request)

    def take(self, wanted: Callable[[PendingRequest], bool]) -> list[PendingRequest]:
        """Remove and return, in their order, the requests that are to be sent elsewhere."""
        taken = [each for each in self._requests if not each.done() and wanted(each)]
        if taken:
            self._requests = deque(each for each in self._requests if each not in taken)
        return taken

    def check_clocks(self) -> None:
        """Wake the waiting callers, which check whether they still wait."""
        for request in self._requests:
            request.check_clock()

    def note_abandoned(self) -> None:
        """Count an abandoned entry. Entries are removed when half of them are abandoned."""
        self._abandoned += 1
        if self._abandoned * 2 > len(self._requests):
            self._requests = deque(request for request in self._requests if not request.done())
            self._abandoned = 0

    def send_next(self, connection: MultiplexedConnection) -> None:
        """Send the first request on `connection`, unless it need not be sent any more."""
        queue = self._queue()
        request = queue.popleft()
        if not queue:
            self._requests = ()
        if request.sendable():
            connection.send_request(request)

    def _queue(self) -> deque[PendingRequest]:
        if isinstance(self._requests, tuple):
            self._requests = deque()
        return self._requests

    def fail_all(self, reason: Exception) -> None:
        """End all waits with `reason`."""
        waiting, self._requests, self._abandoned = self._requests, (), 0
        for request in waiting:
            request.interrupt(reason)

    def close(self, reason: Exception) -> None:
        """End all waits with `reason`, also those of calls that are added later."""
        self._closed = reason
        self.fail_all(reason)


def _interrupt(entry: Entry, reason: Exception) -> None:
    if isinstance(entry, PendingRequest):
        entry.interrupt(reason)
    elif not entry.done():
        entry.set_result(reason)


_CONFIRMATION = 0.5
"""Longest time, in seconds, to wait for health to confirm that connecting fails permanently."""


class ConnectFailures:
    """What the latest failed connect attempt means for the calls that wait for a connection.

    A permanent failure (a wrong password, for example) ends their wait, but health should report
    it before they do. When health improves, calls may wait again.
    """

    __slots__ = (
        "_failed_at",
        "_health",
        "_latest",
        "_suspicion",
        "_timer",
        "_waiting",
        "undeliverable",
    )

    def __init__(self, health: Dependency, waiting: WaitingRequests) -> None:
        self._health = health
        self._waiting = waiting
        self._latest: ConnectionFailure | None = None
        self._failed_at = 0.0
        self._suspicion: Undeliverable | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.undeliverable: Undeliverable | None = None
        """Why connecting fails permanently, after health confirmed it or had enough time to."""

    @property
    def detail(self) -> str:
        """Why the latest attempt failed, or an empty string."""
        return self._latest.detail if self._latest is not None else ""

    @property
    def improved(self) -> bool:
        """Whether health has improved since the latest attempt failed."""
        health = self._health
        return (
            self._latest is not None and health.state.answering and health.since > self._failed_at
        )

    def add(self, failure: ConnectionFailure) -> None:
        """Record a failed attempt."""
        loop = asyncio.get_running_loop()
        self._latest, self._failed_at = failure, loop.time()
        if failure.permanent and self.undeliverable is None:
            self._suspicion = Undeliverable(failure)
            self._stop_timer()
            self._timer = loop.call_later(_CONFIRMATION, self.confirm)

    def confirm(self) -> None:
        """Fail the waiting calls if connecting fails permanently."""
        if self._suspicion is not None:
            self.undeliverable = self._suspicion
            self._waiting.fail_all(self._suspicion)

    def forgive(self) -> None:
        """Permit calls to wait again: health improved."""
        self.undeliverable = self._suspicion = None
        self._stop_timer()

    def clear(self) -> None:
        """Forget the failures: an attempt succeeded."""
        self._latest = None
        self.forgive()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
