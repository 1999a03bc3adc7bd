"""The assigned partitions, and where to resume a partition that is assigned again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.structs import OffsetAndMetadata

from ..record import PartitionProgress
from . import internals
from .commit_metadata import CommitMetadata, merge_ranges, ranges_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from aiokafka import TopicPartition

    from ..driver import ConsumerDriver
    from ..record import Record
    from ..stats import ConsumerCounters
    from .commit_metadata import Ranges
    from .fetched import FetchedRecords


_NEVER = 2**63
"""An offset that no record has."""


class AssignedPartition:
    """A partition, from one assignment until its end."""

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
        self.member = member  # None without a group
        self.progress = PartitionProgress()
        self.fetched: FetchedRecords | None = None  # taken from aiokafka, not yet unpacked
        self.buffered: list[Record] = []  # unpacked, not yet delivered; in order
        self.committed = committed  # the group's committed offset; None if there is none
        self.committed_known = committed_known
        self.committed_metadata: str | None = None  # None while it is unknown
        self.fetchable = True  # until the partition is being revoked
        self.assigned = True
        self.resetting = False  # while a position is being found for it
        self.sought: int | None = None  # where the caller has moved the position
        self.topic_id: str | None = None  # None while it is unknown
        self.handled: Ranges = ()  # of the records that are read again, those handled before
        self._reads_committed = internals.reads_committed(instance)
        # Kept here because aiokafka forgets the state when the partition is revoked.
        self._state = internals.state_of(instance, partition)

    @property
    def position(self) -> int | None:
        """The offset of the next record to unpack; None while it is unknown."""
        if self.fetched is not None:
            return self.fetched.next_offset
        state = self._state
        return state.position if state is not None and state.has_valid_position else None

    @property
    def end_offset(self) -> int | None:
        """The end offset that the latest fetch reported; None before the first one.

        With `isolation_level="read_committed"`, only transactions that have ended count.
        """
        if self._state is None:
            return None
        end: int | None = self._state.lso if self._reads_committed else self._state.highwater
        return end

    @property
    def open_transaction(self) -> int | None:
        """The offset at which an open transaction begins that hides records; None without one."""
        state = self._state
        if state is None or not self._reads_committed or None in (state.lso, state.highwater):
            return None
        begin: int = state.lso
        return begin if begin < state.highwater else None

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
        # Every unpacked record is handled. The position may be after offsets that are never
        # delivered (transaction markers), or where a seek moved it.
        return self.progress.committable if self.position is None else self.position

    @property
    def handled_ahead(self) -> Ranges:
        """The records after the first unhandled one that are handled."""
        finished = ranges_of(self.progress.finished)
        return merge_ranges(self.handled, finished) if self.handled else finished

    @property
    def due(self) -> OffsetAndMetadata | None:
        """What to commit; None if it is committed already or unknown."""
        offset = self.progress.committable if self.progress.outstanding else self.resume_offset
        if offset is None and self.handled_ahead:
            offset = self.progress.first_outstanding
        if offset is None:
            return None
        ahead = tuple(each for each in self.handled_ahead if each[0] > offset)
        metadata = CommitMetadata(self.topic_id, ahead).encode(offset)
        if self.committed_known and offset == self.committed:
            before = self.committed_metadata
            if metadata == before or (before is None and not ahead):
                return None
        return OffsetAndMetadata(offset, metadata)

    def without_handled(self, records: list[Record]) -> list[Record]:
        """Return the records that were not handled before; the others are done."""
        unhandled, done = [], self.progress.done
        ranges = iter(self.handled)
        begin, end = next(ranges)
        for record in records:
            while end <= record.offset:
                begin, end = next(ranges, (_NEVER, _NEVER))
            if begin <= record.offset:
                done(record.offset)
            else:
                unhandled.append(record)
        if begin == _NEVER:
            self.handled = ()
        return unhandled

    def lag(self, end: int | None) -> int | None:
        """Return how far `end` is ahead of the committed offset; None if unknown."""
        # Without a group or a commit, the first unhandled offset counts instead.
        at = self.resume_offset
        if self.member is not None and self.committed_known and self.committed is not None:
            at = self.committed
        return None if end is None or at is None else max(0, end - at)

    def seek(self, offset: int) -> None:
        """Continue at another offset; outstanding records no longer count."""
        self.buffered = []
        self.handled = ()
        self.progress = PartitionProgress()
        self.move(offset)

    def move(self, offset: int) -> None:
        """Fetch from another offset on; records that were delivered or buffered stay."""
        self.fetched = None
        self.instance.seek(self.partition, offset)

    def next_records(self, most: int) -> list[Record]:
        """Unpack the next records that have arrived.

        Raises:
            Exception: They are unreadable. They are fetched again.
        """
        fetched = self.fetched
        if fetched is None:
            return []
        try:
            records = fetched.take(most, self.progress)
        except Exception:
            self.move(fetched.next_offset)
            raise
        if fetched.exhausted:
            self.fetched = None
        return records

    def rewind(self) -> None:
        """Read the outstanding records again."""
        first = self.progress.first_outstanding
        if first is not None:
            committable, handled = self.progress.committable, self.handled_ahead
            self.seek(first)
            self.handled = handled
            if committable is not None:
                self.progress.reached(committable)


@dataclass(frozen=True, slots=True)
class ResumePosition:
    """Where to continue with a partition that was revoked, if it is assigned again."""

    committed: int | None  # the group's committed offset when the partition was revoked
    offset: int  # the first offset that was not handled here
    topic_id: str | None
    handled: Ranges  # the records after that offset that were handled


class Assignment:
    """All assigned partitions, and the resume positions of earlier ones.

    If a partition is assigned again and the group's committed offset has not changed, no other
    member has handled its records in the meantime. Reading then continues after the records that
    were handled here, instead of at the committed offset: records whose commit failed are not read
    twice, and without any commit, no record is skipped (aiokafka would begin at the end).
    """

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

    def known_lag(self) -> dict[TopicPartition, int]:
        """Return the lag by the end offsets that the latest fetches reported."""
        return self.lag({each.partition: each.end_offset for each in self.all})

    def lag(self, ends: Mapping[TopicPartition, int | None]) -> dict[TopicPartition, int]:
        """Return the lag of each assigned partition whose end offset and position are known."""
        return {
            each.partition: lag
            for each in self.all
            if (lag := each.lag(ends.get(each.partition))) is not None
        }

    def get(self, partition: TopicPartition) -> AssignedPartition | None:
        """Return an assigned partition, or None if it is not assigned."""
        return self._assigned.get(partition)

    def add(self, assigned: AssignedPartition) -> None:
        """Add a partition. Its position is that of the group until `resume` is called."""
        self._assigned[assigned.partition] = assigned

    def left_at(self, partition: TopicPartition) -> ResumePosition | None:
        """Return, once, where to continue with a partition; None if it was not assigned before."""
        return self._resume_positions.pop(partition, None)

    def resume(self, assigned: AssignedPartition, before: ResumePosition | None) -> bool:
        """Continue where the partition was left, if no other member has read it meanwhile."""
        if before is None or not assigned.committed_known or before.committed != assigned.committed:
            return False
        assigned.move(before.offset)
        assigned.handled = before.handled
        if before.offset != assigned.committed:
            self._counters.resumed += 1
        return True

    def stop_fetching(
        self, instance: ConsumerDriver, partitions: Collection[TopicPartition] | None = None
    ) -> list[AssignedPartition]:
        """Stop fetching from partitions of an instance, which stay assigned until `remove`.

        None means all of them.
        """
        going = [
            each
            for each in self._assigned.values()
            if each.instance is instance and (partitions is None or each.partition in partitions)
        ]
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
                self._resume_positions[partition] = ResumePosition(
                    each.committed, offset, each.topic_id, each.handled_ahead
                )
