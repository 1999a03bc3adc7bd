"""The membership in the group: committed offsets, the session, and rebalances."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError

from ..driver import DriverClosed
from ..errors import classify_error, describe_driver_error
from . import internals
from .assignment import AssignedPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from aiokafka import TopicPartition
    from aiokafka.structs import OffsetAndMetadata

    from resilient_io.health import Dependency

    from ..connect import KafkaTarget
    from ..driver import ConsumerDriver
    from ..stats import ConsumerCounters
    from .assignment import Assignment
    from .fetcher import Fetcher
    from .iteration import ExclusiveUse
    from .membership import SessionWatch
    from .options import ConsumerSettings
    from .positions import Positions

_log = logging.getLogger("resilient_io.kafka")

_RETRY_DELAY = 0.1
"""Seconds between two attempts of a commit that is retried."""


class Committer:
    """Runs one commit at a time, so that an older offset never overwrites a newer one."""

    def __init__(self, target: KafkaTarget, dependency: str, counters: ConsumerCounters) -> None:
        self._target = target
        self._dependency = dependency
        self._counters = counters
        self._lock = asyncio.Lock()
        self._refused = False

    async def commit(
        self, partitions: Iterable[AssignedPartition], timeout: float, *, insist: bool = False
    ) -> bool:
        """Commit what is due, and return whether nothing is left. An outage raises no error.

        `insist` retries within `timeout` where a retry may help.
        """
        of_group = [each for each in partitions if each.member is not None]
        try:
            async with asyncio.timeout(timeout), self._lock:
                while not await self._attempt(of_group):
                    if not insist or self._refused:
                        return False
                    await asyncio.sleep(_RETRY_DELAY)
        except TimeoutError:
            self._counters.commits_failed += 1
            return False
        return True

    async def _attempt(self, partitions: list[AssignedPartition]) -> bool:
        due: dict[TopicPartition, OffsetAndMetadata] = {}
        committing = []
        for each in partitions:
            committable = each.due if each.assigned else None
            if committable is not None:
                due[each.partition] = committable
                committing.append(each)
        if not committing or committing[0].member is None:
            return True
        instance, member = committing[0].instance, committing[0].member
        if internals.between_generations(instance, member):
            return False  # the group is about to say which partitions stay
        try:
            await internals.commit_once(instance, due, member)
        # The boundary to the driver, which may raise anything: closing must continue.
        except Exception as error:  # noqa: BLE001
            self._note_failure(error)
            return False
        self._refused = False
        self._counters.commits += 1
        for each in committing:
            each.committed, each.committed_metadata = due[each.partition]
            each.committed_known = True
        return True

    def _note_failure(self, error: Exception) -> None:
        self._counters.commits_failed += 1
        kind = classify_error(error).kind
        before, self._refused = self._refused, kind in ("rebalance", "permanent", "fatal")
        lasting = kind == "permanent" or not isinstance(error, KafkaError)
        if lasting and not before and not isinstance(error, DriverClosed):
            name = type(error).__name__
            detail = describe_driver_error(error, secrets=self._target.secrets())
            _log.error(
                "%s: offsets cannot be committed: %s",
                self._dependency,
                detail if detail.startswith(name) else f"{name}: {detail}",
                extra={"event": "commit_refused", "dependency": self._dependency, "error": name},
            )


@dataclass(kw_only=True, eq=False, repr=False)
class Rebalancer:
    """Assigns and revokes partitions as the group decides, after draining and committing."""

    health: Dependency
    assignment: Assignment
    fetcher: Fetcher
    positions: Positions
    committer: Committer
    use: ExclusiveUse
    session: SessionWatch
    settings: ConsumerSettings
    counters: ConsumerCounters
    _losing: list[asyncio.Task[None]] = field(init=False, default_factory=list)

    async def revoke(
        self, instance: ConsumerDriver, partitions: Collection[TopicPartition] | None = None
    ) -> None:
        """Drain, commit and remove partitions of an instance; None means all of them."""
        going = self.assignment.stop_fetching(instance, partitions)
        if not going:
            return
        self.health.note("partitions revoked", partitions=len(going))
        committing = self.settings.commit_interval is not None
        try:
            await self._drain(going)
            if committing and not await self.committer.commit(
                going, self.settings.commit_timeout, insist=True
            ):
                self.counters.lost += len(going)
        finally:
            self.assignment.remove(going, remember=committing)

    async def assign(
        self, instance: ConsumerDriver, partitions: Collection[TopicPartition]
    ) -> None:
        """Take over partitions, once records of lost partitions are no longer in hand."""
        await self.lost_partitions_removed()
        group = None
        try:
            if partitions:
                async with asyncio.timeout(self.settings.commit_timeout):
                    group = await self.positions.committed(instance, sorted(partitions))
        except (KafkaError, TimeoutError):
            pass  # aiokafka queries the offsets, too, and retries
        member = internals.member_of(instance)
        assigned = internals.partitions_of(instance)
        for partition in sorted(partitions):
            if partition in assigned:
                found = None if group is None else group.offsets.get(partition)
                added = AssignedPartition(
                    partition,
                    instance,
                    member,
                    None if found is None else found.offset,
                    committed_known=group is not None,
                )
                self.assignment.add(added)
                self.positions.begin(added, group)
        self.session.confirm(asyncio.get_running_loop().time())
        self.counters.rebalances += 1
        name, count = self.health.name, len(partitions)
        _log.info(
            "%s: assigned %d partitions, %d in total",
            name,
            count,
            len(self.assignment.partitions),
            extra={"event": "partitions_assigned", "dependency": name, "partitions": count},
        )
        self.health.note("partitions assigned", partitions=count)
        self.use.assigned(tuple(partitions))
        self.fetcher.wake()

    def joined_again(self, instance: ConsumerDriver) -> None:
        """Note that the group has let this member keep its partitions, in a new generation."""
        member = internals.member_of(instance)
        for each in self.assignment.all:
            if each.instance is instance:
                each.member = member
        self.session.confirm(asyncio.get_running_loop().time())

    def lose(self, instance: ConsumerDriver) -> None:
        """Drain and remove the partitions of an instance that has ended; it cannot commit."""
        going = self.assignment.stop_fetching(instance)
        self.fetcher.wake()
        if not going:
            return
        self.health.note("partitions lost", partitions=len(going))
        if going[0].member is not None:
            self.counters.lost += len(going)
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
            remember = going[0].member is None or self.settings.commit_interval is not None
            self.assignment.remove(going, remember=remember)

    async def _drain(self, going: list[AssignedPartition]) -> None:
        self.fetcher.wake()
        try:
            await self.use.drain(
                tuple(each.partition for each in going), self.settings.drain_timeout
            )
        # The boundary to the loop or the run: its failure must not delay the group's rebalance.
        except Exception:  # noqa: BLE001
            _log.exception(
                "%s: draining revoked partitions failed",
                self.health.name,
                extra={"event": "drain_raised", "dependency": self.health.name},
            )


class RebalanceListener(ConsumerRebalanceListener):
    """Forwards the group's decisions; aiokafka awaits it within its coordination task.

    aiokafka logs what it raises, and continues with partitions that nothing would be read from. So
    `failed` is called with the error.
    """

    def __init__(
        self,
        rebalancer: Rebalancer,
        instance: ConsumerDriver,
        failed: Callable[[Exception], None],
    ) -> None:
        self._rebalancer = rebalancer
        self._instance = instance
        self._failed = failed

    # aiokafka 0.14 always revokes all partitions.
    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        revoked: Collection[TopicPartition],  # noqa: ARG002
    ) -> None:
        """Revoke all partitions while the group waits."""
        with self._reporting():
            await self._rebalancer.revoke(self._instance)

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, assigned: Collection[TopicPartition]
    ) -> None:
        """Take over the assigned partitions."""
        with self._reporting():
            await self._rebalancer.assign(self._instance, assigned)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed(error)
            raise
