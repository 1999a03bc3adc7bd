"""How often an idle client pings its server, if hundreds of clients do so in one event loop.

A reply to one of them shows that the server answers. What remains to be found out is whether the
connections of each client still work, which needs a ping every few seconds.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from resilient_io.binding import PerLoop

if TYPE_CHECKING:
    import random

    from .connection import MultiplexedConnection
    from .multiplexer import Multiplexer

MOST_PINGS = 200
"""Pings a second of the clients of one server, above which they take turns."""

LONGEST_PAUSE = 5.0
"""Longest time, in seconds, between two pings of an idle client."""

_SPREAD = 0.8  # smallest part of a pause, so that clients do not ping in the same moment for long

_ANSWER = 0.1  # seconds for which the others wait for the answer to the ping of one client

_servers: PerLoop[dict[Any, _Server]] = PerLoop()


class _Server:
    """The clients of one event loop that are connected to one address."""

    __slots__ = ("answered", "asked", "clients")

    def __init__(self) -> None:
        self.clients = 0
        self.answered = self.asked = -math.inf  # when it last answered, and was first asked since


class PingTurns:
    """The turns of one client among those of the same server, in the running event loop.

    Up to 200 clients, each of them pings as often as it is probed. With more, each of them pings at
    least every five seconds, as long as the server answers others. If it has answered none of them
    for the probe interval, one of them pings, and all do so if that is not answered within 0.1 s.

    A server is the address that the open connection leads to.
    """

    __slots__ = ("_interval", "_multiplexer", "_pause", "_peer", "_rng", "_servers")

    def __init__(self, multiplexer: Multiplexer, rng: random.Random) -> None:
        self._servers = _servers.of(asyncio.get_running_loop(), dict)
        self._multiplexer = multiplexer
        self._interval = multiplexer.health.settings.interval
        self._rng = rng
        self._peer: Any = None
        self._pause = 0.0

    def replied_elsewhere(self) -> float:
        """Return the loop time of an answer to another client, which makes a ping unnecessary.

        It is -inf if this client has to ping. A ping is due an interval after the answer.
        """
        connection = self._multiplexer.preferred
        server = self._server(connection)
        if server is None or connection is None or server.clients <= MOST_PINGS:
            return -math.inf
        if self._multiplexer.time() >= connection.last_byte + self._pause:
            return -math.inf
        return max(server.answered, server.asked + _ANSWER - self._interval)

    def note_ping(self) -> None:
        """Note that this client pings."""
        server = self._server(self._multiplexer.preferred)
        if server is not None and server.asked <= server.answered:
            server.asked = self._multiplexer.time()

    def note_answer(self) -> None:
        """Note that the server has answered a ping of this client, and draw the next pause."""
        server = self._server(self._multiplexer.preferred)
        if server is not None:
            server.answered = self._multiplexer.time()
            if server.clients > MOST_PINGS:
                pause = min(server.clients / MOST_PINGS, LONGEST_PAUSE)
                self._pause = self._rng.uniform(_SPREAD, 1.0) * pause

    def leave(self) -> None:
        """Count the client no longer. Idempotent."""
        server = self._servers.get(self._peer)
        if server is not None:
            server.clients -= 1
            if not server.clients:
                del self._servers[self._peer]
        self._peer = None

    def _server(self, connection: MultiplexedConnection | None) -> _Server | None:
        """Return the server that a connection leads to, where the client is counted from now on."""
        if connection is None or self._multiplexer.bound:
            return None
        if connection.peer != self._peer:
            self.leave()
            self._peer = connection.peer
            if self._peer is not None:
                self._servers.setdefault(self._peer, _Server()).clients += 1
        return self._servers.get(self._peer)
