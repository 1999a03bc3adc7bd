"""Server-sent events: the latest status for every reader, however slow.

There is no task and no queue. A reader that has not taken an event when the next one is published
skips it. The timer and the subscription exist only while there are readers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from resilient_io.health import HealthMonitor, MonitorChange, Subscription

INTERVAL: Final = 1.0  # seconds between two events while nothing changes
# Lifetime of a stream on a server that is not ours; browsers reconnect.
STREAM_SECONDS: Final = 10.0
MAX_READERS: Final = 64  # most readers at a time; each holds a connection
_RECONNECT: Final = b"retry: 1000\n\n"


class StatusBroadcast:
    """The event stream of one service.

    With `closes_streams`, the server calls `close()` before it waits for the streams to end.
    Another server may wait for its connections first and shut the application down afterwards: then
    a stream ends after `STREAM_SECONDS`, and immediately while the service drains.
    """

    def __init__(
        self, monitor: HealthMonitor, status: Callable[[], str], *, closes_streams: bool
    ) -> None:
        self.monitor = monitor
        self._status = status
        self.closes_streams = closes_streams
        self.closed = False
        self.number = 0
        self._frame_number: int | None = None
        self._frame = b""
        self._readers: list[EventReader] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._subscription: Subscription[MonitorChange] | None = None

    @property
    def full(self) -> bool:
        """Whether no further reader is accepted."""
        return self.closed or len(self._readers) >= MAX_READERS

    def open(self, abort: Callable[[], object] | None = None) -> EventReader:
        """Return a new reader, a context manager.

        `close()` calls `abort`, which closes the connection, if the reader is sending: nothing else
        would end a send to a client that does not read.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the readers of an event loop that was closed never left
            self._stop_timer()
            self._readers.clear()
            self._loop = loop
        self._frame_number = None  # a new reader gets the current status, not that of the last tick
        reader = EventReader(self, abort, until=loop.time() + STREAM_SECONDS)
        self._readers.append(reader)
        if self._timer is None:
            self._timer = loop.call_later(INTERVAL, self._tick)
            self._subscription = self.monitor.on_change(lambda _: self._publish())
        return reader

    def leave(self, reader: EventReader) -> None:
        """Remove a reader."""
        if reader in self._readers:
            self._readers.remove(reader)
        if not self._readers:
            self._stop_timer()

    def close(self) -> None:
        """End every stream, and accept no more readers."""
        self.closed = True
        for reader in self._readers:
            reader.close()
        self._stop_timer()

    def reopen(self) -> None:
        """Accept readers again after `close()`."""
        self.closed = False

    def frame(self) -> bytes:
        """Return the latest event, built once for all readers."""
        if self._frame_number != self.number:
            self._frame = b"event: status\ndata: " + self._status().encode() + b"\n\n"
            self._frame_number = self.number
        return self._frame

    def _publish(self) -> None:
        self.number += 1
        for reader in self._readers:
            reader.wake()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._tick)
        self._publish()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._subscription is not None:
            self._subscription.remove()
            self._subscription = None


class EventReader:
    """One stream: `async for chunk in reader` yields what to send until the stream ends."""

    def __init__(
        self, broadcast: StatusBroadcast, abort: Callable[[], object] | None, *, until: float
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
                return _RECONNECT + broadcast.frame()
            if self._seen != broadcast.number:
                self._seen = broadcast.number
                return broadcast.frame()
            if not broadcast.closes_streams and (
                broadcast.monitor.draining or asyncio.get_running_loop().time() >= self._until
            ):
                break
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        raise StopAsyncIteration

    def end(self) -> None:
        """End the stream because its client disconnected."""
        self._ended = True
        self.wake()

    def wake(self) -> None:
        """Wake the reader if it waits for an event."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """End the stream, even if the reader is sending."""
        if self._waiter is not None:
            self.wake()
        elif self._abort is not None:
            self._abort()
