"""`ResilientKafkaConsumer`: a consumer that survives its broker."""

from __future__ import annotations

import asyncio
import inspect
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from resilient_io.binding import LoopBinding
from resilient_io.errors import ConfigurationError
from resilient_io.health import Dependency
from resilient_io.kafka.options import split_options
from resilient_io.retry import RetryPolicy
from resilient_io.validation import check_count, check_number, check_seconds

from ..connect import Target
from ..errors import KafkaClosed
from ..processing.options import check_choice, plan_run
from ..processing.workers import seen
from .engine import Engine
from .fetcher import Reader
from .iteration import BatchIterator, BatchWalk, RecordIterator, RecordWalk
from .options import ConsumerSettings, subscription_to
from .running import run
from .stats import ConsumerStats, Counters, ask_lag, nothing_yet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from resilient_io.health.dependency import Availability

    from ..instrumentation import Tracing
    from ..processing.options import (
        DeadLetter,
        HandlerPolicy,
        OnUnknown,
        Order,
        RunLimits,
    )
    from ..processing.processor import RunStats
    from ..processing.retries import OnFailure
    from .fetcher import Deserializer

__all__ = ["ResilientKafkaConsumer"]

_OWNED = {
    "enable_auto_commit": "leave it out: offsets are committed once their records are handled",
    "auto_commit_interval_ms": "write settings=ConsumerSettings(commit_interval=1.0), in seconds",
    "max_poll_records": "write settings=ConsumerSettings(fetch_records=1000), or "
    "batches(max_records=1000)",
}

_MAX_POLL_INTERVAL_MS = 300_000  # aiokafka 0.14's own default
_MILLISECONDS = (
    "max_poll_interval_ms",
    "session_timeout_ms",
    "rebalance_timeout_ms",
    "fetch_max_wait_ms",
)
_CHOICES = {
    "auto_offset_reset": ("earliest", "latest", "none"),
    "isolation_level": ("read_uncommitted", "read_committed"),
}


class ResilientKafkaConsumer:
    """Reads records at least once, and goes on by itself after whatever happens to Kafka.

    A record is handled when the next one is asked for (`async for`, `batches`), or when its handler
    returned (`run`). Only offsets before which everything is handled are committed: in the
    background, when partitions are taken away, on leaving and on closing. An outage is never
    raised: records come again when Kafka does.

    It may be made anywhere, starts in the event loop of its first use (or of `async with`), and
    belongs to that loop. While Kafka is away it starts all the same; `health` says how it is.

    Args:
        *topics: Names of the topics to read.
        bootstrap_servers: "host:port", several with commas between, or a list of such.
        group_id: The consumer group; None reads all partitions alone, and commits nothing.
        pattern: A regular expression for the names of topics, instead of naming them.
        partitions: Fixed partitions, instead of topics; without a group.
        policy: Times, backoff, and what a call does while Kafka is down; None for the defaults.
        health: The cluster's availability, which several clients may share; None makes one.
        settings: When to commit, and the bounds; None for the defaults.
        key_deserializer: Reads the bytes of a key; never called for None. A record that it raises
            for comes with `record.error`, and its `key` and `value` raise.
        value_deserializer: Reads the bytes of a value, in the same way.
        rng: Source of the jitter; give a seeded one to replay a schedule.
        **options: Options of `aiokafka.AIOKafkaConsumer`, passed on as they are
            (`auto_offset_reset`, `group_instance_id`, `security_protocol` …).

    Raises:
        ConfigurationError: Something given cannot work; the message says what to write instead.
    """

    def __init__(
        self,
        *topics: str,
        bootstrap_servers: str | Iterable[str] = "localhost:9092",
        group_id: str | None = None,
        pattern: str | None = None,
        partitions: Iterable[tuple[str, int]] | None = None,
        policy: RetryPolicy | None = None,
        health: Dependency | None = None,
        settings: ConsumerSettings | None = None,
        key_deserializer: Deserializer | None = None,
        value_deserializer: Deserializer | None = None,
        rng: random.Random | None = None,
        **options: Any,
    ) -> None:
        _check_kinds(policy, health, settings)
        for name, function in (
            ("key_deserializer", key_deserializer),
            ("value_deserializer", value_deserializer),
        ):
            if function is not None and not callable(function):
                raise ConfigurationError(f"{name}={function!r} is no function: write json.loads")
            if inspect.iscoroutinefunction(function):
                raise ConfigurationError(
                    f"{name}={function!r} is async, and would give coroutines for values: write "
                    f"a plain function, and await in the handler"
                )
        self._subscription = subscription_to(topics, pattern, partitions, group_id)
        split = split_options(options, of=AIOKafkaConsumer, owned=_OWNED)
        self._options = split.own
        _check_options(split.own)
        self._target = Target(bootstrap_servers, split.client)
        self._policy = policy or RetryPolicy()
        self._owns_health = health is None
        self._health = health if health is not None else Dependency(self._target.name)
        self._settings = settings or ConsumerSettings()
        self._deserializers = (key_deserializer, value_deserializer)
        self._rng = rng if rng is not None else random.Random()
        self._counters = Counters()
        self._tracing: Tracing | None = None
        self._engine: Engine | None = None
        self._residence: LoopBinding | None = None
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        subscription = self._subscription
        what = subscription.pattern or ", ".join(
            subscription.topics or [f"{t}[{p}]" for t, p in subscription.partitions]
        )
        group = "" if subscription.group is None else f" as {subscription.group}"
        return f"<{type(self).__name__} of {what}{group}, {self._target.name}>"

    @property
    def health(self) -> Dependency:
        """How Kafka is, as this consumer and its probe see it."""
        return self._health

    @property
    def group_id(self) -> str | None:
        """The consumer group; None without one."""
        return self._subscription.group

    # --- life

    async def __aenter__(self) -> Self:
        """Start; never waits for Kafka."""
        self._started()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; see `aclose`."""
        await self.aclose()

    async def aclose(self, timeout: float | None = None) -> None:
        """Hand out nothing more, wait for what is in hand, commit, and leave the group.

        `async for` ends by itself then, and so does `run`. A record in hand of a loop in another
        task gets `drain_timeout` to be handled; one of the loop that this is called from is not
        handled, unless it is `done()`. Closing twice is fine, and a consumer that was closed cannot
        be used again. Cancelling leaves at once; the closing goes on by itself, within its timeout.

        Args:
            timeout: Seconds within which it ends, also when Kafka is away; None for
                `ConsumerSettings.close_timeout`.

        Raises:
            ConfigurationError: `timeout` is no number of at least 0.
        """
        bound = self._settings.close_timeout
        if timeout is not None:
            bound = check_number("timeout", timeout)
        self._closed = True
        loop = asyncio.get_running_loop()
        if self._engine is None or self._residence is None or self._residence.loop is not loop:
            return
        if self._closing is None:
            self._closing = loop.create_task(
                self._close(self._engine, loop.time() + bound, asyncio.current_task()),
                name="resilient-io kafka consumer closing",
                context=self._engine.supervisor.context(),
            )
        await asyncio.wait([self._closing])

    async def _close(self, engine: Engine, until: float, asking: asyncio.Task[Any] | None) -> None:
        await engine.aclose(until, asking)
        if self._owns_health:
            await self._health.aclose()

    # --- records

    def __aiter__(self) -> RecordIterator:
        """Iterate over records: each is handled when the next is asked for.

        An outage is waited for. Leaving by `break`, by an exception or by a cancellation leaves the
        record in hand unhandled, unless `record.done()` was called: the next loop begins with it,
        or, after a restart, whoever has its partition then. One loop at a time.

        Raises:
            RuntimeError: Somebody else takes records already, or another event loop uses it.
            KafkaClosed: It was closed.
            KafkaDeadlineExceeded: Nothing came within an enclosing `resilient_io.deadline`.
            KafkaAuthenticationFailed: Kafka has not accepted the credentials since the start.
            KafkaError: What Kafka refuses for good (no authorisation, say), as aiokafka raises it.
        """
        engine = self._started()
        return RecordIterator(
            RecordWalk(engine.feed, engine.enter, engine.left, self._settings.fetch_records)
        )

    def batches(self, *, max_records: int = 500, max_wait: float = 0.0) -> BatchIterator:
        """Iterate over lists of records: each is handled when the next is asked for.

        As with `async for record in consumer`; single records of a batch that is left early count
        as handled after their `done()`.

        Args:
            max_records: Most records of a batch.
            max_wait: Longest wait for more once there is a first, in seconds; 0 takes what is
                there.

        Raises:
            ConfigurationError: A value is out of range.
        """
        check_count("max_records", max_records)
        check_number("max_wait", max_wait)
        engine = self._started()
        return BatchIterator(
            BatchWalk(engine.feed, engine.enter, engine.left, max_records, max_wait)
        )

    async def run(
        self,
        handler: Callable[[Any], Awaitable[object]],
        *,
        order: Order = "key",
        concurrency: int = 16,
        batch_size: int | None = None,
        policy: HandlerPolicy | None = None,
        dead_letter: DeadLetter | str | None = None,
        on_failure: OnFailure | None = None,
        on_outcome_unknown: OnUnknown = "retry",
        requires: Sequence[Availability] = (),
        limits: RunLimits | None = None,
    ) -> None:
        """Call the handler for each record, many at once, until the consumer is closed.

        The order of records of one key (or partition) is kept, also across a rebalance. What fails
        is tried again without holding others, then goes where `on_failure` says. Cancelling it
        stops fetching, and leaves at once; draining and committing go on for up to
        `limits.drain_timeout`, and `aclose()` waits for them.

        Args:
            handler: An async function of one record; of a list of records with `batch_size`.
            order: "key" keeps the order of records with the same key (those without one wait for
                nobody), "partition" that of whole partitions, "none" keeps none.
            concurrency: Most handlers that run at once. They run in that many tasks, one record
                after the other: a context variable that a handler sets stays set for the next.
            batch_size: Most records for one call of the handler; None calls it with one record. A
                batch that fails is tried again record by record.
            policy: How often a failing handler is called again, and how long a call may take.
            dead_letter: The topic for records that cannot be handled, or more about it.
            on_failure: "dead_letter" (the default with `dead_letter=`), "stop" (the default
                without), "skip", or a function that is asked.
            on_outcome_unknown: What becomes of a record whose handler raised `OutcomeUnknown`.
            requires: Dependencies that handlers cannot do without: while one is down, nothing is
                handled.
            limits: How much may be in memory, and how long its ends may take.

        Raises:
            ConfigurationError: An argument cannot work, or there is no group.
            RuntimeError: Somebody else takes records already.
            KafkaClosed: It was closed before.
            Exception: What a handler raised, with `on_failure="stop"`; what Kafka refuses for good.
        """
        plan = plan_run(
            handler,
            order=order,
            concurrency=concurrency,
            batch_size=batch_size,
            policy=policy,
            dead_letter=dead_letter,
            on_failure=on_failure,
            on_outcome_unknown=on_outcome_unknown,
            requires=requires,
            limits=limits,
        )
        if self._subscription.group is None:
            raise ConfigurationError(
                "run() needs a group to commit to: write "
                'ResilientKafkaConsumer("orders", group_id="billing"), or iterate without one'
            )
        if self._tracing is not None:
            several = batch_size is not None
            plan = replace(plan, handler=seen(handler, self._tracing, several=several))
        interval = self._options.get("max_poll_interval_ms", _MAX_POLL_INTERVAL_MS) / 1000
        engine = self._started()
        await run(
            engine,
            plan,
            max_poll_interval=interval,
            rebalance_timeout=engine.rebalance_timeout,
            make_producer=self._make_producer,
            rng=self._rng,
        )

    # --- looking

    def assignment(self) -> tuple[TopicPartition, ...]:
        """Return the partitions that are ours now; none before the first use."""
        return () if self._engine is None else self._engine.assignment()

    def seek(self, partition: tuple[str, int], offset: int) -> None:
        """Read a partition from another offset from now on.

        What came from it and is not handled yet does not count any more; with a group, the new
        place is committed in the background.

        Args:
            partition: One that is ours.
            offset: Where to go on.

        Raises:
            ConfigurationError: The offset is no whole number of at least 0, or the partition is
                not ours now.
            RuntimeError: `run` is under way: its handlers have records of that partition.
        """
        check_count("offset", offset, least=0)
        if self._engine is not None and self._engine.processor is not None:
            raise RuntimeError("seek() while run() is under way: stop it first, with aclose()")
        holding = None
        if self._engine is not None:
            holding = self._engine.holdings.get(TopicPartition(*partition))
        if self._engine is None or holding is None:
            raise ConfigurationError(
                f"{partition} is not ours now: seek within partitions of assignment()"
            )
        self._engine.move(holding, offset)

    async def commit(self, timeout: float | None = None) -> None:
        """Commit what is handled now, instead of in a moment.

        Never raises for an outage or a rebalance: what cannot be committed now is committed later,
        or read again by whoever has the partition then. Cancelling leaves at once.

        Args:
            timeout: Longest time in seconds; None for `ConsumerSettings.commit_timeout`.

        Raises:
            KafkaClosed: It was closed.
        """
        bound = self._settings.commit_timeout
        if timeout is not None:
            bound = check_seconds("timeout", timeout)
        await self._started().commit(bound)

    async def lag(self, timeout: float | None = None) -> dict[TopicPartition, int]:
        """Ask how many offsets lie between what is committed and the end, for our partitions.

        Without a group, or before the first commit, what is handled counts instead; a partition of
        which not even that is known yet is left out. Cancelling leaves at once.

        Args:
            timeout: Longest wait in seconds; None for the policy's deadline.

        Raises:
            KafkaUnavailable: Kafka is down, and the policy does not wait for it.
            KafkaDeadlineExceeded: There was no answer in time.
            KafkaClosed: It was closed.
        """
        bound = self._policy.deadline if timeout is None else check_seconds("timeout", timeout)
        return await ask_lag(self._started(), bound)

    def known_lag(self) -> dict[TopicPartition, int]:
        """Return what `lag()` would, without asking: by the ends that the latest fetches saw.

        It costs no network, so metrics may ask as often as they like. A partition that was not
        fetched from since it became ours is left out; of one that is paused, or while Kafka is
        away, the end is as old as its last fetch. Empty before the first use and after closing.
        """
        return {} if self._engine is None or self._closed else self._engine.known_lag()

    def liveness_failure(self) -> str | None:
        """Say why only a new process helps; None while all is well.

        Either a task of its own is gone, by a bug of ours, or `run` has records in hand and none
        of them has moved for `max_poll_interval_ms`, though Kafka and all that it `requires` are
        there, and none of the latter is degraded. What handlers wait for without a bound belongs
        into `requires`: a standstill for that long is taken for their own otherwise. Kafka being
        away never counts: this is for liveness (`HealthMonitor(liveness=[consumer])`), not for
        readiness.
        """
        residence = self._residence
        if self._engine is None or residence is None or residence.closed or residence.forked:
            return None
        return self._engine.liveness_failure()

    def stats(self) -> ConsumerStats:
        """Return the counters."""
        if self._engine is not None:
            return self._engine.stats()
        return nothing_yet()

    def run_stats(self) -> RunStats | None:
        """Return the counters of the `run` under way, or else of the last one; None before it."""
        if self._engine is None:
            return None
        processor = self._engine.processor
        return self._engine.last_run if processor is None else processor.stats()

    # --- inside

    def _started(self) -> Engine:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise KafkaClosed(
                "the consumer was closed: make a new one",
                dependency=self._health.name,
                operation="consume",
            )
        if self._residence is not None and self._residence.loop is not loop:
            if not self._residence.closed:
                self._residence.check(type(self).__name__)
            self._engine = None  # gone with that loop
        if self._engine is None:
            engine = Engine(
                target=self._target,
                subscription=self._subscription,
                options=self._options,
                policy=self._policy,
                health=self._health,
                settings=self._settings,
                reader=Reader(*self._deserializers, self._counters),
                counters=self._counters,
                rng=self._rng,
            )
            engine.start()
            self._engine, self._residence = engine, LoopBinding()
        return self._engine

    def _make_producer(self) -> Any:
        from resilient_io.kafka.producer import ResilientKafkaProducer  # noqa: PLC0415

        return ResilientKafkaProducer(
            policy=self._policy, health=self._health, **self._target.client_options()
        )


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse values that we need, or that aiokafka 0.14 would take for something else."""
    for name in _MILLISECONDS:
        if name in options and (name, options[name]) != ("rebalance_timeout_ms", None):
            check_count(name, options[name])
    for name, choices in _CHOICES.items():
        if name in options:
            check_choice(name, options[name], choices)


def _check_kinds(policy: object, health: object, settings: object) -> None:
    for name, value, kind in (
        ("policy", policy, RetryPolicy),
        ("health", health, Dependency),
        ("settings", settings, ConsumerSettings),
    ):
        if value is not None and not isinstance(value, kind):
            raise ConfigurationError(
                f"{name} must be a {kind.__name__}, not {value!r}: write {name}={kind.__name__}(…)"
            )
