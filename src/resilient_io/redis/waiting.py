"""The calls that wait for a connection, in their order, and those that keep a place among them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .connection import CHECK_CLOCK, LeftBehind, PendingRequest, Promoted

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from .connection import Entry, MultiplexedConnection

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

    def put_back(self, unsent: list[tuple[Entry, bytes]]) -> None:
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
        """Send the first request on `connection`, unless its caller or its time is gone."""
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
