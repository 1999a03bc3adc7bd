"""`ResilientKafkaConsumer`: reads records at least once, whatever happens to Kafka."""

from __future__ import annotations

import asyncio
import inspect
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from resilient_io.binding import LoopBinding
from resilient_io.errors import ConfigurationError
from resilient_io.health import ClientDependency, Dependency
from resilient_io.retry import RetryPolicy
from resilient_io.text import redact_credentials
from resilient_io.urls import read_kafka_url
from resilient_io.validation import check_count, check_name, check_number, check_seconds, check_type

from ..connect import KafkaTarget
from ..errors import KafkaClosed
from ..processing import plan_run, trace_handler
from ..stats import ConsumerCounters, ConsumerStats
from .fetcher import RecordDeserializer
from .offsets import check_partitions, not_assigned
from .options import (
    ConsumerSettings,
    check_on_gap,
    check_subscription,
    split_consumer_options,
)
from .runtime import PAUSED_BY_CALLER, ConsumerRuntime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Unpack

    from aiokafka import TopicPartition
    from aiokafka.structs import OffsetAndTimestamp

    from ..instrumentation import Tracing
    from ..processing import (
        DeadLetter,
        HandlerPolicy,
        OnFailure,
        OnUnknown,
        Order,
        RetryTopic,
        RunLimits,
        RunStats,
    )
    from ..producer import ResilientKafkaProducer
    from .fetcher import Deserializer
    from .iteration import BatchIterator, RecordIterator
    from .options import ConsumerOptions
    from .positions import OnGap


class ResilientKafkaConsumer:
    """Reads records at least once, and continues by itself after any failure of Kafka.

    A record is handled when the next one is requested (`async for`, `batches`) or when its handler
    returns (`run`). An offset is committed only after every earlier record of its partition has
    been handled: in the background, when partitions are revoked, at the end of a loop, and on
    closing. An outage raises no error: records arrive again when Kafka is available.

    A consumer may be created anywhere. It starts in the event loop of its first use (or of `async
    with`), also while Kafka is unavailable, and is bound to that loop.

    Args:
        *topics: Names of the topics to read.
        bootstrap_servers: "host:port", several separated by commas, or a list of them.
        group_id: The consumer group; None reads all partitions without a group and commits
            nothing.
        name: Name of this consumer in logs, errors, metric labels and on the status page; None for
            the address of the cluster.
        pattern: A regular expression for topic names, instead of topics.
        partitions: Fixed partitions, instead of topics; without a group.
        policy: Timeouts, backoff, and what a call does while Kafka is down; None for the defaults.
        health: The cluster's health, if several clients share it; None creates one.
        settings: When to commit, and the timeouts of draining and closing; None for the defaults.
        on_gap: What to do about records that Kafka no longer has (see `RecordsLost`): "continue",
            or "stop", which raises `KafkaRecordsLost`; or a function, or coroutine function, of the
            `RecordsLost` that returns one of them. They are reported in either case: in the log,
            in `stats()`, and by `State.DEGRADED` for `ConsumerSettings.gap_degraded_for`.
        key_deserializer: Deserializes the bytes of a key; never called for None. If it raises, the
            record is delivered with `record.error`, and its `key` and `value` raise.
        value_deserializer: Deserializes the bytes of a value in the same way.
        rng: Source of the jitter; pass a seeded one to make a run reproducible.
        **options: Options of `aiokafka.AIOKafkaConsumer`, passed on unchanged
            (`group_instance_id`, `security_protocol`, …), except that `auto_offset_reset` is only
            for a group that has never read the topic, and that `metadata_max_age_ms` is 10,000 by
            default, so that new partitions are found within 10 s.

    Raises:
        ConfigurationError: An argument has an invalid value; the message says what to use instead.
        TypeError: An argument has the wrong type.

    Attributes:
        name: The name of this consumer; by default that of its health.
    """

    def __init__(
        self,
        *topics: str,
        bootstrap_servers: str | Iterable[str] = "localhost:9092",
        group_id: str | None = None,
        name: str | None = None,
        pattern: str | None = None,
        partitions: Iterable[tuple[str, int]] | None = None,
        policy: RetryPolicy | None = None,
        health: Dependency | None = None,
        settings: ConsumerSettings | None = None,
        on_gap: OnGap = "continue",
        key_deserializer: Deserializer | None = None,
        value_deserializer: Deserializer | None = None,
        rng: random.Random | None = None,
        **options: Unpack[ConsumerOptions],
    ) -> None:
        if policy is not None:
            check_type("policy", policy, RetryPolicy)
        if health is not None:
            check_type("health", health, Dependency)
        if settings is not None:
            check_type("settings", settings, ConsumerSettings)
        if name is not None:
            name = redact_credentials(check_name("name", name, example="orders-consumer"))
        _check_deserializer("key_deserializer", key_deserializer)
        _check_deserializer("value_deserializer", value_deserializer)
        self._subscription = check_subscription(topics, pattern, partitions, group_id)
        split = split_consumer_options(options)
        self._options = split.own
        self._target = KafkaTarget(bootstrap_servers, split.client)
        self._policy = policy or RetryPolicy()
        self._health = health if health is not None else ClientDependency(name or self._target.name)
        self.name = name or self._health.name
        self._settings = settings or ConsumerSettings()
        self._on_gap: OnGap = check_on_gap(on_gap)
        self._deserializers = (key_deserializer, value_deserializer)
        self._rng = rng if rng is not None else random.Random()
        self._counters = ConsumerCounters()
        self._tracing: Tracing | None = None
        self._runtime: ConsumerRuntime | None = None
        self._binding: LoopBinding | None = None
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: str, *topics: str, **options: Any) -> Self:
        """Return a consumer of the cluster of a URL: "kafka://kafka-1:9092,kafka-2:9092".

        Args:
            url: As for `ResilientKafkaProducer.from_url`.
            *topics: Names of the topics to read.
            **options: As for the constructor. They replace those of the URL.

        Raises:
            ConfigurationError: The URL or an option is wrong. The URL is not quoted, because it
                may contain a password.
            TypeError: An argument has the wrong type.
        """
        return cls(*topics, **(read_kafka_url(url) | options))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._subscription}, {self._target.name}>"

    @property
    def health(self) -> Dependency:
        """The health of Kafka, as this consumer and its probe observe it."""
        return self._health

    @property
    def group_id(self) -> str | None:
        """The consumer group; None without one."""
        return self._subscription.group

    # --- lifecycle

    async def __aenter__(self) -> Self:
        """Start; this never waits for Kafka."""
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
        """Deliver no more records, wait for those in hand, commit, and leave the group.

        `async for` and `run` then end. A record in hand of a loop in another task gets
        `drain_timeout` to be handled; a record of the loop from which this is called counts as
        unhandled unless it is `done()`. This method is idempotent, and a closed consumer cannot be
        used again. Cancelling returns immediately; closing continues in the background.

        Args:
            timeout: Longest time in seconds, even if Kafka is unavailable; None for
                `ConsumerSettings.close_timeout`.

        Raises:
            ConfigurationError: `timeout` is not a number of at least 0.
        """
        limit = self._settings.close_timeout
        if timeout is not None:
            limit = check_number("timeout", timeout)
        self._closed = True
        loop = asyncio.get_running_loop()
        if self._runtime is None or self._binding is None or self._binding.loop is not loop:
            return
        if self._closing is None:
            self._closing = loop.create_task(
                self._close(self._runtime, loop.time() + limit, asyncio.current_task()),
                name="resilient-io kafka consumer closing",
                context=self._runtime.supervisor.context(),
            )
        await asyncio.wait([self._closing])

    async def _close(
        self, runtime: ConsumerRuntime, until: float, caller: asyncio.Task[Any] | None
    ) -> None:
        await runtime.aclose(until, caller)
        await self._health.release()

    # --- records

    def __aiter__(self) -> RecordIterator:
        """Iterate over records: each is handled when the next one is requested.

        The iteration waits during an outage. If you leave the loop early (`break`, exception,
        cancellation), the current record counts as unhandled unless `record.done()` was called:
        the next loop begins with it or, after a restart, the consumer that its partition is
        assigned to. A consumer allows one loop at a time.

        Raises:
            RuntimeError: Another loop or `run` is active, or the consumer is bound to another
                event loop.
            KafkaClosed: The consumer was closed.
            KafkaDeadlineExceeded: No record came within an enclosing `resilient_io.deadline`.
            KafkaAuthenticationFailed: Kafka has rejected the credentials since the start.
            KafkaError: What Kafka refuses permanently (a missing permission, for example), as
                aiokafka raises it.
        """
        return self._started().records()

    def batches(self, *, max_records: int = 500, max_wait: float = 0.0) -> BatchIterator:
        """Iterate over lists of records: each list is handled when the next one is requested.

        Otherwise like `async for record in consumer`. If you leave the loop early, records of the
        batch count as handled if they are `done()`.

        Args:
            max_records: Maximum number of records in a batch.
            max_wait: Longest wait for more records after the first one, in seconds; 0 delivers
                those that are available.

        Raises:
            ConfigurationError: A value is out of range.
        """
        check_count("max_records", max_records)
        check_number("max_wait", max_wait)
        return self._started().batches(max_records, max_wait)

    async def run(
        self,
        handler: Callable[[Any], Awaitable[object]],
        *,
        order: Order = "key",
        concurrency: int = 16,
        batch_size: int | None = None,
        handler_policy: HandlerPolicy | None = None,
        dead_letter: DeadLetter | str | None = None,
        retry_topics: Sequence[RetryTopic | str] = (),
        on_failure: OnFailure | None = None,
        on_outcome_unknown: OnUnknown = "retry",
        requires: Sequence[Dependency] = (),
        limits: RunLimits | None = None,
    ) -> None:
        """Call the handler for each record, concurrently, until the consumer is closed.

        Records of one key (or partition) are handled in order, also across a rebalance. A record
        whose handler fails is retried without delaying other keys. After the last attempt it waits
        in the `retry_topics`; after the last of these, `on_failure` decides. Cancelling stops
        fetching and returns immediately; draining and committing continue for up to
        `ConsumerSettings.drain_timeout`, and `aclose()` waits for them.

        Args:
            handler: A coroutine function of one record; of a list of records with `batch_size`.
            order: "key" handles records with the same key in order (records without a key are
                independent), "partition" whole partitions, "none" keeps no order.
            concurrency: Maximum number of handlers that run at the same time. They run in that
                many tasks, one record after the other: a context variable that a handler sets
                stays set for the next record.
            batch_size: Maximum number of records per call; None calls the handler with one record.
                After a batch fails, its records are retried one by one.
            handler_policy: How often a failing handler is retried, and how long a call may take.
            dead_letter: The topic for records that cannot be handled, or a `DeadLetter`.
            retry_topics: Topics in which a record waits after its last attempt, one after the
                other, each followed by as many attempts; the offset of the record is committed
                when it is written there. The delay is the end of the name ("orders.retry.10m"; ms,
                s, m, h or d) or that of a `RetryTopic`. This consumer reads these topics as well,
                from their beginning if its group has never read them. The handler gets a record
                with its original topic, partition, offset, timestamp and headers, and `retries`.
                Later records with its key do not wait for it.
            on_failure: "dead_letter" (the default with `dead_letter=`), "stop" (the default
                without), "skip", or a function that returns one of them.
            on_outcome_unknown: What to do with a record whose handler raised `OutcomeUnknown`.
            requires: Dependencies that the handlers need: while one of them is down, no record is
                handled.
            limits: How many records may be in memory, and how fast handling restarts.

        Raises:
            ConfigurationError: An argument has an invalid value, the group is missing, or a retry
                topic does not exist.
            TypeError: An argument has the wrong type, such as a handler that is not a coroutine
                function.
            RuntimeError: Another loop or `run` is active.
            KafkaClosed: The consumer was closed before.
            Exception: The handler's exception, with `on_failure="stop"`; what Kafka refuses
                permanently.
        """
        plan = plan_run(
            handler,
            order=order,
            concurrency=concurrency,
            batch_size=batch_size,
            handler_policy=handler_policy,
            dead_letter=dead_letter,
            retry_topics=retry_topics,
            on_failure=on_failure,
            on_outcome_unknown=on_outcome_unknown,
            requires=requires,
            limits=limits,
            group=self._subscription.group or "",
            reads=self._subscription.reads,
        )
        if self._subscription.group is None:
            raise ConfigurationError(
                "run() needs a group to commit to: use for example "
                'ResilientKafkaConsumer("orders", group_id="billing"), or iterate without a group'
            )
        if self._tracing is not None:
            traced = trace_handler(plan.handler, self._tracing, batches=batch_size is not None)
            plan = replace(plan, handler=traced)
        await self._started().run(plan, self._make_producer)

    def trace_with(self, tracing: Tracing) -> None:
        """Create spans of the handler calls of every `run` that starts from now on."""
        self._tracing = tracing

    # --- partitions and offsets

    def assignment(self) -> tuple[TopicPartition, ...]:
        """Return the assigned partitions; empty before the first use."""
        return () if self._runtime is None else self._runtime.assignment.partitions

    async def position(self, partition: tuple[str, int], timeout: float | None = None) -> int:
        """Return the offset of the next record of an assigned partition.

        That is the first one which was not delivered to a loop, or which `run` has not taken from
        Kafka. While the position is not known yet (after an assignment), this waits for it.
        Cancelling returns immediately.

        Args:
            partition: An assigned partition.
            timeout: Longest wait in seconds; None for the policy's deadline.

        Raises:
            ConfigurationError: The partition is not assigned to this consumer.
            KafkaDeadlineExceeded: The position was not known in time.
            KafkaUnavailable: Kafka is down, and the policy does not wait for it.
            KafkaClosed: The consumer was closed.
        """
        (checked,) = check_partitions([partition])
        runtime = self._started()
        self._check_assigned([checked])
        return await runtime.position(checked, self._limit(timeout))

    async def committed(
        self, partition: tuple[str, int], timeout: float | None = None
    ) -> int | None:
        """Query the offset that the group has committed for a partition; None without one.

        Cancelling returns immediately.

        Args:
            partition: Any partition, assigned or not.
            timeout: Longest wait in seconds; None for the policy's deadline.

        Raises:
            ConfigurationError: The consumer has no group.
            KafkaDeadlineExceeded, KafkaUnavailable, KafkaClosed: As for `position`.
        """
        (checked,) = check_partitions([partition])
        if self.group_id is None:
            raise ConfigurationError("committed() needs a group: pass group_id=")
        return await self._started().offsets.committed(checked, self._limit(timeout))

    async def beginning_offsets(
        self, partitions: Iterable[tuple[str, int]], timeout: float | None = None
    ) -> dict[TopicPartition, int]:
        """Query the first offset that Kafka still has of each partition.

        Cancelling returns immediately.

        Args:
            partitions: Any partitions, assigned or not.
            timeout: Longest wait in seconds; None for the policy's deadline. An unknown topic is
                waited for.

        Raises:
            KafkaDeadlineExceeded, KafkaUnavailable, KafkaClosed: As for `position`.
        """
        checked = check_partitions(partitions)
        return await self._started().offsets.beginning(checked, self._limit(timeout))

    async def end_offsets(
        self, partitions: Iterable[tuple[str, int]], timeout: float | None = None
    ) -> dict[TopicPartition, int]:
        """Query the offset after the last record of each partition.

        With `isolation_level="read_committed"`, that is the offset up to which transactions have
        ended. Arguments, errors and cancellation are as for `beginning_offsets`.
        """
        checked = check_partitions(partitions)
        return await self._started().offsets.end(checked, self._limit(timeout))

    async def offsets_for_times(
        self, timestamps: Mapping[tuple[str, int], int], timeout: float | None = None
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """Query the first record of each partition whose timestamp is at least the given one.

        Cancelling returns immediately.

        Args:
            timestamps: Milliseconds since 1970 for each partition, assigned or not.
            timeout: Longest wait in seconds; None for the policy's deadline.

        Returns:
            Offset and timestamp of that record, or None where there is none.

        Raises:
            ConfigurationError: A timestamp is not an integer of at least 0.
            KafkaDeadlineExceeded, KafkaUnavailable, KafkaClosed: As for `position`.
        """
        checked = check_partitions(timestamps)
        times = [check_count("timestamp", each, least=0) for each in timestamps.values()]
        asked = dict(zip(checked, times, strict=True))
        return await self._started().offsets.for_times(asked, self._limit(timeout))

    async def seek_to_beginning(self, *partitions: tuple[str, int]) -> None:
        """Continue at the first offset that Kafka still has of assigned partitions.

        Without arguments, of all of them. Otherwise as `seek`, and the offsets are queried within
        the policy's deadline. Cancelling returns immediately, and may leave any of the positions
        unchanged.

        Raises:
            ConfigurationError: A partition is not assigned to this consumer.
            RuntimeError: `run` is active.
            KafkaDeadlineExceeded, KafkaUnavailable, KafkaClosed: As for `position`.
        """
        await self._seek_to(partitions, self._started().offsets.beginning)

    async def seek_to_end(self, *partitions: tuple[str, int]) -> None:
        """Continue at the end of assigned partitions: the next record is a new one.

        Arguments, errors and cancellation are as for `seek_to_beginning`.
        """
        await self._seek_to(partitions, self._started().offsets.end)

    async def _seek_to(
        self,
        partitions: Iterable[tuple[str, int]],
        query: Callable[
            [Iterable[TopicPartition], float | None], Awaitable[dict[TopicPartition, int]]
        ],
    ) -> None:
        checked = check_partitions(partitions) or list(self.assignment())
        self._check_assigned(checked)
        offsets = await query(checked, self._policy.deadline)
        for partition in checked:
            self.seek(partition, offsets[partition])

    def pause(self, *partitions: tuple[str, int]) -> None:
        """Deliver no records of assigned partitions until `resume` is called.

        The consumer stays in its group. Records that `run` has already taken from Kafka are still
        handled. A partition that is revoked and assigned again is still paused.

        Raises:
            ConfigurationError: A partition is not assigned to this consumer.
            KafkaClosed: The consumer was closed.
        """
        checked = check_partitions(partitions)
        runtime = self._started()
        self._check_assigned(checked)
        runtime.pause(checked)

    def resume(self, *partitions: tuple[str, int]) -> None:
        """Deliver records of partitions again; those that are not paused are ignored.

        Raises:
            KafkaClosed: The consumer was closed.
        """
        self._started().resume(check_partitions(partitions))

    def paused(self) -> tuple[TopicPartition, ...]:
        """Return the assigned partitions that were paused with `pause`."""
        return () if self._runtime is None else self._runtime.fetcher.paused_for(PAUSED_BY_CALLER)

    def _check_assigned(self, partitions: Iterable[TopicPartition]) -> None:
        assigned = self.assignment()
        for partition in partitions:
            if partition not in assigned:
                raise not_assigned(partition)

    def _limit(self, timeout: float | None) -> float | None:
        return self._policy.deadline if timeout is None else check_seconds("timeout", timeout)

    def seek(self, partition: tuple[str, int], offset: int) -> None:
        """Continue reading a partition at another offset.

        Records of the partition that are not handled yet no longer count. With a group, the new
        position is committed in the background.

        Args:
            partition: An assigned partition.
            offset: The offset of the next record.

        Raises:
            ConfigurationError: The offset is not an integer of at least 0, or the partition is not
                assigned to this consumer.
            RuntimeError: `run` is active, and its handlers may have records of the partition.
        """
        check_count("offset", offset, least=0)
        runtime = self._runtime
        if runtime is not None and runtime.use.processor is not None:
            raise RuntimeError("seek() while run() is active: stop it first with aclose()")
        (checked,) = check_partitions([partition])
        assigned = None if runtime is None else runtime.assignment.get(checked)
        if runtime is None or assigned is None:
            raise not_assigned(checked)
        runtime.seek(assigned, offset)

    async def commit(self, timeout: float | None = None) -> None:
        """Commit what is handled now, without waiting for the next background commit.

        An outage or a rebalance raises no error: offsets that cannot be committed now are committed
        later, or their records are read again by the consumer that the partition is assigned to
        then. Cancelling returns immediately.

        Args:
            timeout: Longest time in seconds; None for `ConsumerSettings.commit_timeout`.

        Raises:
            KafkaClosed: The consumer was closed.
        """
        limit = self._settings.commit_timeout
        if timeout is not None:
            limit = check_seconds("timeout", timeout)
        await self._started().commit(limit)

    async def lag(self, timeout: float | None = None) -> dict[TopicPartition, int]:
        """Query how many offsets lie between the committed one and the end of each partition.

        Without a group, or before the first commit, the first unhandled offset counts instead; a
        partition whose position is unknown is left out. Cancelling returns immediately.

        Args:
            timeout: Longest wait in seconds; None for the policy's deadline.

        Raises:
            KafkaUnavailable: Kafka is down, and the policy does not wait for it.
            KafkaDeadlineExceeded: There was no answer in time.
            KafkaClosed: The consumer was closed.
        """
        return await self._started().lag(self._limit(timeout))

    def known_lag(self) -> dict[TopicPartition, int]:
        """Return the lag by the end offset of each partition's last fetch, without a request.

        Metrics may call it often. A partition that was not fetched from since its assignment is
        left out. Empty before the first use and after closing.
        """
        if self._runtime is None or self._closed:
            return {}
        return self._runtime.assignment.known_lag()

    # --- reports

    def liveness_failure(self) -> str | None:
        """Return why only a restart of the process helps; None while none is needed.

        Either a background task has crashed because of a bug in this library, or `run` has records
        in hand and none of them has made progress for `max_poll_interval_ms`, although Kafka and
        all dependencies in `requires` are available and none of the latter is degraded. Put
        everything that handlers may wait for without a time limit into `requires`. An outage of
        Kafka never counts: this is for liveness (`HealthMonitor(liveness=[consumer])`).
        """
        binding = self._binding
        if self._runtime is None or binding is None or binding.closed or binding.forked:
            return None
        return self._runtime.liveness_failure()

    def stats(self) -> ConsumerStats:
        """Return the counters."""
        return ConsumerStats() if self._runtime is None else self._runtime.stats()

    def run_stats(self) -> RunStats | None:
        """Return the counters of the active `run`, or else of the last one; None before it."""
        if self._runtime is None:
            return None
        processor = self._runtime.use.processor
        return self._runtime.last_run if processor is None else processor.stats()

    # --- internal

    def _started(self) -> ConsumerRuntime:
        asyncio.get_running_loop()  # raises RuntimeError outside of an event loop
        if self._closed:
            raise KafkaClosed(
                "the consumer was closed: create a new one",
                dependency=self._health.name,
                operation="consume",
            )
        if self._binding is not None:
            if self._binding.closed:
                self._runtime = None  # its tasks ended with that loop
            else:
                self._binding.check(type(self).__name__)
        if self._runtime is None:
            runtime = ConsumerRuntime(
                target=self._target,
                subscription=self._subscription,
                options=self._options,
                policy=self._policy,
                health=self._health,
                settings=self._settings,
                on_gap=self._on_gap,
                deserializer=RecordDeserializer(*self._deserializers, self._counters),
                counters=self._counters,
                rng=self._rng,
            )
            runtime.start()
            self._runtime, self._binding = runtime, LoopBinding()
        return self._runtime

    def _make_producer(self) -> ResilientKafkaProducer:
        from ..producer import ResilientKafkaProducer  # noqa: PLC0415 - rarely needed

        return ResilientKafkaProducer(
            policy=self._policy, health=self._health, **self._target.client_options()
        )


def _check_deserializer(name: str, function: object) -> None:
    if function is None:
        return
    if not callable(function):
        raise TypeError(
            f"{name} must be a function, not {type(function).__name__}: use for example json.loads"
        )
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            f"{name} must be a plain function, not a coroutine function: deserialize without "
            f"awaiting, and await in the handler"
        )
