"""The first connection of a client, which is also the first probe of its server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from resilient_io.link import read_link
from resilient_io.tasks import wake

from .driver_connection import socket_of
from .turns import ConnectTurn

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from resilient_io.link import LinkState

    from .errors import ConnectionFailure


class FirstConnection:
    """The attempt to open the first connection of a client.

    The first probe waits for its result instead of opening a connection of its own.
    """

    __slots__ = ("_connection", "_turn", "_waiters", "ended", "failure")

    def __init__(self) -> None:
        self._turn = ConnectTurn()
        self._connection: AbstractConnection | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.ended = False
        self.failure: ConnectionFailure | None = None
        """Why the attempt failed, if it did."""

    @property
    def queued(self) -> float:
        """Seconds for which the attempt has waited for its turn."""
        return self._turn.waited

    @property
    def link(self) -> LinkState | None:
        """What the kernel knows about the connection while it is being opened."""
        return None if self._connection is None else read_link(socket_of(self._connection))

    def turn(self, slot: int) -> ConnectTurn:
        """Return the turn of an attempt to connect. Those of standby connections come last."""
        return ConnectTurn(standby=True) if slot else ConnectTurn() if self.ended else self._turn

    def note_connection(self, connection: AbstractConnection) -> None:
        """Take note of a connection that is being opened."""
        if not self.ended:
            self._connection = connection

    def end(self, failure: ConnectionFailure | None) -> None:
        """Take the result of an attempt. Only the first one counts."""
        if not self.ended:
            self.ended, self.failure, self._connection = True, failure, None
            waiters, self._waiters = self._waiters, []
            wake(waiters)

    async def wait(self) -> None:
        """Wait until the attempt has ended."""
        if not self.ended:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
