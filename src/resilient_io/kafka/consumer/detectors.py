"""Detectors of connections, partitions and a group session that have stopped working."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_io.health import Cause, State

from ..driver import connections_of, oldest_request, reconnect
from . import internals

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka import TopicPartition

    from resilient_io.health import Dependency

    from ..protocols import Connection, ConsumerDriver
    from .assignment import AssignedPartition

_CHECKS = 2
"""Consecutive checks that must find the same silence. After the event loop was blocked, the first
check may come before the response that is already in the socket is read."""


@dataclass(slots=True)
class _PendingResponse:
    """A response that a connection waits for, and how many bytes of it have arrived."""

    connection: Connection
    request: object
    received: int
    since: float
    checks: int = 0


class DeadConnectionDetector:
    """Closes connections that have been silent for too long, so that aiokafka reconnects.

    Otherwise aiokafka notices a lost network path (a load balancer dropped the connection, the
    broker's host vanished) only after `request_timeout_ms`, and the member may have lost its place
    in the group by then. A large response that is still arriving is not silence.

    Args:
        response: Longest time for most responses, in seconds.
        fetch: Additional seconds for a fetch, which may wait for records.
        join: Additional seconds for joining the group, which may wait for other members.
    """

    __slots__ = ("_fetch", "_join", "_pending", "_response", "closed")

    def __init__(self, response: float, *, fetch: float, join: float) -> None:
        self._response = response
        self._fetch = fetch
        self._join = join
        self._pending: list[_PendingResponse] = []
        self.closed = 0

    def check(self, instance: ConsumerDriver, now: float) -> None:
        """Compare the connections with the previous check.

        Args:
            instance: The instance in service.
            now: The loop's time.
        """
        pending = []
        for connection in connections_of(instance):
            request = oldest_request(connection)
            if request is None or not connection.connected():
                continue
            received = internals.received_bytes(connection)
            before = next((each for each in self._pending if each.connection is connection), None)
            if before is None or before.request is not request or before.received != received:
                pending.append(_PendingResponse(connection, request, received, now))
                continue
            if now - before.since >= self._limit(request):
                before.checks += 1
                if before.checks >= _CHECKS:
                    self.closed += 1
                    reconnect(connection)
                    continue
            pending.append(before)
        self._pending = pending

    def reset(self) -> None:
        """Start again. Silence is not evidence while the cluster is unavailable."""
        self._pending = []

    def _limit(self, request: object) -> float:
        kind = internals.kind_of(request)
        if kind == "fetch":
            return self._response + self._fetch
        return self._response + (self._join if kind == "join" else 0.0)


class StalledPartitionDetector:
    """Makes health DEGRADED while a partition is stalled.

    A paused partition is not stalled, nor is any while Kafka is unavailable; then the time starts
    again.

    Args:
        health: Where stalled partitions are reported as lost parts.
        after: Seconds without progress, with records to read.
        group: The consumer group, for the name of the part.
    """

    __slots__ = ("_after", "_group", "_health", "_positions", "_stalled")

    def __init__(self, health: Dependency, after: float, group: str | None) -> None:
        self._health = health
        self._after = after
        self._group = group
        self._positions: dict[TopicPartition, tuple[int | None, float]] = {}
        self._stalled: dict[TopicPartition, bool] = {}

    def check(
        self,
        assigned: list[AssignedPartition],
        paused: Callable[[TopicPartition], bool],
        now: float,
    ) -> None:
        """Compare the positions with the previous check.

        Args:
            assigned: The assigned partitions.
            paused: Returns whether a partition is paused.
            now: The loop's time.
        """
        down = self._health.state is State.DOWN
        positions: dict[TopicPartition, tuple[int | None, float]] = {}
        stalled: dict[TopicPartition, bool] = {}
        for each in assigned:
            partition, at, end = each.partition, each.resume_offset, each.end_offset
            before = self._positions.get(partition)
            waiting = end is not None and (at is None or at < end)
            if before is None or before[0] != at or not waiting or down or paused(partition):
                positions[partition] = (at, now)
                continue
            positions[partition] = before
            if now - before[1] >= self._after:
                stalled[partition] = True
                # Reported once. DOWN clears the lost parts, and then `before` starts again.
                if partition not in self._stalled:
                    self._health.part_lost(
                        self._part(partition),
                        Cause.STALLED,
                        f"stalled at offset {at} for {now - before[1]:.0f} s (end offset {end})",
                    )
        for partition in self._stalled:
            if partition not in stalled:
                self._health.part_back(self._part(partition))
        self._positions, self._stalled = positions, stalled

    def close(self) -> None:
        """Withdraw all reports."""
        for partition in self._stalled:
            self._health.part_back(self._part(partition))
        self._stalled = {}

    def _part(self, partition: TopicPartition) -> str:
        prefix = "" if self._group is None else f"{self._group}: "
        return f"{prefix}{partition.topic}[{partition.partition}]"


class SessionWatch:
    """Detects that the group may have expelled this member, until the group confirms it again.

    Without an answer from the coordinator for a whole session, the group may have assigned the
    partitions to other members: records handled then cannot be committed and are handled twice.
    There is no doubt before the first confirmation, and so never without a group.

    Args:
        session: Seconds (`session_timeout_ms`) after which the group expels a member.
        changed: Called when the doubt begins or ends.

    Attributes:
        doubtful: Whether the membership is in doubt.
    """

    __slots__ = ("_changed", "_closed", "_session", "_timer", "doubtful")

    def __init__(self, session: float, changed: Callable[[], None]) -> None:
        self._session = session
        self._changed = changed
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.doubtful = False

    def confirm(self, requested_at: float) -> None:
        """Note that the group has confirmed the membership.

        Args:
            requested_at: Loop time of the request; the group's session timer started then or later.
        """
        loop = asyncio.get_running_loop()
        if self._closed or loop.time() >= requested_at + self._session:
            return  # the answer is so old that the session may have expired since
        self._cancel_timer()
        self._timer = loop.call_at(requested_at + self._session, self._doubt)
        if self.doubtful:
            self.doubtful = False
            self._changed()

    def close(self) -> None:
        """Stop watching. This method is idempotent."""
        self._closed = True
        self._cancel_timer()

    def _doubt(self) -> None:
        self._timer = None
        self.doubtful = True
        self._changed()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
