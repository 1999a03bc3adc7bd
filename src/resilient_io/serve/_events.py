"""Server-sent events: the newest status for as many readers as there are, slow ones included.

No task and no queue: what a reader has not taken by the time of the next news it never sees.
Nobody reads, nothing is made: the timer and the subscription live only while there are readers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from resilient_io.health import HealthMonitor, MonitorChange, Subscription

__all__ = ["Broadcast", "Reader"]

INTERVAL: Final = 1.0
"""Seconds between two statuses while nothing changes."""

LASTS: Final = 10.0
"""Seconds after which a stream ends that somebody else's server carries; browsers come again."""

READERS: Final = 64
"""So many at once, each with a connection: more would be no people."""

_OPENING: Final = b"retry: 1000\n\n"


class Broadcast:
    """The events of one service.

    Args:
        monitor: Tells when there is news.
        status: Makes the data of an event: JSON in one line.
        lasting: Whether whoever carries the streams calls `close()` before it waits for their
            end. A foreign server may wait for its connections first, and tell us afterwards: then
            a stream ends by itself after a while, and at once while the service drains.
    """

    def __init__(self, monitor: HealthMonitor, status: Callable[[], str], *, lasting: bool) -> None:
        self._monitor = monitor
        self._status = status
        self.lasting = lasting
        self.closed = False
        self.number = 0
        self._made: int | None = None
        self._frame = b""
        self._readers: list[Reader] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._subscription: Subscription[MonitorChange] | None = None

    @property
    def full(self) -> bool:
        """Whether no further reader is let in."""
        return self.closed or len(self._readers) >= READERS

    @property
    def draining(self) -> bool:
        """Whether the service is about to stop."""
        return self._monitor.draining

    def open(self, abort: Callable[[], object] | None = None) -> Reader:
        """Let a reader in; leave it by `with`.

        Args:
            abort: Cuts its connection. Called by `close()` if it is in the middle of sending:
                then nothing else would end it.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the readers of a loop that ended never left
            self._rest()
            self._readers.clear()
            self._loop = loop
        self._made = None  # who begins sees the present, not the latest second
        reader = Reader(self, abort, until=loop.time() + LASTS)
        self._readers.append(reader)
        if self._timer is None:
            self._timer = loop.call_later(INTERVAL, self._tick)
            self._subscription = self._monitor.on_change(lambda _: self._publish())
        return reader

    def leave(self, reader: Reader) -> None:
        """Let a reader go."""
        if reader in self._readers:
            self._readers.remove(reader)
        if not self._readers:
            self._rest()

    def close(self) -> None:
        """End every stream, and let nobody in any more."""
        self.closed = True
        for reader in self._readers:
            reader.close()
        self._rest()

    def frame(self) -> bytes:
        """Return the newest event, made once for all readers."""
        if self._made != self.number:
            self._frame = b"event: status\ndata: " + self._status().encode() + b"\n\n"
            self._made = self.number
        return self._frame

    def _publish(self) -> None:
        self.number += 1
        for reader in self._readers:
            reader.wake()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._tick)
        self._publish()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._subscription is not None:
            self._subscription.remove()
            self._subscription = None


class Reader:
    """One stream: `async for chunk in reader` gives what to send, until it has to end."""

    def __init__(
        self, broadcast: Broadcast, abort: Callable[[], object] | None, *, until: float
    ) -> None:
        self._broadcast = broadcast
        self._abort = abort
        self._until = until
        self._seen: int | None = None
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._broadcast.leave(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        broadcast = self._broadcast
        while not (self._ended or broadcast.closed):
            if self._seen is None:
                self._seen = broadcast.number
                return _OPENING + broadcast.frame()
            if self._seen != broadcast.number:
                self._seen = broadcast.number
                return broadcast.frame()
            if self._is_over():
                break
            await self._wait()
        raise StopAsyncIteration

    def end(self) -> None:
        """End it: its client went away."""
        self._ended = True
        self.wake()

    def wake(self) -> None:
        """Let it look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """End it, also if it is in the middle of sending."""
        if self._waiter is not None:
            self.wake()
        elif self._abort is not None:
            self._abort()

    def _is_over(self) -> bool:
        if self._broadcast.lasting:
            return False
        return self._broadcast.draining or asyncio.get_running_loop().time() >= self._until

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
