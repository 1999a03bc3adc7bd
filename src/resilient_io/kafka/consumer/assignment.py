"""Takes partitions over and gives them up, as the group says, or as it becomes known."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError

from . import internals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from aiokafka import TopicPartition

    from resilient_io.health import Dependency

    from ..protocols import ConsumerDriver
    from .commits import Committer
    from .fetcher import Feed
    from .options import ConsumerSettings
    from .record import Record
    from .stats import Counters


class PartitionProgress:
    """How far the records of one partition are handled, for one assignment of it.

    Records are handed out in the order of their offsets and may be done in any order; what may be
    committed is the offset behind the last one before which all are done. Offsets may have gaps
    (compaction, transaction markers): only records that were handed out count. Each operation
    takes constant time, amortised.

    It outlives the assignment: what is done after the partition was taken away changes nothing
    for anybody.
    """

    __slots__ = ("_committable", "_finished", "_last", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()  # handed out, the first not done; ascending
        self._finished: set[int] = set()  # done out of turn; only ever asked for membership
        self._committable: int | None = None
        self._last = -1

    @property
    def committable(self) -> int | None:
        """The offset to commit: that behind the contiguous done ones; None before the first."""
        return self._committable

    @property
    def outstanding(self) -> int:
        """Records that were handed out and are not done."""
        return len(self._waiting) - len(self._finished)

    @property
    def first_outstanding(self) -> int | None:
        """The lowest offset that was handed out and is not done; None when all are."""
        return self._waiting[0] if self._waiting else None

    @property
    def last_delivered(self) -> int:
        """The greatest offset that was handed out; -1 before the first."""
        return self._last

    def delivered(self, offset: int) -> None:
        """Note that a record was handed out; one that was before does no harm."""
        if offset > self._last:
            self._last = offset
            self._waiting.append(offset)

    def delivered_all(self, offsets: list[int]) -> None:
        """Note that several were handed out; ascending."""
        if offsets and offsets[0] > self._last:
            self._last = offsets[-1]
            self._waiting.extend(offsets)
        else:
            for offset in offsets:
                self.delivered(offset)

    def done(self, offset: int) -> None:
        """Note that a record is done; twice, or one that was never handed out, does no harm."""
        waiting = self._waiting
        if not waiting or offset < waiting[0]:
            return
        if offset != waiting[0]:
            if offset <= self._last:
                self._finished.add(offset)
            return
        waiting.popleft()
        finished = self._finished
        while finished and waiting and waiting[0] in finished:
            offset = waiting.popleft()
            finished.remove(offset)
        self._committable = offset + 1

    def reached(self, offset: int) -> None:
        """Note at once that everything before `offset` is done, handed out or not.

        For who hands out one record after the other, and asks for no account of each.
        """
        waiting, finished = self._waiting, self._finished
        while waiting and waiting[0] < offset:
            finished.discard(waiting.popleft())
        while finished and waiting and waiting[0] in finished:
            done = waiting.popleft()
            finished.remove(done)
            offset = done + 1
        if self._committable is None or offset > self._committable:
            self._committable = offset
        self._last = max(self._last, offset - 1)


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


_log = logging.getLogger("resilient_io.kafka")


class Rebalancing:
    """Moves partitions in and out.

    Args:
        health: Its name is for the log; its flight recorder hears of what moved.
        holdings: The partitions that are ours.
        feed: Hands out their records.
        committer: Commits their offsets.
        settings: Whether to commit, and the bounds.
        counters: Counts what happened.
        drop: Lets who iterates forget what already came from these partitions.
        drain: Waits, bounded, until who consumes is done with these partitions.
        joined: Called when the group has given us partitions.
    """

    def __init__(
        self,
        health: Dependency,
        *,
        holdings: Holdings,
        feed: Feed,
        committer: Committer,
        settings: ConsumerSettings,
        counters: Counters,
        drop: Callable[[list[Holding]], None],
        drain: Callable[[list[Holding]], Awaitable[None]],
        joined: Callable[[], None],
    ) -> None:
        self._health = health
        self._holdings = holdings
        self._feed = feed
        self._committer = committer
        self._settings = settings
        self._counters = counters
        self._drop = drop
        self._drain = drain
        self._joined = joined
        self._losing: list[asyncio.Task[None]] = []
        self._seen: frozenset[TopicPartition] | None = None

    def listener(self, instance: ConsumerDriver) -> ConsumerRebalanceListener:
        """Give what the driver tells of the group's decisions."""
        return _Listener(self, instance)

    async def revoke(self, instance: ConsumerDriver) -> None:
        """Give up all partitions of an instance: drain, commit, let go."""
        going = self._holdings.withdraw(instance)
        if not going:
            return
        self._health.note("partitions revoked", partitions=len(going))
        committing = self._settings.commit_interval is not None
        try:
            await self._drained(going)
            if committing and not await self._committer.commit(
                going, self._settings.commit_timeout, insist=True
            ):
                self._counters.lost += len(going)
        finally:
            self._holdings.release(going, remember=committing)

    async def assign(
        self, instance: ConsumerDriver, partitions: Collection[TopicPartition]
    ) -> None:
        """Make partitions ours, once who consumes is done with what was lost before."""
        await self.settled()
        committed: dict[TopicPartition, int] = {}
        certain = True
        try:
            async with asyncio.timeout(self._settings.commit_timeout):
                committed = await internals.committed_offsets(instance, partitions)
        except (KafkaError, TimeoutError):
            certain = False
        member = internals.membership(instance)
        assigned = internals.partitions_of(instance)
        for partition in sorted(partitions):
            if partition in assigned:
                self._holdings.take(
                    Holding(partition, instance, member, committed.get(partition), certain=certain)
                )
        self._joined()
        self._counters.rebalances += 1
        _log.info(
            "%s: the group gave us %d partitions",
            self._health.name,
            len(partitions),
            extra={
                "event": "partitions_assigned",
                "dependency": self._health.name,
                "partitions": len(partitions),
            },
        )
        self._health.note("partitions assigned", partitions=len(partitions))
        self._told()

    def lose(self, instance: ConsumerDriver) -> None:
        """Give up what an instance had that is no more: nothing can be committed."""
        self._seen = None
        going = self._holdings.withdraw(instance)
        self._feed.wake()
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

    async def _lose(self, going: list[Holding]) -> None:
        try:
            await self._drained(going)
        finally:
            remember = going[0].member is None or self._settings.commit_interval is not None
            self._holdings.release(going, remember=remember)

    async def settled(self) -> None:
        """Wait until all that was lost is given up."""
        if self._losing:
            await asyncio.wait(self._losing)

    def observe(self, instance: ConsumerDriver) -> None:
        """Look which partitions an instance without a group has; nobody else tells."""
        partitions = internals.partitions_of(instance)
        if partitions is self._seen or self._losing:
            return
        self._seen = partitions
        going = self._holdings.withdraw(instance)
        self._drop(going)
        self._holdings.release(going, remember=True)
        for partition in sorted(partitions):
            self._holdings.take(Holding(partition, instance, None, None, certain=True))
        self._told()

    async def aclose(self) -> None:
        """End what is under way, by force."""
        losing = list(self._losing)
        for task in losing:
            task.cancel()
        if losing:
            await asyncio.wait(losing)

    # --- inside

    async def _drained(self, going: list[Holding]) -> None:
        self._feed.wake()
        try:
            await self._drain(going)
        # The boundary to who consumes: its trouble must not keep the group from going on.
        except Exception:  # noqa: BLE001
            _log.exception(
                "%s: giving up partitions failed",
                self._health.name,
                extra={"event": "drain_raised", "dependency": self._health.name},
            )

    def _told(self) -> None:
        if self._feed.taken is not None:
            self._feed.taken(self._holdings.partitions)
        self._feed.wake()


class _Listener(ConsumerRebalanceListener):
    """What aiokafka calls within its coordination task, and awaits."""

    def __init__(self, rebalancing: Rebalancing, instance: ConsumerDriver) -> None:
        self._rebalancing = rebalancing
        self._instance = instance

    # aiokafka 0.14 always takes all of them away.
    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        revoked: Collection[TopicPartition],  # noqa: ARG002
    ) -> None:
        """Give them up; the group waits for us."""
        await self._rebalancing.revoke(self._instance)

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, assigned: Collection[TopicPartition]
    ) -> None:
        """Take them over."""
        await self._rebalancing.assign(self._instance, assigned)
