"""Where an assigned partition starts, and where it continues when its position no longer exists.

aiokafka decides both with `auto_offset_reset`. With "latest", it then skips records silently: those
that remain after retention has deleted the position, those of a partition that was added while the
group was reading, and those of a topic that was deleted and created again. So aiokafka runs with
"none", and this module decides: `auto_offset_reset` is for a group that has never read the topic.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from resilient_io.health import Cause
from resilient_io.retry import Backoff
from resilient_io.tasks import log_task_death, wake

from ..topic_ids import request_topic_ids
from . import internals
from .commit_metadata import CommitMetadata, decode_metadata, merge_ranges

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextvars import Context

    from aiokafka import TopicPartition
    from aiokafka.structs import OffsetAndMetadata

    from resilient_io.health import Dependency

    from ..driver import ConsumerDriver
    from ..stats import ConsumerCounters
    from .assignment import AssignedPartition, Assignment, ResumePosition

    GapDecision = Literal["continue", "stop"]
    OnGap = GapDecision | Callable[["RecordsLost"], GapDecision | Awaitable[GapDecision]]
    Reason = Literal["deleted", "recreated", "truncated", "beyond the end"]

_log = logging.getLogger("resilient_io.kafka")

_T = TypeVar("_T")

Strategy = Literal["earliest", "latest", "none"]

_BACKOFF = 0.1
_BACKOFF_CAP = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsLost:
    """Records that Kafka no longer has, and that this consumer therefore cannot deliver.

    Attributes:
        topic: Topic name.
        partition: Partition number.
        position: The offset of the next record to read, which does not exist.
        continues_at: The offset at which reading continues.
        count: Number of offsets that were skipped; None if it is unknown.
        reason: "deleted" (by retention or `delete_records`), "recreated" (the topic was deleted,
            and created again with the same name), "truncated" (the log ends before the position,
            for example after an unclean leader election), or "beyond the end" (a seek moved the
            position there).
    """

    topic: str
    partition: int
    position: int | None
    continues_at: int
    count: int | None
    reason: Literal["deleted", "recreated", "truncated", "beyond the end"]

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]: {self.detail}"

    @property
    def detail(self) -> str:
        """What is lost, without the name of the partition."""
        count = "an unknown number of" if self.count is None else self.count
        return (
            f"{count} records are lost ({self.reason}): the position was {self.position}, reading "
            f"continues at {self.continues_at}"
        )


class KafkaRecordsLost(KafkaError):
    """Records are lost, and `on_gap` decided to stop.

    Attributes:
        lost: What is lost. `seek` to `lost.continues_at` skips it.
    """

    def __init__(self, lost: RecordsLost) -> None:
        super().__init__(str(lost))
        self.lost = lost


@dataclass(frozen=True, slots=True)
class GroupOffsets:
    """What the group has committed, and the topics as they are now."""

    offsets: dict[TopicPartition, OffsetAndMetadata]
    topic_ids: dict[str, str]  # empty if the broker does not know topic IDs


class Positions:
    """Sets the positions of assigned partitions, and reports records that are lost.

    Everything that needs a request runs in tasks of its own: a partition is not fetched from until
    its task has set a position.
    """

    def __init__(
        self,
        health: Dependency,
        *,
        assignment: Assignment,
        strategy: Strategy,
        on_gap: OnGap,
        degraded_for: float,
        timeout: float,
        group: str | None,
        has_pattern: bool,
        drop: Callable[[tuple[TopicPartition, ...]], None],
        context: Callable[[], Context],
        counters: ConsumerCounters,
    ) -> None:
        self._health = health
        self._reporter = health.reporter()
        self._assignment = assignment
        self._strategy: Strategy = strategy
        self._on_gap = on_gap
        self._degraded_for = degraded_for
        self._timeout = timeout
        self._group = group
        self._has_pattern = has_pattern
        self._drop = drop
        self._changed: asyncio.Future[None] | None = None
        self._context = context
        self._counters = counters
        self._tasks: list[asyncio.Task[None]] = []
        self._checking: asyncio.Task[None] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[TopicPartition, Exception] = {}
        self._from_beginning: tuple[str, ...] = ()

    def read_from_beginning(self, topics: tuple[str, ...]) -> None:
        """Begin at the start of these topics if the group has never read them."""
        self._from_beginning = topics

    # --- a new assignment

    async def committed(
        self, instance: ConsumerDriver, partitions: list[TopicPartition]
    ) -> GroupOffsets:
        """Query the committed offsets and the topic IDs of assigned partitions."""
        queried = list(partitions)
        if self._strategy == "latest":
            # Another partition shows whether the group has read the topic, or the pattern, before.
            known = set(queried)
            queried += [each for each in internals.subscribed(instance) if each not in known]
        offsets = await internals.committed_offsets(instance, queried)
        topics = sorted({partition.topic for partition in partitions})
        return GroupOffsets(offsets, await request_topic_ids(instance, topics))

    def begin(self, assigned: AssignedPartition, group: GroupOffsets | None) -> None:
        """Set the position of a partition that was just assigned, unless it is committed.

        `group` is None if the group's offsets are unknown: then aiokafka queries them, and reports
        if there is none.
        """
        before = self._assignment.left_at(assigned.partition)
        if group is None:
            self._assignment.resume(assigned, before)
            return
        assigned.topic_id = group.topic_ids.get(assigned.partition.topic)
        metadata = CommitMetadata()
        if (found := group.offsets.get(assigned.partition)) is not None:
            metadata = decode_metadata(found.metadata, found.offset)
            assigned.committed_metadata = found.metadata
        if self._recreated(assigned, metadata.topic_id, before):
            position = assigned.committed if before is None else before.offset
            restart = functools.partial(self._restart, assigned, position, assigned.topic_id)
            self._run(assigned, restart)
            return
        if not self._assignment.resume(assigned, before) and assigned.committed is None:
            self._apply_strategy(assigned, group)
        assigned.handled = merge_ranges(assigned.handled, metadata.handled)

    def _recreated(
        self, assigned: AssignedPartition, committed_id: str | None, before: ResumePosition | None
    ) -> bool:
        """Return whether the topic is another one than that of the known offsets."""
        current = assigned.topic_id
        earlier = [committed_id]
        if before is not None:
            earlier.append(before.topic_id)
        if current is not None and any(each not in (None, current) for each in earlier):
            return True
        # Kafka deletes the committed offsets of a deleted topic.
        gone = before is not None and before.committed is not None and assigned.committed is None
        return gone and (current is None or before is None or before.topic_id is None)

    def _apply_strategy(self, assigned: AssignedPartition, group: GroupOffsets) -> None:
        if self._strategy_of(assigned.partition) == "none":
            return  # aiokafka raises NoOffsetForPartitionError
        # A partition that was added since, or a new topic of the pattern.
        added = any(
            self._has_pattern or each.topic == assigned.partition.topic for each in group.offsets
        )
        beginning = self._strategy_of(assigned.partition) == "earliest" or added
        assigned.fetched = None
        internals.reset_position(assigned.instance, assigned.partition, beginning=beginning)

    def _strategy_of(self, partition: TopicPartition) -> Strategy:
        if partition.topic in self._from_beginning:
            return "earliest"
        return self._strategy

    # --- while reading

    def change(self) -> asyncio.Future[None]:
        """Return a future that is done when a position was found or reading has stopped."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def failure(self) -> Exception | None:
        """Return why reading has stopped: `on_gap` decided so, or raised."""
        for partition, failure in list(self._failures.items()):
            if self._assignment.get(partition) is not None:
                return failure
            del self._failures[partition]
        return None

    def sought(self, assigned: AssignedPartition, offset: int) -> None:
        """Note that the caller has moved a position, also one at which reading had stopped."""
        assigned.sought = offset
        if self._failures.pop(assigned.partition, None) is not None:
            assigned.resetting = False

    def handle(self, instance: ConsumerDriver, error: Exception) -> bool:
        """Find a new position if a fetch failed for want of one. Return whether it did."""
        if isinstance(error, OffsetOutOfRangeError):
            partitions = list(error.args[0])
        elif (
            isinstance(error, NoOffsetForPartitionError)
            and self._strategy_of(error.args[0]) != "none"
        ):
            partitions = [error.args[0]]
        else:
            return False
        for partition in partitions:
            assigned = self._assignment.get(partition)
            if assigned is not None and assigned.instance is instance:
                self._run(assigned, functools.partial(self._find_position, assigned))
        return True

    def check_topics(self, instance: ConsumerDriver) -> None:
        """Check in the background that no topic was deleted and created again."""
        if self._checking is None or self._checking.done():
            self._checking = self._task(self._check_topics(instance), "topic IDs")

    async def _check_topics(self, instance: ConsumerDriver) -> None:
        assigned = [each for each in self._assignment.all if each.instance is instance]
        topics = sorted({each.partition.topic for each in assigned})
        try:
            ids = await self._within_timeout(request_topic_ids(instance, topics))
        except (KafkaError, TimeoutError):
            return
        for each in assigned:
            topic_id = ids.get(each.partition.topic)
            if topic_id is None or not each.assigned:
                continue
            if each.topic_id is None:
                each.topic_id = topic_id
            elif each.topic_id != topic_id:
                restart = functools.partial(self._restart, each, each.resume_offset, topic_id)
                self._run(each, restart)

    # --- finding a position

    async def _find_position(self, assigned: AssignedPartition) -> None:
        position, instance = assigned.position, assigned.instance
        if position is None:
            group = await self._within_timeout(self.committed(instance, [assigned.partition]))
            if assigned.partition not in group.offsets:
                self._apply_strategy(assigned, group)
            return
        start, end = await self._offset_range(assigned)
        topics = [assigned.partition.topic]
        ids = await self._within_timeout(request_topic_ids(instance, topics))
        current = ids.get(assigned.partition.topic)
        if assigned.position != position or not assigned.assigned:
            return
        known = None not in (current, assigned.topic_id)
        sought = assigned.sought == position
        if known and current != assigned.topic_id:
            await self._restart(assigned, position, current)
        elif position < start:
            await self._continue(assigned, position, start, "deleted")
        elif position <= end:  # it is in range by now
            assigned.move(position)
        elif sought:
            await self._continue(assigned, position, end, "beyond the end")
        elif known:
            await self._continue(assigned, position, end, "truncated")
        else:
            await self._restart(assigned, position, current)

    async def _restart(
        self, assigned: AssignedPartition, position: int | None, topic_id: str | None
    ) -> None:
        """Begin at the start of a topic that was created again, with this ID."""
        start, _ = await self._offset_range(assigned)
        if await self._report(assigned, position, start, "recreated"):
            # What is in hand belongs to the old topic, and is never committed.
            self._drop((assigned.partition,))
            assigned.seek(start)
            assigned.topic_id = topic_id
            assigned.committed_known = False

    async def _offset_range(self, assigned: AssignedPartition) -> tuple[int, int]:
        request = internals.offset_range(assigned.instance, assigned.partition)
        return await self._within_timeout(request)

    async def _within_timeout(self, request: Awaitable[_T]) -> _T:
        """Limit the time of a request. That of `on_gap` is up to the caller."""
        async with asyncio.timeout(self._timeout):
            return await request

    async def _continue(
        self, assigned: AssignedPartition, position: int, offset: int, reason: Reason
    ) -> None:
        if await self._report(assigned, position, offset, reason):
            # Records in hand stay: they are committed when they are handled.
            assigned.move(offset)

    async def _report(
        self, assigned: AssignedPartition, position: int | None, offset: int, reason: Reason
    ) -> bool:
        """Report lost records; return whether to continue."""
        topic, number = assigned.partition
        count = offset - position if reason == "deleted" and position is not None else None
        lost = RecordsLost(
            topic=topic,
            partition=number,
            position=position,
            continues_at=offset,
            count=count,
            reason=reason,
        )
        self._counters.gaps += 1
        self._counters.records_lost += count or 0
        name = self._health.name
        _log.warning(
            "%s: %s",
            name,
            lost,
            extra={
                "event": "records_lost",
                "dependency": name,
                "topic": topic,
                "partition": number,
                "position": position,
                "continues_at": offset,
                "records": count,
                "reason": reason,
            },
        )
        self._health.note("records lost", partition=f"{topic}[{number}]", detail=lost.detail)
        self._degrade(f"{topic}[{number}]", lost.detail)
        try:
            decision: Any = self._on_gap if isinstance(self._on_gap, str) else self._on_gap(lost)
            if inspect.isawaitable(decision):
                decision = await decision
        # The boundary to the callback of the caller: the consumer raises what it raised.
        except Exception as error:  # noqa: BLE001
            self._failures[assigned.partition] = error
        else:
            if decision != "continue":
                self._failures[assigned.partition] = KafkaRecordsLost(lost)
        return assigned.assigned and assigned.partition not in self._failures

    def _degrade(self, place: str, detail: str) -> None:
        part = place if self._group is None else f"{self._group}: {place}"
        if part in self._timers:
            self._timers.pop(part).cancel()
            self._reporter.part_back(part)
        self._reporter.part_lost(part, Cause.RECORDS_LOST, detail)
        loop = asyncio.get_running_loop()
        self._timers[part] = loop.call_later(self._degraded_for, self._recover, part)

    def _recover(self, part: str) -> None:
        del self._timers[part]
        self._reporter.part_back(part)

    # --- tasks

    def close(self) -> None:
        """Withdraw all reports."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._reporter.close()

    async def aclose(self) -> None:
        """End all tasks."""
        self.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _run(
        self, assigned: AssignedPartition, find: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Fetch nothing from a partition until `find` has set its position."""
        if not assigned.resetting:
            assigned.resetting = True
            self._task(self._until_found(assigned, find), "position")

    async def _until_found(
        self, assigned: AssignedPartition, find: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        backoff = Backoff(_BACKOFF, _BACKOFF_CAP)
        while assigned.assigned:
            try:
                await find()
            except (KafkaError, TimeoutError):
                await asyncio.sleep(backoff.next())
                continue
            break
        if assigned.partition not in self._failures:
            assigned.resetting = False
        if self._changed is not None:
            wake([self._changed])

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(
            work, name=f"resilient-io kafka {name}", context=self._context()
        )
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)
        task.add_done_callback(log_task_death)
        return task
