"""What a consumer is made of, in the event loop of its first use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer

from resilient_io.health import Cause, State

from ..errors import KafkaAuthenticationFailed, KafkaClosed, KafkaUnavailable
from ..log_filter import quietly
from ..probe import GROUP, KafkaProbe
from ..processing.watchdog import answering_since
from ..supervisor import Supervisor
from . import internals
from .assignment import Holding, Holdings, Rebalancing
from .commits import Committer
from .fetcher import Feed
from .housekeeping import SilenceWatch, StallWatch, Standing, Upkeep
from .iteration import Turn
from .stats import ConsumerStats, Counters

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from aiokafka import TopicPartition

    from resilient_io.health import Attachment, Dependency
    from resilient_io.kafka.protocols import ConsumerDriver
    from resilient_io.retry import RetryPolicy

    from ..connect import Target
    from ..processing.processor import Processor, RunStats
    from .assignment import PartitionProgress
    from .fetcher import Reader
    from .iteration import Walk
    from .options import ConsumerSettings, Subscription
    from .record import Record

__all__ = ["Engine"]

_DEFAULTS = {"consumer_timeout_ms": 1000}
"""aiokafka 0.14's 200 looks five times a second whether there is something to fetch. Whatever may
change that wakes it anyway (`Fetcher._fetch_requests_routine`)."""

_FETCH_MAX_WAIT_MS = 500  # aiokafka 0.14's own default
_SESSION_TIMEOUT_MS = 10_000  # as above


class Engine:
    """A consumer's parts: the driver's instance, what it has, who takes it, and the upkeep.

    It is the `Source` of records for `run`.

    Args:
        target: The cluster.
        subscription: What is read.
        options: aiokafka's options for the instance itself.
        policy: Times and backoff.
        health: The cluster's.
        settings: Ours.
        reader: Makes records of ours out of the driver's.
        counters: Counts what happens.
        rng: Source of the jitter.
    """

    def __init__(
        self,
        *,
        target: Target,
        subscription: Subscription,
        options: dict[str, Any],
        policy: RetryPolicy,
        health: Dependency,
        settings: ConsumerSettings,
        reader: Reader,
        counters: Counters,
        rng: random.Random,
    ) -> None:
        self.health = health
        self.settings = settings
        self.turn = Turn()
        self.walk: Walk[Any] | None = None
        self.processor: Processor | None = None
        self.last_run: RunStats | None = None
        self._target = target
        self._subscription = subscription
        self._options = options
        self._counters = counters
        self._probe = KafkaProbe(
            target=target,
            timeout=health.settings.timeout,
            coordinator=None if subscription.group is None else (GROUP, subscription.group),
        )
        self.supervisor: Supervisor[ConsumerDriver] = Supervisor(
            role="consumer",
            build=self._build,
            health=health,
            policy=policy,
            rng=rng,
            prepare=self._prepare,
            entered=self._entered,
            retired=self._retired,
        )
        self.holdings = Holdings(counters)
        self.feed = Feed(
            health.name,
            self.holdings,
            reader,
            broken=self.supervisor.broken,
            observe=self._observe,
            counters=counters,
            refusal=self._refusal,
        )
        self._committer = Committer(health.name, counters)
        self._rebalancing = Rebalancing(
            health,
            holdings=self.holdings,
            feed=self.feed,
            committer=self._committer,
            settings=settings,
            counters=counters,
            drop=self._drop,
            drain=self._drain,
            joined=self._joined,
        )
        session: float = options.get("session_timeout_ms", _SESSION_TIMEOUT_MS) / 1000
        self._standing = Standing(session, self._standing_moved)
        stalls = None
        if settings.stalled_after is not None:
            stalls = StallWatch(health, settings.stalled_after, subscription.group)
        self.rebalance_timeout = _rebalance_timeout(options)
        silence = SilenceWatch(
            policy.response_timeout,
            fetch=options.get("fetch_max_wait_ms", _FETCH_MAX_WAIT_MS) / 1000,
            join=self.rebalance_timeout,
        )
        self._upkeep = Upkeep(self, stalls, silence, self._probe.heard)
        self._attachment: Attachment | None = None
        self._closing = False

    def start(self) -> None:
        """Begin in the running loop; never waits for Kafka."""
        self._attachment = self.health.start(self._probe, last_reply=self._probe.last_reply)
        self.supervisor.start()
        self._upkeep.start()

    # --- Source

    async def fetch(self, max_records: int, max_wait: float) -> dict[TopicPartition, list[Record]]:
        """See `Source.fetch`."""
        return await self.feed.fetch(max_records, max_wait)

    def pause(self, partitions: Iterable[TopicPartition], reason: str) -> None:
        """See `Source.pause`."""
        self.feed.pause(partitions, reason)

    def resume(self, partitions: Iterable[TopicPartition], reason: str) -> None:
        """See `Source.resume`."""
        self.feed.resume(partitions, reason)

    def assignment(self) -> tuple[TopicPartition, ...]:
        """See `Source.assignment`."""
        return self.holdings.partitions

    def progress(self, partition: TopicPartition) -> PartitionProgress | None:
        """See `Source.progress`."""
        holding = self.holdings.get(partition)
        return None if holding is None else holding.progress

    async def commit(self, timeout: float) -> None:
        """See `Source.commit`."""
        if self.walk is not None:
            self.walk.settle()
        if self.settings.commit_interval is not None:
            with quietly(self.supervisor.tally):
                await self._committer.commit(self.holdings.all, timeout, insist=True)

    async def commit_due(self) -> bool:
        """Commit what is contiguous now, in one attempt."""
        return await self._committer.commit(self.holdings.all, self.settings.commit_timeout)

    def on_revoked(
        self, drain: Callable[[tuple[TopicPartition, ...]], Awaitable[None]] | None
    ) -> None:
        """See `Source.on_revoked`."""
        self.feed.on_revoked(drain)

    def on_assigned(self, taken: Callable[[tuple[TopicPartition, ...]], None] | None) -> None:
        """See `Source.on_assigned`."""
        self.feed.on_assigned(taken)

    # --- for iterating

    async def enter(self, walk: Walk[Any]) -> None:
        """Begin an iteration, if nobody else takes records."""
        await self.take_turn(walk.what)
        self.walk = walk

    async def take_turn(self, who: str) -> None:
        """Take the records, if nobody else does.

        Raises:
            RuntimeError: Somebody else takes them.
            KafkaClosed: It was closed while this waited for one that was ending.
        """
        await self.turn.take(who)
        if self._closing:
            self.turn.give_back()
            raise KafkaClosed(
                "the consumer was closed", dependency=self.health.name, operation="consume"
            )

    def left(self) -> None:
        """The iteration is over: commit what it handled."""
        self.walk = None
        self.turn.give_back()
        self._upkeep.commit_soon()

    def move(self, holding: Holding, offset: int) -> None:
        """Read a partition from another offset from now on."""
        self._drop([holding])
        holding.move(offset)
        self.feed.wake()

    def rewind(self) -> None:
        """Read again what was handed out and is not handled."""
        for holding in self.holdings.all:
            if holding.open:
                holding.rewind()

    def stats(self) -> ConsumerStats:
        """Read the counters."""
        counters = self._counters
        held = self.holdings.all
        if self.walk is not None:
            self.walk.settle()
        return ConsumerStats(
            records=counters.records,
            unreadable=counters.unreadable,
            given_back=counters.given_back,
            outstanding=sum(holding.progress.outstanding for holding in held),
            partitions=len(held),
            paused=sum(self.feed.paused(holding.partition) for holding in held),
            commits=counters.commits,
            commits_failed=counters.commits_failed,
            rebalances=counters.rebalances,
            lost=counters.lost,
            carried=counters.carried,
            instances=self.supervisor.generation,
            dropped_logs=self.supervisor.tally.dropped + self._target.tally.dropped,
        )

    def liveness_failure(self) -> str | None:
        """Say why only a new process helps; None while all is well."""
        if self._closing:
            return None
        gone = self.supervisor.liveness_failure() or self._upkeep.liveness_failure()
        if gone is not None or self.processor is None or not self.health.state.answering:
            return gone
        return self.processor.liveness_failure(answering_since(self.health))

    def known_lag(self) -> dict[TopicPartition, int]:
        """See `ResilientKafkaConsumer.known_lag`."""
        return {
            holding.partition: max(0, holding.end - at)
            for holding in self.holdings.all
            if holding.end is not None and (at := holding.counted) is not None
        }

    # --- closing

    async def aclose(self, until: float, asking: asyncio.Task[Any] | None) -> None:
        """Hand out nothing more, drain, commit, leave the group, end every task.

        Args:
            until: Loop time by which it ends.
            asking: The task that wants it closed; nobody waits for the record that it has.
        """
        loop = asyncio.get_running_loop()
        self._closing = True
        self._standing.close()
        if self.processor is not None:
            left = max(0.0, until - loop.time())
            # Handlers get all but what the last commit may need: it ends within that, too.
            spare = min(left / 2, self.settings.commit_timeout)
            await self.processor.aclose(left - spare, asking)
        self.feed.close()
        await self._upkeep.aclose()
        if self.walk is not None:
            drain = min(self.settings.drain_timeout, (until - loop.time()) / 2)
            await self.walk.drain(self.holdings.all, drain, asking)
        down = self.health.state is State.DOWN
        if not down:
            await self.commit(max(0.0, min(self.settings.commit_timeout, until - loop.time())))
        await self.supervisor.aclose(max(0.0, until - loop.time()), graceful=not down)
        await self._rebalancing.aclose()
        if self._attachment is not None:
            await self._attachment.detach()
        self._probe.close()

    # --- inside

    def _build(self) -> ConsumerDriver:
        make: Any = AIOKafkaConsumer  # it has no type hints
        instance: ConsumerDriver = make(
            group_id=self._subscription.group,
            enable_auto_commit=False,
            **self._target.client_options(),
            **(_DEFAULTS | self._options),
        )
        return instance

    async def _prepare(self, instance: ConsumerDriver) -> None:
        internals.notice_heartbeats(instance, self._standing.confirm)
        self._subscription.apply(instance, self._rebalancing.listener(instance))

    def _entered(self, instance: ConsumerDriver) -> None:
        self.feed.entered(instance)

    def _retired(self, instance: ConsumerDriver, _error: BaseException | None) -> None:
        self.feed.entered(None)
        if not self.feed.closed:
            self._rebalancing.lose(instance)

    def _observe(self, instance: ConsumerDriver) -> None:
        if self._subscription.group is None:
            self._rebalancing.observe(instance)

    def _joined(self) -> None:
        self._standing.confirm(asyncio.get_running_loop().time())

    def _standing_moved(self) -> None:
        held = self.feed.held = self._standing.doubtful
        if held and self.walk is not None:
            self.walk.hold()
        if self.processor is not None:
            self.processor.hold(held=held)
        self.feed.wake()
        self.health.note("membership in doubt" if held else "membership confirmed")

    def _refusal(self) -> Exception | None:
        """Say why there was never an instance, when waiting does not help.

        Once one was in service, Kafka is waited for whatever happens: health tells of it.
        """
        if self.supervisor.generation:
            return None
        if self.supervisor.refusal is not None:
            return self.supervisor.refusal
        cause = self.health.cause
        if cause is None or not cause.permanent or self.health.state is not State.DOWN:
            return None
        kind = KafkaAuthenticationFailed if cause is Cause.AUTH else KafkaUnavailable
        return kind(
            f"it cannot be used ({cause.value}: {self.health.detail})",
            dependency=self.health.name,
            operation="next record",
        )

    def _drop(self, going: list[Holding]) -> None:
        if self.walk is not None:
            self.walk.drop(going)

    async def _drain(self, going: list[Holding]) -> None:
        if self.walk is not None:
            await self.walk.drain(going, self.settings.drain_timeout)
        if self.feed.drain is not None:
            await self.feed.drain(tuple(holding.partition for holding in going))


def _rebalance_timeout(options: Mapping[str, Any]) -> float:
    """Give the seconds for which the group waits for a member."""
    # aiokafka 0.14: without the one the group waits for as long as the other says.
    given = options.get("rebalance_timeout_ms") or options.get("session_timeout_ms")
    return float(given or _SESSION_TIMEOUT_MS) / 1000
