"""Background work of a consumer: commits, detects silent connections and stalled partitions."""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from resilient_io.health import Cause, State
from resilient_io.tasks import beat_before, describe_task_end, log_task_death, wake

from ..driver import connections_of, oldest_request, reconnect
from . import internals

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka import TopicPartition

    from resilient_io.health import Dependency

    from ..driver import Connection, ConsumerDriver
    from ..log_filter import DriverLog
    from ..supervisor import Supervisor
    from .assignment import AssignedPartition, Assignment
    from .fetcher import Fetcher
    from .group import Committer
    from .iteration import ExclusiveUse
    from .membership import GroupDetector
    from .options import ConsumerSettings
    from .positions import Positions
    from .topics import TopicDetector

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

    A response may take `response` seconds; that of a fetch, which may wait for records, `fetch`
    more, and that of joining the group, which may wait for other members, `join` more.
    """

    def __init__(self, response: float, *, fetch: float, join: float) -> None:
        self._response = response
        self._fetch = fetch
        self._join = join
        self._pending: list[_PendingResponse] = []
        self.closed = 0

    def check(self, instance: ConsumerDriver, now: float) -> None:
        """Compare the connections with the previous check."""
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
        """Start again: silence is not evidence while the cluster is unavailable."""
        self._pending = []

    def _limit(self, request: object) -> float:
        kind = internals.kind_of(request)
        if kind == "fetch":
            return self._response + self._fetch
        return self._response + (self._join if kind == "join" else 0.0)


class _Seen(NamedTuple):
    """A partition at an earlier check."""

    at: int | None
    answer: int | None  # when the leader last answered
    since: float  # when the position last moved, or the partition was at its end


class StalledPartitionDetector:
    """Makes health DEGRADED while a partition makes no progress, although it has records to read.

    A partition whose fetches fail counts, too: aiokafka only writes the error to its log. The
    cause is an open transaction if the records after it are hidden from this consumer.
    """

    # A paused partition is not stalled, nor is any while Kafka is down: then the time starts again.

    def __init__(
        self,
        health: Dependency,
        after: float,
        group: str | None,
        *,
        fetch: float,
        driver_log: DriverLog,
    ) -> None:
        self._health = health
        self._reporter = health.reporter()
        self._after = after
        self._group = group
        self._fetch = fetch
        self._driver_log = driver_log
        self._seen: dict[TopicPartition, _Seen] = {}
        self._stalled: list[TopicPartition] = []

    def check(
        self,
        assigned: list[AssignedPartition],
        paused: Callable[[TopicPartition], bool],
        now: float,
    ) -> None:
        """Compare the positions with the previous check."""
        down = self._health.state is State.DOWN
        seen: dict[TopicPartition, _Seen] = {}
        stalled: list[TopicPartition] = []
        for each in assigned:
            partition, at, end = each.partition, each.resume_offset, each.end_offset
            before = self._seen.get(partition)
            waiting = end is not None and (at is None or at < end)
            hidden = not waiting and each.open_transaction is not None
            answered = before is None or before.answer != each.last_answer
            if (
                before is None
                or before.at != at
                or not (waiting or hidden or not answered)
                or down
                or paused(partition)
            ):
                seen[partition] = _Seen(at, each.last_answer, now)
                continue
            seen[partition] = _Seen(at, each.last_answer, before.since)
            if now - before.since >= self._after + (0.0 if waiting or hidden else self._fetch):
                stalled.append(partition)
                # Reported once. DOWN clears the lost parts, and then `before` starts again.
                if partition not in self._stalled:
                    self._report(each, now - before.since, waiting=waiting, hidden=hidden)
        for partition in self._stalled:
            if partition not in stalled:
                self._reporter.part_back(self._part(partition))
        self._seen, self._stalled = seen, stalled

    def _report(
        self, each: AssignedPartition, seconds: float, *, waiting: bool, hidden: bool
    ) -> None:
        cause, at = Cause.STALLED, each.resume_offset
        detail = f"stalled at offset {at} for {seconds:.0f} s (end offset {each.end_offset})"
        if not (waiting or hidden):
            detail = f"no fetch has succeeded for {seconds:.0f} s"
            if said := self._driver_log.last_message:
                detail += f"; last aiokafka log message: {said}"
        elif hidden:
            cause = Cause.OPEN_TRANSACTION
            detail = (
                f"an open transaction at offset {each.open_transaction} has hidden records for "
                f"{seconds:.0f} s: its producer has not ended it"
            )
        self._reporter.part_lost(self._part(each.partition), cause, detail)

    def close(self) -> None:
        """Withdraw all reports."""
        self._reporter.close()
        self._stalled = []

    def _part(self, partition: TopicPartition) -> str:
        prefix = "" if self._group is None else f"{self._group}: "
        return f"{prefix}{partition.topic}[{partition.partition}]"


_TICK = 1.0
"""Longest time between two ticks, in seconds."""

_TOPIC_CHECK_INTERVAL = 5.0
"""Seconds between two checks that no topic was deleted and created again."""


@dataclass(kw_only=True, eq=False, repr=False)
class Housekeeping:
    """A background task: commits, polls for a busy loop, and runs the detectors."""

    health: Dependency
    supervisor: Supervisor[ConsumerDriver]
    assignment: Assignment
    fetcher: Fetcher
    positions: Positions
    committer: Committer
    use: ExclusiveUse
    settings: ConsumerSettings
    stalled_partitions: StalledPartitionDetector | None
    group: GroupDetector | None
    topics: TopicDetector
    dead_connections: DeadConnectionDetector

    def __post_init__(self) -> None:
        self._topics_checked_at = -math.inf
        self._task: asyncio.Task[None] | None = None
        self._committing: asyncio.Task[bool] | None = None
        self._commit_requested: asyncio.Future[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Start the task, in the running loop."""
        self._task = asyncio.get_running_loop().create_task(
            self._run(),
            name="resilient-io kafka housekeeping",
            context=self.supervisor.context(),
        )
        self._task.add_done_callback(log_task_death)

    def liveness_failure(self) -> str | None:
        """Return why offsets are no longer committed; None while they are, or after `aclose`."""
        end = None if self._closed else describe_task_end(self._task)
        return None if end is None else f"the consumer's housekeeping task has ended: {end}"

    def commit_soon(self) -> None:
        """Commit in the next iteration of the event loop."""
        if self._commit_requested is not None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed already
                wake([self._commit_requested])

    async def aclose(self) -> None:
        """Stop the task."""
        self._closed = True
        ending = [task for task in (self._task, self._committing) if task is not None]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        for detector in (self.stalled_partitions, self.group, self.topics):
            if detector is not None:
                detector.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        interval, most = self.settings.commit_interval, self.settings.commit_records
        tick = _TICK if interval is None else min(_TICK, interval)
        commit_at = loop.time()
        check_at = commit_at + tick
        while True:
            self._commit_requested = loop.create_future()
            events = [self._commit_requested]
            if interval is not None and most is not None:
                events.append(self.fetcher.received(most))
            until_check = max(0.0, check_at - loop.time())
            await asyncio.wait(events, timeout=until_check, return_when=asyncio.FIRST_COMPLETED)
            now = loop.time()
            self._settle()
            if now >= check_at:
                check_at = now + tick if tick < _TICK else beat_before(now + tick)
                self._check(now)
            due = any(event.done() for event in events)
            if interval is not None and (due or now >= commit_at):
                self._commit()
                commit_at = now + interval - tick / 2

    def _settle(self) -> None:
        """Update the progress of the partitions with what the current loop has handled."""
        instance, stream = self.supervisor.driver, self.use.stream
        if stream is not None:
            stream.settle()
            if instance is not None and stream.made_progress():
                # aiokafka delivered these records long ago: handling them counts as a poll, too.
                internals.note_poll(instance)

    def _check(self, now: float) -> None:
        instance = self.supervisor.driver
        if self.group is not None:
            self.group.check(instance, now)
        if self.topics.check(instance, now):
            self.fetcher.wake()
        if self.stalled_partitions is not None:
            self.stalled_partitions.check(self.assignment.all, self.fetcher.paused, now)
        if instance is not None and self.health.state.answering:
            self.dead_connections.check(instance, now)
            if now - self._topics_checked_at >= _TOPIC_CHECK_INTERVAL:
                self._topics_checked_at = now
                self.positions.check_topics(instance)
        else:
            self.dead_connections.reset()

    def _commit(self) -> None:
        if self._committing is not None and not self._committing.done():
            return
        # A separate task, because the commit may wait for a connection whose silence only the
        # next check detects.
        self._committing = asyncio.get_running_loop().create_task(
            self.committer.commit(self.assignment.all, self.settings.commit_timeout),
            name="resilient-io kafka commit",
        )
