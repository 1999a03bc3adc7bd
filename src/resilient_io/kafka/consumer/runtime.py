"""The components of a consumer, in the event loop of its first use."""

from __future__ import annotations

import asyncio
import functools
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer

from resilient_io.health import State

from ..link import LinkWatch
from ..probe import GROUP, KafkaProbe
from ..processing import Processor, answering_since
from ..stats import ConsumerStats
from ..supervisor import Supervisor
from . import internals
from .assignment import Assignment
from .cooperative import rebalance_cooperatively, with_own_assignor
from .fetcher import Fetcher
from .group import Committer, RebalanceListener, Rebalancer
from .housekeeping import (
    DeadConnectionDetector,
    Housekeeping,
    StalledPartitionDetector,
)
from .iteration import BatchIterator, BatchStream, ExclusiveUse, RecordIterator, SingleRecordStream
from .membership import GroupDetector, SessionWatch
from .offsets import OffsetQueries
from .options import GroupTimes
from .positions import Positions
from .topics import TopicDetector

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping

    from aiokafka import TopicPartition

    from resilient_io.health import Attachment, Dependency
    from resilient_io.retry import RetryPolicy

    from ..connect import KafkaTarget
    from ..driver import ConsumerDriver
    from ..processing import RunPlan, RunStats
    from ..producer import ResilientKafkaProducer
    from ..stats import ConsumerCounters
    from .assignment import AssignedPartition
    from .fetcher import RecordDeserializer
    from .options import ConsumerSettings, ConsumerSubscription
    from .positions import OnGap

_DEFAULTS = {"consumer_timeout_ms": 1000}
"""With aiokafka 0.14's default of 200, the fetcher checks five times a second whether there is
something to fetch. Every event that may change that wakes it anyway
(`Fetcher._fetch_requests_routine`)."""

_RESERVED = 1.0
"""Seconds of a close for cancelled handlers, the last commit, and leaving the group."""

_OWN = {"auto_offset_reset": "none"}
"""`Positions` decides what aiokafka would decide with this option."""

PAUSED_BY_CALLER = "pause()"
"""Why a partition is paused that the caller has paused."""

_METADATA_AGE = {"metadata_max_age_ms": 10_000}
"""How soon new partitions and topics are found. aiokafka's default is 5 minutes."""


@dataclass(kw_only=True, eq=False, repr=False)
class ConsumerRuntime:
    """Creates and connects the components of a consumer, and closes them."""

    target: KafkaTarget
    subscription: ConsumerSubscription
    options: Mapping[str, Any]
    policy: RetryPolicy
    health: Dependency
    settings: ConsumerSettings
    on_gap: OnGap
    deserializer: RecordDeserializer
    counters: ConsumerCounters
    rng: random.Random
    last_run: RunStats | None = None

    def __post_init__(self) -> None:
        group = self.subscription.group
        self._times = GroupTimes.of(self.options)
        self._probe = KafkaProbe(
            target=self.target,
            timeout=self.health.settings.timeout,
            coordinator=None if group is None else (GROUP, group),
        )
        self.supervisor: Supervisor[ConsumerDriver] = Supervisor(
            role="consumer",
            target=self.target,
            build=self._build,
            health=self.health,
            policy=self.policy,
            rng=self.rng,
            prepare=self._prepare,
            on_attached=self._attached,
            on_detached=self._detached,
        )
        self.assignment = Assignment(self.counters)
        self.use = ExclusiveUse(self.health.name, self._use_began)
        self._positions = Positions(
            self.health,
            assignment=self.assignment,
            strategy=self.options.get("auto_offset_reset", "latest"),
            on_gap=self.on_gap,
            degraded_for=self.settings.gap_degraded_for,
            timeout=self.settings.commit_timeout,
            group=group,
            has_pattern=self.subscription.pattern is not None,
            drop=self.use.drop,
            context=self.supervisor.context,
            counters=self.counters,
        )
        topics = TopicDetector(self.health)
        self._session = SessionWatch(self._times.session, self._session_changed)
        self.fetcher = Fetcher(
            self.health,
            target=self.target,
            supervisor=self.supervisor,
            assignment=self.assignment,
            positions=self._positions,
            topics=topics,
            drop=self.use.drop,
            deserializer=self.deserializer,
            has_group=group is not None,
            session=self._session,
            counters=self.counters,
        )
        self.offsets = OffsetQueries(
            self.health.name, target=self.target, supervisor=self.supervisor
        )
        self._committer = Committer(self.target, self.health.name, self.counters)
        self._rebalancer = Rebalancer(
            health=self.health,
            assignment=self.assignment,
            fetcher=self.fetcher,
            positions=self._positions,
            committer=self._committer,
            use=self.use,
            session=self._session,
            settings=self.settings,
            counters=self.counters,
        )
        stalled_partitions = None
        if self.settings.stalled_after is not None:
            stalled_partitions = StalledPartitionDetector(
                self.health,
                self.settings.stalled_after,
                group,
                fetch=self._times.fetch,
                driver_log=self.target.driver_log,
            )
        self._group = None
        if group is not None:
            self._group = GroupDetector(self.health, self.settings.stalled_after, group)
        self._housekeeping = Housekeeping(
            health=self.health,
            supervisor=self.supervisor,
            assignment=self.assignment,
            fetcher=self.fetcher,
            positions=self._positions,
            committer=self._committer,
            use=self.use,
            settings=self.settings,
            stalled_partitions=stalled_partitions,
            group=self._group,
            topics=topics,
            dead_connections=DeadConnectionDetector(
                self.policy.response_timeout, fetch=self._times.fetch, join=self._times.rebalance
            ),
        )
        self._links = LinkWatch(
            health=self.health,
            probe=self._probe,
            driver=lambda: self.supervisor.driver,
            fetch=self._times.fetch,
        )
        self._attachment: Attachment | None = None
        self._closing = False
        self._subscribed: ConsumerDriver | None = None

    def start(self) -> None:
        """Start, in the running loop. This never waits for Kafka."""
        self._attachment = self.health.start(
            self._probe, last_reply=self._last_reply, links=self._links.links
        )
        self.supervisor.start()
        self._links.start()
        self._housekeeping.start()

    # --- records

    def records(self) -> RecordIterator:
        """Return a new iterator over single records."""
        commit_soon, most = self._housekeeping.commit_soon, self.settings.fetch_records
        return RecordIterator(SingleRecordStream(self.fetcher, self.use, commit_soon, most))

    def batches(self, max_records: int, max_wait: float) -> BatchIterator:
        """Return a new iterator over batches."""
        commit_soon = self._housekeeping.commit_soon
        return BatchIterator(
            BatchStream(self.fetcher, self.use, commit_soon, max_records, max_wait)
        )

    async def run(self, plan: RunPlan, make_producer: Callable[[], ResilientKafkaProducer]) -> None:
        """Handle records until the consumer is closed; see `ResilientKafkaConsumer.run`."""
        processor = Processor(
            source=self.fetcher,
            plan=plan,
            commit=self.commit,
            commit_timeout=self.settings.commit_timeout,
            drain_timeout=self.settings.drain_timeout,
            max_poll_interval=self._times.max_poll_interval,
            rebalance_timeout=self._times.rebalance,
            make_producer=make_producer,
            rng=self.rng,
            ended=self._run_ended,
            note=self.health.note,
        )
        await self.use.acquire(processor)
        try:
            await processor.run()
        finally:
            if self.use.current is processor:  # cancelled: it drains and commits in the background
                self.use.expect_release()

    def seek(self, assigned: AssignedPartition, offset: int) -> None:
        """Continue reading a partition at another offset."""
        self.use.drop((assigned.partition,))
        assigned.seek(offset)
        self._positions.sought(assigned, offset)
        self.fetcher.wake()

    async def commit(self, timeout: float) -> None:
        """Commit what is handled; see `ResilientKafkaConsumer.commit`."""
        self.use.settle()
        if self.settings.commit_interval is not None:
            with self.supervisor.driver_log.filtering():
                await self._committer.commit(self.assignment.all, timeout, insist=True)

    async def lag(self, timeout: float | None) -> dict[TopicPartition, int]:
        """Return the lag of each assigned partition; see `ResilientKafkaConsumer.lag`."""
        return self.assignment.lag(
            await self.offsets.end(self.assignment.partitions, timeout, operation="lag")
        )

    async def position(self, partition: TopicPartition, timeout: float | None) -> int:
        """Return a position; see `ResilientKafkaConsumer.position`."""
        self._put_back()
        return await self.offsets.position(partition, self.fetcher, self.assignment.get, timeout)

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver nothing of these partitions; see `ResilientKafkaConsumer.pause`."""
        self.fetcher.pause(partitions, PAUSED_BY_CALLER)
        self._put_back()

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver records of these partitions again."""
        self.fetcher.resume(partitions, PAUSED_BY_CALLER)

    def _put_back(self) -> None:
        """Put what a loop has taken and not delivered back into the partitions' buffers."""
        if self.use.stream is not None:
            self.use.stream.hold()

    # --- reports

    def stats(self) -> ConsumerStats:
        """Return the counters."""
        self.use.settle()
        assigned = self.assignment.all
        return ConsumerStats(
            **asdict(self.counters),
            outstanding=sum(each.progress.outstanding for each in assigned),
            partitions=len(assigned),
            paused=sum(self.fetcher.paused(each.partition) for each in assigned),
            instances=self.supervisor.generation,
            log_records_dropped=self.target.driver_log.log_records_dropped,
        )

    def liveness_failure(self) -> str | None:
        """Return why only a restart of the process helps; None while none is needed."""
        if self._closing:
            return None
        failure = self.supervisor.liveness_failure() or self._housekeeping.liveness_failure()
        processor = self.use.processor
        if failure is not None or processor is None or not self.health.state.answering:
            return failure
        return processor.liveness_failure(answering_since(self.health))

    # --- closing

    async def aclose(self, until: float, caller: asyncio.Task[Any] | None) -> None:
        """Deliver no more records, drain, commit, leave the group, and end all tasks."""
        loop = asyncio.get_running_loop()
        self._closing = True
        self.use.close()
        self._session.close()
        # What is in hand gets all time except this: nothing else is subtracted from it.
        left = max(0.0, until - loop.time())
        reserved = min(left / 2, _RESERVED)
        if self.use.processor is not None:
            await self.use.processor.aclose(left, reserved, caller)
        self.fetcher.close()
        await self._housekeeping.aclose()
        if self.use.stream is not None:
            drain = min(self.settings.drain_timeout, until - reserved - loop.time())
            await self.use.stream.drain(self.assignment.partitions, drain, caller)
        down = self.health.state is State.DOWN
        if not down:
            await self.commit(max(0.0, min(self.settings.commit_timeout, until - loop.time())))
        await self.supervisor.aclose(max(0.0, until - loop.time()), graceful=not down)
        await self._rebalancer.aclose()
        await self._positions.aclose()
        await self._links.aclose()
        if self._attachment is not None:
            await self._attachment.detach()
        self._probe.close()
        await self.target.aclose()

    # --- called by the components

    def _last_reply(self) -> float:
        """Return the loop time since which every broker that the consumer needs has answered."""
        instance = self.supervisor.driver
        if instance is None:
            return -math.inf
        partitions = [each for each in self.assignment.partitions if not self.fetcher.paused(each)]
        return internals.all_answered_at(instance, partitions)

    def _build(self) -> ConsumerDriver:
        make: Any = AIOKafkaConsumer  # it has no type hints
        instance: ConsumerDriver = make(
            group_id=self.subscription.group,
            enable_auto_commit=False,
            **(_METADATA_AGE | self.target.client_options()),
            **(_DEFAULTS | with_own_assignor(self.options) | _OWN),
        )
        return instance

    async def _prepare(self, instance: ConsumerDriver) -> None:
        internals.on_heartbeat(instance, self._session.confirm)
        internals.on_fenced(
            instance,
            functools.partial(self.supervisor.driver_failed, instance, replace=False),
        )
        rebalance_cooperatively(instance, self._rebalancer)
        self._subscribed = instance
        self._subscribe(instance)

    def _subscribe(self, instance: ConsumerDriver) -> None:
        failed = functools.partial(self.supervisor.driver_failed, instance)
        self.subscription.apply(instance, RebalanceListener(self._rebalancer, instance, failed))

    def _use_began(self, retry_topics: tuple[str, ...]) -> None:
        """Subscribe to the topics that a loop or a `run` reads, if they are others than before."""
        if retry_topics == self.subscription.retry_topics:
            return
        self.subscription = replace(self.subscription, retry_topics=retry_topics)
        self._positions.read_from_beginning(retry_topics)
        instance = self._subscribed
        if instance is not None:
            # aiokafka forgets the assignment immediately, and revokes it a moment later. With a
            # pattern, it does both once it knows that other topics match.
            going = self.assignment.partitions
            if self.subscription.pattern is not None:
                going = tuple(each for each in going if not self.subscription.reads(each.topic))
            self.assignment.stop_fetching(instance, going)
            self._subscribe(instance)

    def _attached(self, instance: ConsumerDriver) -> None:
        self.fetcher.use_instance(instance)

    def _detached(self, instance: ConsumerDriver, error: BaseException | None) -> None:
        if error is not None and self._group is not None:
            self._group.instance_failed(error)
        self.fetcher.use_instance(None)
        if self._subscribed is instance:
            self._subscribed = None
        if not self.fetcher.closed:
            self._rebalancer.lose(instance)

    def _session_changed(self) -> None:
        held = self._session.doubtful
        self.fetcher.hold(held=held)
        self.use.hold(held=held)
        self.health.note("membership in doubt" if held else "membership confirmed")

    def _run_ended(self, stats: RunStats) -> None:
        # Records that were delivered and not handled are read again by the next loop or run.
        self.last_run = stats
        for assigned in self.assignment.all:
            if assigned.fetchable:
                assigned.rewind()
        self.use.release()
