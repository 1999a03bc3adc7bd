"""Takes partitions over and gives them up, as the group says, or as it becomes known."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError

from . import internals
from .holdings import Holding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from aiokafka import TopicPartition

    from resilient_io.health import Dependency
    from resilient_io.kafka.protocols import ConsumerDriver

    from .committing import Committer
    from .feed import Feed
    from .holdings import Holdings
    from .settings import ConsumerSettings
    from .stats import Counters

__all__ = ["Rebalancing"]

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
