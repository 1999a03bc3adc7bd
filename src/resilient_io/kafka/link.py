"""Watches the links of a Kafka client: what the kernel knows about its connections."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from resilient_io.health import Cause
from resilient_io.link import INTERVAL, PathMonitor, combine, read_link
from resilient_io.tasks import BEAT, beat_before

from .driver import answered_at, connections_of, oldest_request, requests_sent, socket_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health import Dependency
    from resilient_io.link import LinkState

    from .driver import Connection, Driver
    from .probe import KafkaProbe

_NUDGE_AFTER = 0.25  # seconds without a byte after which a broker is sent something
_LATE = 0.15  # the same after a response is due
_LONGEST_SILENCE = 0.75  # the same whenever it is due
_NUDGE_SPACING = 1.0  # shortest time between two nudges, in seconds
_KEEP_ALIVE = 10.0  # seconds after which an unused connection of the probe is used, too


class LinkWatch:
    """Looks at the connections of one client that wait for a response, on each beat.

    A request counts as sent when it is seen, so the connections of a client that sends many are
    looked at twice as often. A request of a consumer may wait for records for `fetch` seconds,
    although its host has acknowledged it. If it waits longer, the probe's connection gets a
    request, too, so that the host has something to acknowledge.
    """

    def __init__(
        self,
        *,
        health: Dependency,
        probe: KafkaProbe,
        driver: Callable[[], Driver | None],
        fetch: float = 0.0,
    ) -> None:
        self._health = health
        self._probe = probe
        self._driver = driver
        self._path = PathMonitor(self._path_gone, others=self._sockets, partly_gone=self._host_gone)
        self._waiting: list[tuple[Connection, object, float]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._nudge_after = min(max(_NUDGE_AFTER, fetch + _LATE), _LONGEST_SILENCE)
        self._nudged = float("-inf")
        self._sent = 0

    def start(self) -> None:
        """Start the timer in the running loop."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(beat_before(loop.time() + BEAT), self._look)

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
        longest, sent = 0.0, 0
        connections = self._connections()
        suspect_at = math.inf
        for connection in connections:
            sent += requests_sent(connection)
            request = oldest_request(connection)
            if request is None or not connection.connected():
                continue
            since = now
            if connection is self._probe.connection:
                since = self._probe.requested_at
            else:
                for other, same, at in before:
                    if other is connection and same is request:
                        since = at
            self._waiting.append((connection, request, since))
            longest = max(longest, now - answered_at(connection))
            if now - since >= INTERVAL:
                pause = self._path.look(socket_of(connection), now - since)
                if pause < INTERVAL:
                    suspect_at = min(suspect_at, now + pause)
        overdue = longest >= self._nudge_after or self._unused(now)
        if overdue and now - self._nudged >= _NUDGE_SPACING:
            self._nudged = now
            self._probe.nudge()
        interval = BEAT / 2 if sent - self._sent > len(connections) else BEAT
        self._sent = sent
        look_at = min(suspect_at, beat_before(now + interval, interval))
        self._timer = loop.call_at(look_at, self._look)

    def _unused(self, now: float) -> bool:
        """Return whether the probe's connection may soon be forgotten, by a load balancer say."""
        kept = self._probe.connection
        return kept is not None and now - answered_at(kept) >= _KEEP_ALIVE

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
