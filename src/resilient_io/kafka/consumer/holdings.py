"""The partitions that are ours, and what is remembered of those that were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import internals
from .offsets import PartitionProgress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiokafka import TopicPartition

    from resilient_io.kafka.protocols import ConsumerDriver

    from .record import Record
    from .stats import Counters

__all__ = ["Holding", "Holdings"]


class Holding:
    """A partition that is ours, from one assignment to the end of it.

    Attributes:
        partition: Its topic and number.
        instance: The driver's instance that it was assigned to.
        state: What the driver knows of it, also after it was taken away.
        member: The place in the group that it was assigned to; None without a group.
        progress: What of it is handled.
        kept: Records that left the driver and wait to be handed out, in order.
        committed: The group's committed offset as far as we know; None for none.
        certain: Whether `committed` is known at all.
        open: Whether it may be fetched from; not any more once it is being taken away.
        ours: Whether it is still ours.
    """

    __slots__ = (
        "certain",
        "committed",
        "instance",
        "kept",
        "member",
        "open",
        "ours",
        "partition",
        "progress",
        "state",
    )

    def __init__(
        self,
        partition: TopicPartition,
        instance: ConsumerDriver,
        member: internals.Membership | None,
        committed: int | None,
        *,
        certain: bool,
    ) -> None:
        self.partition = partition
        self.instance = instance
        self.state = internals.state_of(instance, partition)
        self.member = member
        self.progress = PartitionProgress()
        self.kept: list[Record] = []
        self.committed = committed
        self.certain = certain
        self.open = True
        self.ours = True

    @property
    def resume(self) -> int | None:
        """The first offset that is not handled; None while nobody knows where to begin."""
        first = self.progress.first_outstanding
        if first is not None:
            return first
        # Everything that left the driver is handled. Its position may be behind records that it
        # never gives out (transaction markers), or where reading shall begin.
        return self.progress.committable if self.position is None else self.position

    @property
    def position(self) -> int | None:
        """The offset of the next record from the driver; None while it is not known."""
        state = self.state
        return state.position if state is not None and state.has_valid_position else None

    @property
    def end(self) -> int | None:
        """The end offset that the latest fetch saw; None before it."""
        return None if self.state is None else self.state.highwater

    @property
    def due(self) -> int | None:
        """The offset to commit; None when there is nothing new."""
        offset = self.progress.committable if self.progress.outstanding else self.resume
        if offset is None or (self.certain and offset == self.committed):
            return None
        return offset

    @property
    def answered(self) -> int | None:
        """When its leader last answered, in milliseconds; None before the first time."""
        return None if self.state is None else self.state.timestamp

    @property
    def counted(self) -> int | None:
        """The offset from which lag counts; None while not even that is known."""
        if self.member is not None and self.certain and self.committed is not None:
            return self.committed
        return self.resume

    def rewind(self) -> None:
        """Give up the account of what is outstanding: it will be read again."""
        first = self.progress.first_outstanding
        if first is None:
            return
        committable = self.progress.committable
        self.kept = []
        self.progress = PartitionProgress()
        if committable is not None:
            self.progress.reached(committable)
        self.instance.seek(self.partition, first)

    def move(self, offset: int) -> None:
        """Read on from another offset; what is outstanding stops to count."""
        self.kept = []
        self.progress = PartitionProgress()
        self.instance.seek(self.partition, offset)


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a partition that was ours.

    Attributes:
        committed: The group's committed offset when it went; None for none.
        resume: The first offset that was not handled here.
    """

    committed: int | None
    resume: int


class Holdings:
    """All of them, by partition.

    When a partition comes back and the group's committed offset is still what it was, nobody has
    handled it further in between. Then reading goes on behind what was handled here, instead of at
    the committed offset: nothing is read twice for the lack of a commit, nor skipped when there was
    no commit yet and the driver would begin at the end.
    """

    __slots__ = ("_counters", "_held", "_memories")

    def __init__(self, counters: Counters) -> None:
        self._held: dict[TopicPartition, Holding] = {}
        self._memories: dict[TopicPartition, Memory] = {}
        self._counters = counters

    @property
    def all(self) -> list[Holding]:
        """Those that are ours, in the order in which they were assigned."""
        return list(self._held.values())

    @property
    def partitions(self) -> tuple[TopicPartition, ...]:
        """The partitions that are ours."""
        return tuple(self._held)

    def get(self, partition: TopicPartition) -> Holding | None:
        """Return the one of a partition; None when it is not ours."""
        return self._held.get(partition)

    def take(self, holding: Holding) -> None:
        """Make a partition ours."""
        partition = holding.partition
        memory = self._memories.pop(partition, None)
        if memory is not None and holding.certain and memory.committed == holding.committed:
            holding.instance.seek(partition, memory.resume)
            if memory.resume != holding.committed:
                self._counters.carried += 1
        self._held[partition] = holding

    def withdraw(self, instance: ConsumerDriver) -> list[Holding]:
        """Stop fetching from all that an instance has; they stay ours for now."""
        going = [holding for holding in self._held.values() if holding.instance is instance]
        for holding in going:
            holding.open = False
        return going

    def release(self, going: Iterable[Holding], *, remember: bool) -> None:
        """Let partitions go."""
        for holding in going:
            holding.ours = False
            if self._held.get(holding.partition) is holding:
                del self._held[holding.partition]
            if not remember or not holding.certain:
                self._memories.pop(holding.partition, None)
                continue
            resume = holding.resume
            if resume is not None:
                self._memories[holding.partition] = Memory(holding.committed, resume)
