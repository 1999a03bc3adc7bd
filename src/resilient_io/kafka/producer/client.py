"""`ResilientKafkaProducer`: the public producer."""

from __future__ import annotations

import asyncio
import random
from _thread import get_ident
from asyncio import Future, get_running_loop
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer

from resilient_io.deadlines import current_deadline, earlier
from resilient_io.errors import ResilientIOError
from resilient_io.health import ClientDependency, Dependency
from resilient_io.retry import RetryPolicy
from resilient_io.urls import read_kafka_url
from resilient_io.validation import check_name, check_number, check_seconds, check_type

from ..connect import KafkaTarget
from ..errors import KafkaClosed
from ..instrumentation import trace_send
from ..options import split_options
from .bulk import send_many
from .core import ProducerCore
from .options import REPLACED_OPTIONS, DeliverySettings, complete_options, request_timeout
from .records import (
    OVERHEAD,
    DeliveryReport,
    ProducerStats,
    check_function,
    check_rare_fields,
    to_bytes,
    too_large,
)
from .transactions import Transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Coroutine, Iterable
    from types import TracebackType
    from typing import Self, Unpack

    from aiokafka.structs import RecordMetadata

    from ..instrumentation import Tracing
    from .metadata import Partitioner
    from .options import ProducerOptions
    from .records import Serializer
    from .transactions import TransactionManager

_CLOSE_TIMEOUT = 5.0


class ResilientKafkaProducer:
    """A Kafka producer that survives broker failures.

    Records wait in one queue for each partition and are sent in batches, one batch at a time for
    each partition. So their order is kept even when the aiokafka producer below has to be replaced,
    and it is known how far each record got. A record that was never sent fails as not sent. A
    record that was sent and got no answer fails with `KafkaOutcomeUnknown`; it is never sent again.

    The producer starts in the event loop of its first use or of `async with`, also while Kafka is
    down, and without waiting for it. The defaults are `acks="all"` and `enable_idempotence=True`,
    and with them `request_timeout_ms=10_000`: how long a leader may take to answer before aiokafka
    asks it again.

    Args:
        bootstrap_servers: "host:port", several separated by commas, or a list of them.
        name: Name for logs, errors and metrics; by default the addresses.
        policy: How long a call may take, and what it does while Kafka is down.
        health: The cluster's availability, to share it with another client; by default its own.
        settings: How long records are tried, collected and held.
        key_serializer: Turns keys into bytes. It runs in the caller, which gets its exceptions.
        value_serializer: Turns values into bytes, likewise.
        partitioner: Chooses partitions instead of the key's hash. It is called for each record
            without a partition, with the key in bytes, all partitions and those with a leader.
        rng: Source of the jitter; pass a seeded one to reproduce a schedule.
        **options: aiokafka's own options (`compression_type`, `max_batch_size`,
            `transactional_id`, `security_protocol`, …).

    Raises:
        ConfigurationError: An option is unknown, is not available, or has a wrong value.
        TypeError: An argument has the wrong type.

    Attributes:
        name: As given, or the name of `health`.
        health: Kafka's health, watched from the first use until `aclose()`.
    """

    def __init__(
        self,
        bootstrap_servers: str | Iterable[str] = "localhost:9092",
        *,
        name: str | None = None,
        policy: RetryPolicy | None = None,
        health: Dependency | None = None,
        settings: DeliverySettings | None = None,
        key_serializer: Serializer | None = None,
        value_serializer: Serializer | None = None,
        partitioner: Partitioner | None = None,
        rng: random.Random | None = None,
        **options: Unpack[ProducerOptions],
    ) -> None:
        split = split_options(options, of=AIOKafkaProducer, owned=REPLACED_OPTIONS)
        self._options = complete_options(split.own)
        self._target = KafkaTarget(
            bootstrap_servers, {**request_timeout(self._options), **split.client}
        )
        policy = RetryPolicy() if policy is None else policy
        self._policy = check_type("policy", policy, RetryPolicy, use="RetryPolicy(...)")
        settings = DeliverySettings() if settings is None else settings
        self._settings = check_type(
            "settings", settings, DeliverySettings, use="DeliverySettings(...)"
        )
        check_function("key_serializer", key_serializer)
        check_function("value_serializer", value_serializer)
        check_function("partitioner", partitioner)
        self._serialize_key = key_serializer
        self._serialize_value = value_serializer
        self._partitioner = partitioner
        self._rng = rng if rng is not None else random.Random()
        if name is not None:
            check_name("name", name, example="orders")
        if health is None:
            health = ClientDependency(name or self._target.name, rng=self._rng)
        self.health = check_type("health", health, Dependency, use='Dependency("kafka")')
        self.name = name or health.name
        self._transactional = self._options.get("transactional_id") is not None
        self._max_size = self._options["max_request_size"] + OVERHEAD
        self._delivery_timeout = self._settings.delivery_timeout
        deadline = self._policy.deadline
        self._call_timeout = min(self._delivery_timeout, deadline or self._delivery_timeout)
        self._core: ProducerCore | None = None
        self._tracing: Tracing | None = None
        self._closed = False

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Return a producer for the cluster of a URL: "kafka://kafka-1:9092,kafka-2:9092".

        Args:
            url: `kafka://[user:password@]host[:port][,host[:port]…]`, or `kafkas://…` for TLS. With
                a user, the mechanism is PLAIN unless `?sasl_mechanism=` is given. Further options:
                `client_id`, `ssl_cafile`, `ssl_certfile`, `ssl_keyfile` (paths of PEM files),
                `ssl_check_hostname=no`, `ssl_verify=no`. Special characters in user and password
                are URL-encoded.
            **options: As for the constructor. They replace those of the URL.

        Raises:
            ConfigurationError: The URL or an option is wrong. The URL is not quoted, because it
                may contain a password.
            TypeError: An argument has the wrong type.
        """
        return cls(**(read_kafka_url(url) | options))

    # --- sending

    async def send(  # noqa: PLR0917 (aiokafka's signature)
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Iterable[tuple[str, bytes | None]] | None = None,
    ) -> asyncio.Future[RecordMetadata]:
        """Accept a record; return a future for where it was written.

        Wait only for room in the buffer, and the first time for the topic's partitions. If
        cancelled meanwhile, the record is not sent. Cancelling the future also keeps the record
        from being sent, unless it was sent already.

        The future is done within the settings' `delivery_timeout` (and an enclosing
        `resilient_io.deadline`): with the record's metadata, with `KafkaDeadlineExceeded` (not
        sent), with `KafkaOutcomeUnknown` (sent and maybe written: sending it again may write it
        twice), or with the broker's error. It need not be awaited: records that fail are counted,
        and one log record is written for many.

        Args:
            topic: Topic name.
            value: Bytes, or what `value_serializer` takes; None marks the key as deleted.
            key: Bytes, or what `key_serializer` takes.
            partition: Partition; None to let the key or the partitioner choose.
            timestamp_ms: Milliseconds since 1970; None for now.
            headers: Pairs of a name and bytes.

        Raises:
            KafkaUnavailable: Kafka is down and `while_down="fail"`; nothing was sent.
            KafkaOverloaded: There was no room within the policy's deadline; nothing was sent.
            KafkaDeadlineExceeded: The topic's partitions were not known in time; nothing was sent.
            KafkaClosed: The producer was closed.
            UnknownTopicOrPartitionError: The partition does not exist, or the topic still did not
                when the time ended.
            TopicAuthorizationFailedError: The user may not see the topic.
            MessageSizeTooLargeError: The record is larger than `max_request_size`.
            IllegalOperation: The producer is transactional, and no transaction is open.
            TypeError: A key, value or header has the wrong type.
            ValueError: Key and value are both missing, or a number is out of range.
        """
        accept = self._accept if self._tracing is None else self._accept_traced
        accepted = accept(
            topic, value, key, partition, timestamp_ms, headers, self._delivery_timeout, "send"
        )
        return accepted if isinstance(accepted, Future) else await accepted

    async def send_and_wait(  # noqa: PLR0917 (aiokafka's signature)
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Iterable[tuple[str, bytes | None]] | None = None,
    ) -> RecordMetadata:
        """Send a record and wait until Kafka has confirmed it.

        The call is limited by the policy's `deadline`, an enclosing `resilient_io.deadline` and
        the settings' `delivery_timeout`. If cancelled, a record that was not sent yet is not sent;
        a record that was sent may still be written. The arguments are those of `send`.

        Returns:
            Where it was written. The offset is -1 with `acks=0`, and if Kafka answers that it
            already had the record.

        Raises:
            KafkaOutcomeUnknown: The record was sent, and no answer proves the outcome.
            KafkaDeadlineExceeded: The time ended before the record was sent.
            KafkaError: The errors of `send`, and the broker's.
            TypeError: A key, value or header has the wrong type.
            ValueError: Key and value are both missing, or a number is out of range.
        """
        accept = self._accept if self._tracing is None else self._accept_traced
        accepted = accept(
            topic, value, key, partition, timestamp_ms, headers, self._call_timeout, "send_and_wait"
        )
        try:
            return await (accepted if isinstance(accepted, Future) else await accepted)
        except ResilientIOError as error:
            error.operation = "send_and_wait"  # only this call has the future
            raise

    def _accept(  # noqa: C901, PLR0917 (the hottest path: calls and keywords cost)
        self,
        topic: str,
        value: Any,
        key: Any,
        partition: int | None,
        timestamp_ms: int | None,
        headers: Iterable[tuple[str, bytes | None]] | None,
        lifetime: float,
        operation: str,
    ) -> asyncio.Future[RecordMetadata] | Coroutine[Any, Any, asyncio.Future[RecordMetadata]]:
        """Accept a record; return its future, or a coroutine that returns it."""
        core = self._core
        if (
            core is None
            or (binding := core.binding).thread != get_ident()
            or not binding.is_running()
        ):
            core = self._start(operation)
        if self._transactional:
            core.transaction.check()
        if self._serialize_value is not None:
            value = self._serialize_value(value)
        if self._serialize_key is not None and key is not None:
            key = self._serialize_key(key)
        if value.__class__ is bytes:
            size = len(value) + OVERHEAD
        else:
            value = to_bytes("value", value)
            size = len(value or b"") + OVERHEAD
        if key is not None:
            if key.__class__ is not bytes:
                key = to_bytes("key", key)
            size += len(key)
        elif value is None:
            raise ValueError('a record needs a value or a key; use value=b"..."')
        pairs = None
        if size > self._max_size:
            raise too_large(size - OVERHEAD, self._max_size - OVERHEAD)
        if headers is not None or partition is not None or timestamp_ms is not None:
            pairs, more = check_rare_fields(headers, partition, timestamp_ms)
            size += more
        accumulator = core.accumulator
        future = accumulator.append(
            topic, key, value, partition, timestamp_ms, pairs, size, lifetime
        )
        if future is not None:
            return future
        return accumulator.append_when_ready(
            topic, key, value, partition, timestamp_ms, pairs, size, lifetime, operation
        )

    def _accept_traced(
        self, *record: Any
    ) -> asyncio.Future[RecordMetadata] | Coroutine[Any, Any, asyncio.Future[RecordMetadata]]:
        assert self._tracing is not None  # noqa: S101 (the caller checked it)
        return trace_send(self._tracing, self._accept, record)

    async def send_many(
        self,
        topic: str,
        records: Iterable[Any] | AsyncIterable[Any],
        *,
        timeout: float | None = None,
    ) -> DeliveryReport:
        """Send many records as fast as Kafka accepts them, and report the outcome of each.

        A record that cannot be sent (a serializer raises, it is too large, the broker refuses it)
        is in the report; the other records are sent. When Kafka goes down with
        `while_down="fail"`, the time ends, or there is no room for `delivery_timeout`, no more
        records are taken from the source, and `report.taken` says how many were.

        If the call is cancelled, or `records` itself raises, records that were not sent yet are not
        sent, records that were sent may be written, and there is no report.

        Args:
            topic: Topic name.
            records: An iterable, or an async one, of values, of `(key, value)` tuples, or of
                `OutgoingRecord`s. It is read as there is room.
            timeout: Time limit in seconds; None for no limit except an enclosing
                `resilient_io.deadline`. Each record also has `delivery_timeout`.

        Raises:
            KafkaUnavailable: Kafka is down and `while_down="fail"`; nothing was taken.
            KafkaDeadlineExceeded: The topic's partitions were not known in time.
            KafkaClosed: The producer was closed.
            UnknownTopicOrPartitionError: The topic still did not exist when the time ended.
            TypeError: `records` is not iterable.
        """
        core = self._running_core("send_many")
        if timeout is not None:
            check_seconds("timeout", timeout)
        return await send_many(
            core.accumulator,
            topic,
            records,
            timeout=timeout,
            serialize_key=self._serialize_key,
            serialize_value=self._serialize_value,
        )

    async def flush(self, timeout: float | None = None) -> None:
        """Send without lingering, and wait until every record accepted so far has an outcome.

        Cancelling the wait has no other effect.

        Args:
            timeout: Maximum wait in seconds; None to wait as long as the records' own deadlines
                allow. An enclosing `resilient_io.deadline` limits it, too.

        Raises:
            KafkaDeadlineExceeded: Some records have no outcome yet; they are still delivered.
            KafkaClosed: The producer was closed.
        """
        core = self._running_core("flush")
        if self._closed:
            raise core.errors.closed(operation="flush")
        began = core.loop.time()
        until = None if timeout is None else began + check_seconds("timeout", timeout)
        try:
            async with asyncio.timeout_at(earlier(until, current_deadline())):
                await core.accumulator.flush()
        except TimeoutError:
            raise core.errors.flush_timed_out(began) from None

    def transaction(self) -> Transaction:
        """Return a transaction: `async with producer.transaction() as transaction:`.

        Readers with `isolation_level="read_committed"` see all records sent inside, or none.
        Leaving the block waits for all records, then commits; if a record failed, it aborts and
        raises that record's error. Leaving it by an exception aborts. If cancelled, return
        immediately; the abort continues in the background. If no answer proves that the commit was
        applied, raise `KafkaOutcomeUnknown`: the aiokafka producer is replaced, and the new one
        completes the transaction as Kafka decided.

        There is one transaction at a time, on one aiokafka producer; if that has to be replaced,
        the transaction is aborted. A producer is fenced when another one takes its
        `transactional_id`, or when a transaction lasts longer than `transaction_timeout_ms`. It
        then raises `ProducerFenced` until the next `transaction()` takes the id back. After three
        such takeovers without a commit in between, create a new producer.

        Raises:
            ConfigurationError: On entering: the producer has no `transactional_id`.
            IllegalOperation: On entering: another transaction is open.
            KafkaUnavailable: Kafka is down and `while_down="fail"`.
            KafkaDeadlineExceeded: The transaction could not begin, or its records were not
                delivered, in time; nothing is applied.
            KafkaOutcomeUnknown: On leaving: the transaction may have been committed.
            ProducerFenced: Another producer took the transactional id; nothing is applied.
            KafkaClosed: The producer was closed.
        """
        return Transaction(self._transaction_manager)

    # --- lifecycle

    async def aclose(self, timeout: float | None = None) -> DeliveryReport:
        """Deliver the records that are waiting, as far as there is time, and close everything.

        No more records are accepted. When the time ends, the rest fails: with `KafkaClosed` if not
        sent, with `KafkaOutcomeUnknown` if sent. An open transaction is aborted. `aclose` is
        idempotent. If cancelled, return immediately; closing continues in the background.

        Args:
            timeout: Seconds for the deliveries; None for the policy's deadline, or 5. Closing
                connections that do not close normally takes at most three more.

        Returns:
            The records that were not delivered, and how many were delivered while closing. In a
            process forked after the first use there is nothing to close: the parent delivers.

        Raises:
            RuntimeError: The producer is in use in another living event loop.
        """
        if timeout is None:
            timeout = self._policy.deadline or _CLOSE_TIMEOUT
        check_number("timeout", timeout)
        core = self._core
        if core is None or core.binding.closed or core.binding.forked:
            self._closed = True
            return DeliveryReport()
        core.binding.check(type(self).__name__)
        self._closed = True
        return await core.aclose(timeout)

    async def __aenter__(self) -> Self:
        """Start without waiting for Kafka. A closed producer opens again."""
        if self._closed:
            core = self._core
            if core is not None and not core.binding.closed:
                core.binding.check(type(self).__name__)
                await core.aclose(0.0)
            self._core, self._closed = None, False
        self._running_core("start")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def stats(self) -> ProducerStats:
        """Return the counters since the producer was started."""
        return ProducerStats() if self._core is None else self._core.stats()

    def liveness_failure(self) -> str | None:
        """Return why only a restart of the process helps, or None.

        A background task crashed because of a bug in resilient-io. None before the first use and
        after closing. An outage of Kafka never counts, nor does a transactional id that another
        producer took: use it for liveness (`HealthMonitor(liveness=[producer])`), not readiness.
        """
        core = self._core
        if core is None or self._closed or core.binding.closed:
            return None
        return core.supervisor.liveness_failure()

    def trace_with(self, tracing: Tracing) -> None:
        """Create spans of all records sent from now on, except those of `send_many`."""
        self._tracing = tracing

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._target.name}: {self.health.state.value}>"

    def _transaction_manager(self) -> TransactionManager:
        return self._running_core("transaction").transactions

    def _running_core(self, operation: str) -> ProducerCore:
        core = self._core
        if core is None or core.binding.loop is not get_running_loop():
            return self._start(operation)
        return core

    def _start(self, operation: str) -> ProducerCore:
        """Start in the running event loop."""
        if self._closed:
            raise KafkaClosed(
                "the producer is closed: create a new ResilientKafkaProducer",
                dependency=self.health.name,
                operation=operation,
            )
        if self._core is not None and not self._core.binding.closed:
            self._core.binding.check(type(self).__name__)
        self._core = ProducerCore(
            target=self._target,
            options=self._options,
            policy=self._policy,
            health=self.health,
            settings=self._settings,
            partitioner=self._partitioner,
            rng=self._rng,
        )
        return self._core
