"""What the other connections do while the current one is blocked or carries large values.

The server, or a huge reply, may keep the calls of a connection waiting while other connections are
answered: CLIENT PAUSE WRITE delays a write, and so every call behind it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from resilient_io.health import Cause

from .connection import LARGE

if TYPE_CHECKING:
    import asyncio

    from .attempt import AttemptFailed
    from .connection import MultiplexedConnection, PendingRequest
    from .multiplexer import Multiplexer

PING = b"*1\r\n$4\r\nPING\r\n"

_LARGEST_SHARED = 1024 * 1024 + LARGE
"""Bytes of a request above which a server may refuse a value in it, and close the connection.

`proto-max-bulk-len` cannot be less than 1 MiB.
"""

_MOST_SHARED = 16 * 1024 * 1024  # bytes of large requests that share one connection


class Standby:
    """Chooses the connections for large requests, and for reads while the current one is silent."""

    def __init__(self, multiplexer: Multiplexer) -> None:
        self._multiplexer = multiplexer
        self._answering: MultiplexedConnection | None = None
        self._asking = False
        self._replacing = False

    # -- large values ----------------------------------------------------------------------

    def needs_own_connection(self, request: PendingRequest) -> bool:
        """Return whether a large request must not share a connection."""
        multiplexer = self._multiplexer
        if multiplexer.bound or multiplexer.current is None or not request.movable:
            return False
        return len(request.data) > _LARGEST_SHARED or self.for_large() is None

    def for_large(self) -> MultiplexedConnection | None:
        """Return the connection for another large request, or None if none should carry it.

        Large requests share one connection, so that another one is free for small calls.
        """
        connections = self._multiplexer.connections
        busy = [each for each in connections if each.busy]
        if not busy:
            return self._multiplexer.current
        for each in busy:
            if not each.hogged and not each.full and each.load < _MOST_SHARED:
                return each
        return None

    # -- huge replies ----------------------------------------------------------------------

    def make_room(self) -> bool:
        """Replace a connection that receives a huge reply, because all connections are busy.

        Return whether calls should wait for the new connection.
        """
        multiplexer = self._multiplexer
        if not self._replacing and not multiplexer.bound:
            hogged = next((each for each in multiplexer.connections if each.hogged), None)
            if hogged is not None:
                self._replacing = True
                multiplexer.retire(hogged, why="a huge reply occupies it")
        return self._replacing

    def replaced(self) -> None:
        """Let calls wait no longer: a connection was opened, or could not be."""
        self._replacing = False

    # -- a server that answers only on another connection --------------------------------------

    def instead_of(self, connection: MultiplexedConnection) -> MultiplexedConnection | None:
        """Return the connection for reads while the server sends nothing on the current one."""
        other = self._answering
        if not connection.delayed or other is None or other.lost is not None:
            return None
        return None if other.busy or other.full or other.retired.done() else other

    def ask(self, silent: MultiplexedConnection) -> None:
        """Ask on another connection whether the server answers, unless that was asked already."""
        multiplexer = self._multiplexer
        if silent is self._answering:
            self._answering = None  # it answers no longer
            multiplexer.connection_changed()
        if silent is not multiplexer.current or silent.delayed or self._asking:
            return
        others = (each for each in multiplexer.connections if each is not silent)
        other = next((each for each in others if not each.busy and not each.in_flight), None)
        if other is None or multiplexer.bound:
            return
        self._asking = True
        answer = other.ask(PING)
        answer.add_done_callback(partial(self._answered, silent, other, silent.last_byte))

    def _answered(
        self,
        silent: MultiplexedConnection,
        other: MultiplexedConnection,
        last_byte: float,
        answer: asyncio.Future[object],
    ) -> None:
        self._asking = False
        if answer.cancelled() or isinstance(answer.result(), Exception):
            return
        if silent.lost is None and silent.last_byte == last_byte and silent.in_flight:
            self._answering, silent.delayed = other, True
            self._multiplexer.health.note("reads moved", why="the server delays other replies")
            self._multiplexer.connection_changed()
            silent.check_clocks()


def note_loss(lost: list[MultiplexedConnection], failed: AttemptFailed) -> None:
    """Add the connection of a failed attempt if the server closed it while it had the request."""
    connection = failed.connection
    if failed.cause is Cause.RESET and connection is not None and connection.lost:
        lost.append(connection)  # type: ignore[arg-type]


def may_have_killed(lost: list[MultiplexedConnection], multiplexer: Multiplexer) -> bool:
    """Return whether the call that lost these connections may be the reason.

    It is not if the server was restarted, which ends the other connections, too.
    """
    if len(lost) > 1:
        return True
    return any(each.opened < ended.ended for ended in lost for each in multiplexer.connections)
