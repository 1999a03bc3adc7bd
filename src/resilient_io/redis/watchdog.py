"""Closes a multiplexed connection on which calls wait and nothing arrives."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from resilient_io.link import INTERVAL, send_queue_size

if TYPE_CHECKING:
    from resilient_io.link import LinkState, PathMonitor

    from .errors import ConnectionFailure
    from .in_flight import InFlightWrites
    from .response_queue import ReplyCollector, ResponseQueue

SECOND_CHECK = 0.005
"""Seconds between a suspicion and its consequence: a reply in the socket is read first."""


class WatchedConnection(Protocol):
    """What a watchdog asks of its connection."""

    response_timeout: float
    extra_timeout: float
    deadline: float | None
    bytes_sent: int
    delayed: bool
    socket: Any
    transport: asyncio.Transport

    @property
    def link(self) -> LinkState | None:
        """What the kernel knows about the connection."""

    @property
    def lost(self) -> object:
        """Why it was closed, or None."""

    def adopt(self, future: asyncio.Future[object], from_end: int) -> ReplyCollector:
        """Return the request that a call becomes which waits for longer than usual."""
        ...

    def adopt_queued(self) -> None:
        """Do the same with the calls that wait to be written."""

    def fall_behind(self) -> None:
        """Note a short silence."""

    def fall_silent(self) -> None:
        """Note that half of the timeout passed in silence."""

    def catch_up(self) -> None:
        """Note that the server answers again."""

    def describe_silence(self, seconds: float) -> ConnectionFailure:
        """Return what a silence of so many seconds means."""
        ...

    def close(self, failure: ConnectionFailure) -> None:
        """Close it immediately."""


class Watchdog:
    """Closes a connection that is silent for too long. One timer, armed while calls are in flight.

    It checks twice within the response timeout: a large request that is still being sent is not
    silence, and only a comparison of two checks shows progress. Progress of the oldest write alone
    counts: later writes that leave (a ping, for example) prove nothing about the peer.

    In between, while nothing arrives, it lets `path` look at what the kernel knows.
    """

    __slots__ = (
        "_connection",
        "_due",
        "_first",
        "_in_flight",
        "_left",
        "_loop",
        "_path",
        "_queue",
        "_timer",
        "_written",
    )

    def __init__(
        self,
        connection: WatchedConnection,
        in_flight: InFlightWrites,
        queue: ResponseQueue,
        path: PathMonitor | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._in_flight = in_flight
        self._queue = queue
        self._path = path if connection.link is not None else None
        self._first = min(connection.response_timeout / 2, INTERVAL)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # the loop time of the next check for silence
        # At the latest check: the bytes that the connection had written, and those that had left.
        self._written = self._left = 0

    def arm(self, now: float) -> None:
        """Start the timer at `now`, unless it is running."""
        if self._timer is None:
            self._due = now + self._connection.response_timeout / 2
            self._timer = self._loop.call_at(now + self._first, self._check)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _timeout(self) -> float:
        return self._connection.response_timeout + self._connection.extra_timeout

    def _check(self) -> None:
        self._timer = None
        connection, waiting = self._connection, self._queue.waiting
        if connection.delayed and (not waiting or self._waited() < INTERVAL / 2):
            connection.catch_up()
        if not waiting:
            return
        if self._loop.time() >= self._due and not self._check_silence():
            return
        waited = self._waited()
        pause = INTERVAL - waited if waited < INTERVAL - SECOND_CHECK else INTERVAL
        if waited >= INTERVAL - SECOND_CHECK:
            link = connection.link
            if link is None or not link.unacked:  # else the path may be gone, not the server busy
                connection.fall_behind()
            if self._path is not None and connection.lost is None:
                pause = self._path.look(connection.socket, waited)
        if connection.lost is None:
            self._timer = self._loop.call_at(min(self._due, self._loop.time() + pause), self._check)

    def _waited(self) -> float:
        """Return for how many seconds the calls in flight have waited without a byte."""
        return self._loop.time() - max(self._in_flight.writes[0].at, self._in_flight.last_byte)

    def _check_silence(self) -> bool:
        """Schedule the next check for silence. Return False if this was the last one."""
        connection = self._connection
        written = connection.bytes_sent
        left = written - self._unacknowledged()
        if self._left < self._in_flight.writes[0].end <= self._written and left > self._left:
            self._in_flight.note_progress()
        self._written, self._left = written, left
        timeout, silence = self._timeout, self._in_flight.silence()
        if silence >= timeout:
            self._timer = self._loop.call_later(
                SECOND_CHECK, self._conclude, self._in_flight.last_byte
            )
            return False
        # Not later than their deadline, although the next check is half of the timeout away.
        deadline = connection.deadline
        age = timeout if deadline is None else min(timeout, deadline - timeout / 2)
        late = self._in_flight.count_before(self._loop.time() - age)
        self._queue.promote(late, connection.adopt)
        connection.adopt_queued()
        suspicious = timeout - connection.response_timeout / 2  # not while a command may block
        if silence < suspicious:
            next_check = suspicious - silence
        else:
            next_check = timeout - silence
            connection.fall_silent()
        self._due = self._loop.time() + max(next_check, SECOND_CHECK)
        return True

    def _conclude(self, last_byte: float) -> None:
        self._timer = None
        in_flight, connection = self._in_flight, self._connection
        quiet = in_flight.last_byte == last_byte and bool(self._queue.waiting)
        if quiet and in_flight.silence() >= self._timeout:
            connection.close(connection.describe_silence(connection.response_timeout))
        else:
            self._due = self._loop.time()
            self._check()

    def _unacknowledged(self) -> int:
        """Return the number of written bytes that the peer has not acknowledged yet."""
        transport, sock = self._connection.transport, self._connection.socket
        size = transport.get_write_buffer_size()
        if sock is None:
            return size
        return size + send_queue_size(sock.fileno())
