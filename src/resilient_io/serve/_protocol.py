"""uvicorn's HTTP, bounded and quiet: connections in the service's own loop.

Written against `uvicorn.protocols.http.h11_impl.H11Protocol` of uvicorn 0.54; the contract tests
in tests/unit/serve fail when what is used of it changes.
"""

from __future__ import annotations

import asyncio
import logging
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from resilient_io import wall_clock

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

__all__ = ["Connections", "Protocol"]

CONNECTIONS: Final = 256
"""So many at once; they must not use up the service's files."""

PATIENCE: Final = 10.0
"""Seconds in which a request has to have come, from the connection or its first byte on."""

STALLED: Final = 30.0
"""Seconds after which a client that takes nothing is cut off."""

_log: Final = logging.getLogger("resilient_io.serve.http")
# uvicorn writes a warning for every request that is malformed, or wants another protocol: that
# is what port scanners send. What is left are its reports of exceptions.
_log.setLevel(logging.ERROR)


class Connections(ServerState):
    """The connections of one server, and the tasks that answer on them."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[Protocol, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def full(self) -> bool:
        """Whether no more are wanted."""
        return len(self._open) > CONNECTIONS

    def add(self, protocol: Protocol) -> None:
        """Count a new one."""
        self._open[protocol] = None
        self._empty.clear()

    def remove(self, protocol: Protocol) -> None:
        """Forget one that was lost."""
        self._open.pop(protocol, None)
        if not self._open:
            self._empty.set()

    def finish(self) -> None:
        """Close those that are idle now, and the others after their answer."""
        for protocol in list(self._open):
            if not protocol.transport.is_closing():
                protocol.shutdown()

    def cut(self) -> None:
        """End them at once, whatever they are doing."""
        for protocol in list(self._open):
            protocol.transport.abort()

    async def emptied(self) -> None:
        """Wait until there is none."""
        await self._empty.wait()

    async def settled(self, timeout: float) -> None:
        """Wait until nothing answers any more."""
        if self.tasks:
            await asyncio.wait(list(self.tasks), timeout=timeout)


class Protocol(H11Protocol):
    """One connection."""

    server_state: Connections

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = _log
        self.access_log = False
        self._request: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, unless there are too many."""
        super().connection_made(transport)
        self.server_state.add(self)
        if self.server_state.full:
            transport.abort()
            return
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        """Read on; a request that does not become complete must not hold the connection."""
        date = formatdate(wall_clock.now(), usegmt=True).encode()
        self.server_state.default_headers = [(b"date", date)]
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's own hint forgets None
        if cycle is None or cycle.response_complete:
            self._wait_for_request()
        elif self._request is not None:
            self._request.cancel()
            self._request = None

    def pause_writing(self) -> None:
        """Wait for a client that reads slowly, but not for ever."""
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self._forget_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self._forget_stall()
        if self._request is not None:
            self._request.cancel()
            self._request = None
        self._unset_keepalive_if_required()  # uvicorn leaves that of a connection that was reset
        self.server_state.remove(self)

    def _wait_for_request(self) -> None:
        if self._request is None and not self.transport.is_closing():
            self._request = self.loop.call_later(PATIENCE, self.transport.abort)

    def _forget_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
