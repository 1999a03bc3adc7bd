"""The assigned partitions, and how they come and go with the group's rebalances."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError

from ..record import PartitionProgress
from . import internals

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from aiokafka import TopicPartition

    from resilient_io.health import Dependency

    from ..protocols import ConsumerDriver
    from ..record import Record
    from .commits import Committer
    from .detectors import SessionWatch
    from .exclusive_use import ExclusiveUse
    from .fetcher import Fetcher
    from .options import ConsumerSettings
    from .stats import ConsumerCounters

_log = logging.getLogger("resilient_io.kafka")


class AssignedPartition:
    """A partition, from one assignment until its end.

    Attributes:
        partition: Topic and partition number.
        instance: The aiokafka instance that the partition was assigned to.
        member: The group member that the partition was assigned to; None without a group.
        progress: Which of its records are handled.
        buffered: Records that were taken from aiokafka and wait to be delivered, in order.
        committed: The group's committed offset; None if there is none.
        committed_known: Whether `committed` is known.
        fetchable: Whether records may be fetched; False once the partition is being revoked.
        assigned: Whether the partition is still assigned.
    """

    __slots__ = (
        "_state",
        "assigned",
        "buffered",
        "committed",
        "committed_known",
        "fetchable",
        "instance",
        "member",
        "partition",
        "progress",
    )

    def __init__(
        self,
        partition: TopicPartition,
        instance: ConsumerDriver,
        member: internals.GroupMember | None,
        committed: int | None,
        *,
        committed_known: bool,
    ) -> None:
        self.partition = partition
        self.instance = instance
        self.member = member
        self.progress = PartitionProgress()
        self.buffered: list[Record] = []
        self.committed = committed
        self.committed_known = committed_known
        self.fetchable = True
        self.assigned = True
        # Kept here because aiokafka forgets the state when the partition is revoked.
        self._state = internals.state_of(instance, partition)

    @property
    def position(self) -> int | None:
        """The offset of the next record from aiokafka; None while it is unknown."""
        state = self._state
        return state.position if state is not None and state.has_valid_position else None

    @property
    def end_offset(self) -> int | None:
        """The end offset that the latest fetch reported; None before the first one."""
        return None if self._state is None else self._state.highwater

    @property
    def last_answer(self) -> int | None:
        """When the leader last answered, in milliseconds since 1970; None before the first time."""
        return None if self._state is None else self._state.timestamp

    @property
    def resume_offset(self) -> int | None:
        """The first offset that is not handled; None while the position is unknown."""
        first = self.progress.first_outstanding
        if first is not None:
            return first
        # Every record taken from aiokafka is handled. Its position may be after offsets that it
        # never delivers (transaction markers), or where a seek moved it.
        return self.progress.committable if self.position is None else self.position

    @property
    def offset_to_commit(self) -> int | None:
        """The offset to commit; None if it is committed already or unknown."""
        offset = self.progress.committable if self.progress.outstanding else self.resume_offset
        if offset is None or (self.committed_known and offset == self.committed):
            return None
        return offset

    def lag(self, end: int | None) -> int | None:
        """Return the number of offsets between the committed one and `end`; None if unknown.

        Without a group or a commit, the first unhandled offset counts instead.
        """
        at = self.resume_offset
        if self.member is not None and self.committed_known and self.committed is not None:
            at = self.committed
        return None if end is None or at is None else max(0, end - at)

    def note_commit(self, offset: int) -> None:
        """Note that the group has committed an offset."""
        self.committed, self.committed_known = offset, True

    def seek(self, offset: int) -> None:
        """Continue at another offset; outstanding records no longer count."""
        self.buffered = []
        self.progress = PartitionProgress()
        self.instance.seek(self.partition, offset)

    def rewind(self) -> None:
        """Read the outstanding records again."""
        first = self.progress.first_outstanding
        if first is not None:
            committable = self.progress.committable
            self.seek(first)
            if committable is not None:
                self.progress.reached(committable)


@dataclass(frozen=True, slots=True)
class ResumePosition:
    """Where to continue with a partition that was revoked, if it is assigned again.

    Attributes:
        committed: The group's committed offset when the partition was revoked; None for none.
        offset: The first offset that was not handled here.
    """

    committed: int | None
    offset: int


class Assignment:
    """All assigned partitions, and the resume positions of earlier ones.

    If a partition is assigned again and the group's committed offset has not changed, no other
    member has handled its records in the meantime. Reading then continues after the records that
    were handled here, instead of at the committed offset: records whose commit failed are not read
    twice, and without any commit, no record is skipped (aiokafka would begin at the end).
    """

    __slots__ = ("_assigned", "_counters", "_resume_positions")

    def __init__(self, counters: ConsumerCounters) -> None:
        self._assigned: dict[TopicPartition, AssignedPartition] = {}
        self._resume_positions: dict[TopicPartition, ResumePosition] = {}
        self._counters = counters

    @property
    def all(self) -> list[AssignedPartition]:
        """The assigned partitions, in the order of their assignment."""
        return list(self._assigned.values())

    @property
    def partitions(self) -> tuple[TopicPartition, ...]:
        """Topics and numbers of the assigned partitions."""
        return tuple(self._assigned)

    def get(self, partition: TopicPartition) -> AssignedPartition | None:
        """Return an assigned partition, or None if it is not assigned."""
        return self._assigned.get(partition)

    def add(self, assigned: AssignedPartition) -> None:
        """Add a partition; it continues at its resume position if that is still valid."""
        partition = assigned.partition
        resume = self._resume_positions.pop(partition, None)
        if (
            resume is not None
            and assigned.committed_known
            and resume.committed == assigned.committed
        ):
            assigned.instance.seek(partition, resume.offset)
            if resume.offset != assigned.committed:
                self._counters.resumed += 1
        self._assigned[partition] = assigned

    def stop_fetching(self, instance: ConsumerDriver) -> list[AssignedPartition]:
        """Stop fetching from all partitions of an instance, which stay assigned until `remove`."""
        going = [each for each in self._assigned.values() if each.instance is instance]
        for each in going:
            each.fetchable = False
        return going

    def remove(self, going: Iterable[AssignedPartition], *, remember: bool) -> None:
        """Remove partitions, and remember where to resume them if `remember` is set."""
        for each in going:
            each.assigned = False
            partition = each.partition
            if self._assigned.get(partition) is each:
                del self._assigned[partition]
            if not remember or not each.committed_known:
                self._resume_positions.pop(partition, None)
                continue
            offset = each.resume_offset
            if offset is not None:
                self._resume_positions[partition] = ResumePosition(each.committed, offset)


class Rebalancer:
    """Assigns and revokes partitions as the group decides.

    Before a partition is revoked, records in hand are drained and offsets are committed.
    """

    def __init__(
        self,
        health: Dependency,
        *,
        assignment: Assignment,
        fetcher: Fetcher,
        committer: Committer,
        use: ExclusiveUse,
        session: SessionWatch,
        settings: ConsumerSettings,
        counters: ConsumerCounters,
    ) -> None:
        self._health = health
        self._assignment = assignment
        self._fetcher = fetcher
        self._committer = committer
        self._use = use
        self._session = session
        self._settings = settings
        self._counters = counters
        self._losing: list[asyncio.Task[None]] = []

    def listener(self, instance: ConsumerDriver) -> ConsumerRebalanceListener:
        """Return the listener that aiokafka notifies of the group's decisions."""
        return _Listener(self, instance)

    async def revoke(self, instance: ConsumerDriver) -> None:
        """Drain, commit and remove all partitions of an instance."""
        going = self._assignment.stop_fetching(instance)
        if not going:
            return
        self._health.note("partitions revoked", partitions=len(going))
        committing = self._settings.commit_interval is not None
        try:
            await self._drain(going)
            if committing and not await self._committer.commit(
                going, self._settings.commit_timeout, insist=True
            ):
                self._counters.lost += len(going)
        finally:
            self._assignment.remove(going, remember=committing)

    async def assign(
        self, instance: ConsumerDriver, partitions: Collection[TopicPartition]
    ) -> None:
        """Take over partitions, once records of lost partitions are no longer in hand."""
        await self.lost_partitions_removed()
        committed: dict[TopicPartition, int] = {}
        committed_known = True
        try:
            async with asyncio.timeout(self._settings.commit_timeout):
                committed = await internals.committed_offsets(instance, partitions)
        except (KafkaError, TimeoutError):
            committed_known = False
        member = internals.member_of(instance)
        assigned = internals.partitions_of(instance)
        for partition in sorted(partitions):
            if partition in assigned:
                self._assignment.add(
                    AssignedPartition(
                        partition,
                        instance,
                        member,
                        committed.get(partition),
                        committed_known=committed_known,
                    )
                )
        self._session.confirm(asyncio.get_running_loop().time())
        self._counters.rebalances += 1
        _log.info(
            "%s: assigned %d partitions",
            self._health.name,
            len(partitions),
            extra={
                "event": "partitions_assigned",
                "dependency": self._health.name,
                "partitions": len(partitions),
            },
        )
        self._health.note("partitions assigned", partitions=len(partitions))
        self._use.assigned(self._assignment.partitions)
        self._fetcher.wake()

    def lose(self, instance: ConsumerDriver) -> None:
        """Drain and remove the partitions of an instance that has ended; it cannot commit."""
        going = self._assignment.stop_fetching(instance)
        self._fetcher.wake()
        if not going:
            return
        self._health.note("partitions lost", partitions=len(going))
        if going[0].member is not None:
            self._counters.lost += len(going)
        task = asyncio.get_running_loop().create_task(
            self._lose(going), name="resilient-io kafka lost partitions"
        )
        self._losing.append(task)
        task.add_done_callback(self._losing.remove)

    async def lost_partitions_removed(self) -> None:
        """Wait until all lost partitions are drained and removed."""
        if self._losing:
            await asyncio.wait(self._losing)

    async def aclose(self) -> None:
        """Cancel the draining of lost partitions."""
        losing = list(self._losing)
        for task in losing:
            task.cancel()
        if losing:
            await asyncio.wait(losing)

    async def _lose(self, going: list[AssignedPartition]) -> None:
        try:
            await self._drain(going)
        finally:
            remember = going[0].member is None or self._settings.commit_interval is not None
            self._assignment.remove(going, remember=remember)

    async def _drain(self, going: list[AssignedPartition]) -> None:
        self._fetcher.wake()
        try:
            await self._use.drain(
                tuple(each.partition for each in going), self._settings.drain_timeout
            )
        # The boundary to the loop or the run: its failure must not delay the group's rebalance.
        except Exception:  # noqa: BLE001
            _log.exception(
                "%s: draining revoked partitions failed",
                self._health.name,
                extra={"event": "drain_raised", "dependency": self._health.name},
            )


class _Listener(ConsumerRebalanceListener):
    """Forwards the group's decisions; aiokafka awaits it within its coordination task."""

    def __init__(self, rebalancer: Rebalancer, instance: ConsumerDriver) -> None:
        self._rebalancer = rebalancer
        self._instance = instance

    # aiokafka 0.14 always revokes all partitions.
    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        revoked: Collection[TopicPartition],  # noqa: ARG002
    ) -> None:
        """Revoke all partitions while the group waits."""
        await self._rebalancer.revoke(self._instance)

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, assigned: Collection[TopicPartition]
    ) -> None:
        """Take over the assigned partitions."""
        await self._rebalancer.assign(self._instance, assigned)
