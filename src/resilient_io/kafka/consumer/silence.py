"""Notices a connection that owes an answer and says nothing, and lets it be made anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_io.kafka.internals import connections_of, oldest_request, reconnect

from . import internals

if TYPE_CHECKING:
    from resilient_io.kafka.protocols import Connection, ConsumerDriver

__all__ = ["SilenceWatch"]

_LOOKS = 2
"""Looks in a row that must find the same silence: the first may only come before the answer that
already lies in the socket, because our own loop was blocked."""


@dataclass(slots=True)
class Owed:
    """What a connection owes: the answer to this request, of which so much has come."""

    connection: Connection
    request: object
    received: int
    since: float
    looks: int = 0


class SilenceWatch:
    """Closes connections that are silent for too long, so that the driver dials anew.

    A path that was lost without a word (a load balancer that forgot us, a broker's machine that
    went away) is otherwise noticed after the driver's `request_timeout_ms` only; the member may
    have lost its place in the group by then. A large answer that is still coming is no silence.

    Args:
        response: Seconds that most answers may take.
        fetch: Seconds more that the broker may wait for records.
        join: Seconds more that the group may wait for its members.
    """

    __slots__ = ("_fetch", "_join", "_owed", "_response", "closed")

    def __init__(self, response: float, *, fetch: float, join: float) -> None:
        self._response = response
        self._fetch = fetch
        self._join = join
        self._owed: list[Owed] = []
        self.closed = 0

    def look(self, instance: ConsumerDriver, now: float) -> None:
        """Compare with the last look.

        Args:
            instance: The one in service.
            now: The loop's time.
        """
        owed = []
        for connection in connections_of(instance):
            request = oldest_request(connection)
            if request is None or not connection.connected():
                continue
            received = internals.received(connection)
            before = next((each for each in self._owed if each.connection is connection), None)
            if before is None or before.request is not request or before.received != received:
                owed.append(Owed(connection, request, received, now))
                continue
            if now - before.since >= self._limit(request):
                before.looks += 1
                if before.looks >= _LOOKS:
                    self.closed += 1
                    reconnect(connection)
                    continue
            owed.append(before)
        self._owed = owed

    def forget(self) -> None:
        """Begin anew: while the cluster is away, silence tells nothing."""
        self._owed = []

    def _limit(self, request: object) -> float:
        kind = internals.kind_of(request)
        if kind == "fetch":
            return self._response + self._fetch
        return self._response + (self._join if kind == "join" else 0.0)
