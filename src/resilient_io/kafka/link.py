"""Watches the links of a Kafka client: what the kernel knows about its connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from resilient_io.health import Cause
from resilient_io.link import INTERVAL, PathMonitor, combine, read_link

from .driver import connections_of, oldest_request, socket_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health import Dependency
    from resilient_io.link import LinkState

    from .driver import Connection, Driver
    from .probe import KafkaProbe

_INTERVAL = 0.1
"""Seconds between two looks for requests. A request counts as sent when it is seen, so this must be
short: the probe's connection is closed a second after its request."""

_NUDGE_AFTER = 0.25  # seconds without a byte after which a broker is sent something
_NUDGE_SPACING = 1.0  # shortest time between two nudges, in seconds


class LinkWatch:
    """Looks at the connections of one client that wait for a response, ten times a second.

    A request of a consumer may wait long for records although its host has acknowledged it. So that
    the host has something to acknowledge, the probe's connection then gets a request, too.
    """

    def __init__(
        self, *, health: Dependency, probe: KafkaProbe, driver: Callable[[], Driver | None]
    ) -> None:
        self._health = health
        self._probe = probe
        self._driver = driver
        self._path = PathMonitor(self._path_gone, others=self._sockets, partly_gone=self._host_gone)
        self._waiting: list[tuple[Connection, object, float]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._nudged = float("-inf")

    def start(self) -> None:
        """Start the timer in the running loop."""
        self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._look)

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._path.aclose()

    def links(self) -> list[LinkState]:
        """Return what the kernel knows about the open connections, if it tells."""
        return [link for sock in self._sockets() if (link := read_link(sock)) is not None]

    def _connections(self) -> list[Connection]:
        driver, kept = self._driver(), self._probe.connection
        return [*(connections_of(driver) if driver is not None else ()), *([kept] if kept else ())]

    def _sockets(self) -> list[Any]:
        found = (socket_of(connection) for connection in self._connections())
        return [sock for sock in found if sock is not None]

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        before, self._waiting = self._waiting, []
        pause = _INTERVAL
        longest = 0.0
        for connection in self._connections():
            request = oldest_request(connection)
            if request is None or not connection.connected():
                continue
            since = next(
                (at for other, same, at in before if other is connection and same is request), now
            )
            self._waiting.append((connection, request, since))
            longest = max(longest, now - since)
            if now - since >= INTERVAL:
                pause = min(pause, self._path.look(socket_of(connection), now - since))
        if longest >= _NUDGE_AFTER and now - self._nudged >= _NUDGE_SPACING:
            self._nudged = now
            self._probe.nudge()
        self._timer = loop.call_later(pause, self._look)

    def _path_gone(self, detail: str, since: float) -> None:
        now = asyncio.get_running_loop().time()
        link = combine(self.links())
        if link is not None and link.received_age < (now - since) / 2:
            self._host_gone(detail)  # another connection has received something meanwhile
            return
        self._health.note("path lost", cause=Cause.UNREACHABLE.value, detail=detail)
        self._health.unreachable(detail, now)

    def _host_gone(self, detail: str) -> None:
        """Request a probe: one broker is gone, others answer."""
        self._health.failed(Cause.UNREACHABLE, detail)
