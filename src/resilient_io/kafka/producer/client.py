"""`ResilientKafkaProducer`: what users see; it runs through an engine in the loop of its use."""

from __future__ import annotations

import asyncio
import random
from asyncio import get_running_loop
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka import AIOKafkaProducer

from resilient_io.deadlines import current_deadline
from resilient_io.errors import ConfigurationError, ResilientIOError
from resilient_io.health import Dependency
from resilient_io.kafka.options import split_options
from resilient_io.retry import RetryPolicy
from resilient_io.validation import check_number, check_seconds

from ..connect import Target
from ..errors import KafkaClosed
from .accumulator import OVERHEAD
from .bulk import ship
from .engine import Engine
from .options import OWNED, DeliverySettings, completed, patience
from .records import check_serializer, checked, measured, too_large
from .reports import DeliveryReport, ProducerStats
from .transactions import Transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Coroutine, Iterable
    from types import TracebackType
    from typing import Self

    from aiokafka.structs import RecordMetadata

    from .partitioner import Partitioner
    from .records import Serializer
    from .transactions import Transactions

__all__ = ["ResilientKafkaProducer"]

T = TypeVar("T")

_CLOSE_TIMEOUT = 5.0


class ResilientKafkaProducer:
    """A Kafka producer that survives its broker.

    Records wait in lines of our own, one for each partition, and travel in batches, one at a time
    for each partition: so their order is kept, also when the aiokafka instance below has to be
    replaced, and it is known how far each got. One that was never handed over fails as not sent;
    one that was, and has no answer, as `KafkaOutcomeUnknown`. It is never sent again by us.

    It starts in the event loop of its first use or of `async with`, also while Kafka is away, and
    without waiting for it. `acks="all"` and `enable_idempotence=True` are the defaults, and with
    them `request_timeout_ms=10_000`: so long a leader may be silent before it is asked again.

    Args:
        bootstrap_servers: "host:port", several with commas between, or a list of them.
        policy: How long a call may take, and what it does while Kafka is down.
        health: The cluster's availability, to share it with another client; by default its own.
        settings: How long records are tried, collected and held.
        key_serializer: Turns keys into bytes; runs in the caller, and what it raises is the
            caller's.
        value_serializer: Turns values into bytes, likewise.
        partitioner: Chooses partitions instead of the key's hash: called for each record without
            a partition, with the key in bytes, all partitions and those that have a leader.
        rng: Source of the jitter; give a seeded one to replay a schedule.
        **options: aiokafka's own options (`compression_type`, `max_batch_size`,
            `transactional_id`, `security_protocol`, …).

    Raises:
        ConfigurationError: An option is unknown, ours, or cannot work; it says what to write.

    Attributes:
        health: How Kafka is; watched from the first use until `aclose()`.
    """

    def __init__(
        self,
        bootstrap_servers: str | Iterable[str] = "localhost:9092",
        *,
        policy: RetryPolicy | None = None,
        health: Dependency | None = None,
        settings: DeliverySettings | None = None,
        key_serializer: Serializer | None = None,
        value_serializer: Serializer | None = None,
        partitioner: Partitioner | None = None,
        rng: random.Random | None = None,
        **options: Any,
    ) -> None:
        split = split_options(options, of=AIOKafkaProducer, owned=OWNED)
        self._options = completed(split.own)
        self._target = Target(bootstrap_servers, {**patience(self._options), **split.client})
        self._policy = _of_kind("policy", policy, RetryPolicy) or RetryPolicy()
        self._settings = _of_kind("settings", settings, DeliverySettings) or DeliverySettings()
        check_serializer("key_serializer", key_serializer)
        check_serializer("value_serializer", value_serializer)
        check_serializer("partitioner", partitioner)
        self._serialize_key = key_serializer
        self._serialize_value = value_serializer
        self._partitioner = partitioner
        self._rng = rng if rng is not None else random.Random()
        self._owns_health = health is None
        given = _of_kind("health", health, Dependency)
        self.health: Dependency = given or Dependency(self._target.name, rng=self._rng)
        self._transactional = self._options.get("transactional_id") is not None
        self._most = self._options["max_request_size"] + OVERHEAD
        self._delivery_timeout = self._settings.delivery_timeout
        deadline = self._policy.deadline
        self._call_timeout = min(self._delivery_timeout, deadline or self._delivery_timeout)
        self._engine: Engine | None = None
        self._closed = False

    # --- records

    async def send(  # noqa: PLR0917 (aiokafka's signature)
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Iterable[tuple[str, bytes | None]] | None = None,
    ) -> asyncio.Future[RecordMetadata]:
        """Give a record to the producer; the future tells where it was written.

        Waits only for room in the buffer, and at first for the topic's partitions. Cancelling it
        meanwhile leaves at once, and the record is not sent. Cancelling the future keeps the record
        from being sent if it was not handed over yet. The future ends within the settings'
        `delivery_timeout` (and an enclosing `resilient_io.deadline`): with the record's metadata,
        with `KafkaDeadlineExceeded` (not sent), with `KafkaOutcomeUnknown` (handed over, perhaps
        written: sending it again may write it twice), or with what the broker refused it for.
        Nobody has to look at it: records that fail are counted, and logged in one line for many.

        Args:
            topic: Where to.
            value: Bytes, or what `value_serializer` takes; None marks a key as deleted.
            key: Bytes, or what `key_serializer` takes.
            partition: Which one; None lets the key, or the partitioner, decide.
            timestamp_ms: Milliseconds since 1970; None for now.
            headers: Pairs of a name and bytes.

        Raises:
            KafkaUnavailable: Kafka is down, and `while_down="fail"`; nothing was sent.
            KafkaOverloaded: There was no room within the policy's deadline; nothing was sent.
            KafkaDeadlineExceeded: The topic's partitions were not known in time; nothing was sent.
            KafkaClosed: The producer was closed.
            UnknownTopicOrPartitionError: There is no such topic or partition.
            TopicAuthorizationFailedError: The topic may not be seen.
            MessageSizeTooLargeError: It is larger than `max_request_size`.
            IllegalOperation: The producer is transactional, and no transaction is open.
            TypeError: A key, value or header is of the wrong type.
            ValueError: There is neither key nor value, or a number is out of range.
        """
        taken = self._take(
            topic, value, key, partition, timestamp_ms, headers, self._delivery_timeout, "send"
        )
        return taken if isinstance(taken, asyncio.Future) else await taken

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

        All of it is bounded by the policy's `deadline`, an enclosing `resilient_io.deadline` and
        the settings' `delivery_timeout`. Cancelling leaves at once: a record that was not handed
        over yet is not sent; one that was may still be written, and nobody is told.

        Args:
            topic: As for `send`, and so are the others.
            value: Bytes, or what `value_serializer` takes.
            key: Bytes, or what `key_serializer` takes.
            partition: Which one; None lets the key decide.
            timestamp_ms: Milliseconds since 1970; None for now.
            headers: Pairs of a name and bytes.

        Returns:
            Where it was written. The offset is -1 with `acks=0`, and if Kafka says that it had the
            record already.

        Raises:
            KafkaOutcomeUnknown: It was handed over, and no answer proves what became of it.
            KafkaDeadlineExceeded: The time ended before it was handed over.
            KafkaError: What `send` raises, and what the broker refused it for.
            TypeError: A key, value or header is of the wrong type.
            ValueError: There is neither key nor value, or a number is out of range.
        """
        taken = self._take(
            topic, value, key, partition, timestamp_ms, headers, self._call_timeout, "send_and_wait"
        )
        try:
            return await (taken if isinstance(taken, asyncio.Future) else await taken)
        except ResilientIOError as error:
            error.operation = "send_and_wait"  # nobody else has this future
            raise

    def _take(  # noqa: C901, PLR0917 (hot: calls and keywords cost)
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
        """Take a record in; give its future, or what to await for it."""
        engine = self._engine
        if engine is None or engine.residence.loop is not get_running_loop():
            engine = self._begin(operation)
        if self._transactional:
            engine.transactions.check()
        if self._serialize_value is not None:
            value = self._serialize_value(value)
        if self._serialize_key is not None and key is not None:
            key = self._serialize_key(key)
        if value.__class__ is bytes:
            size = len(value) + OVERHEAD
        else:
            value = checked("value", value)
            size = len(value or b"") + OVERHEAD
        if key is not None:
            if key.__class__ is not bytes:
                key = checked("key", key)
            size += len(key)
        elif value is None:
            raise ValueError('a record needs a value or a key: write value=b"..."')
        pairs = None
        if size > self._most:
            raise too_large(size - OVERHEAD, self._most - OVERHEAD)
        if headers is not None or partition is not None or timestamp_ms is not None:
            pairs, more = measured(headers, partition, timestamp_ms)
            size += more
        accumulator = engine.accumulator
        future = accumulator.offer(
            topic, key, value, partition, timestamp_ms, pairs, size, lifetime
        )
        if future is not None:
            return future
        return accumulator.admit(
            topic, key, value, partition, timestamp_ms, pairs, size, lifetime, operation
        )

    async def send_many(
        self,
        topic: str,
        records: Iterable[Any] | AsyncIterable[Any],
        *,
        timeout: float | None = None,
    ) -> DeliveryReport:
        """Send many records, as fast as Kafka takes them, and report what became of each.

        A record that cannot be sent (a serializer raises, it is too large, the broker refuses it)
        ends up in the report; the others go on. When Kafka goes down under `while_down="fail"`, the
        time ends, or there is no room for `delivery_timeout`, no more are taken: `report.taken`
        says how far it got. Cancelling leaves at once: what was not handed over is not sent, what
        was may be written. So it is when `records` itself raises: its error passes as it is, and
        there is no report.

        Args:
            topic: Where to.
            records: An iterable, or an async one, of values, of `(key, value)` tuples, or of
                `OutgoingRecord`s. It is read as there is room.
            timeout: Seconds for all of it; None for no bound but an enclosing
                `resilient_io.deadline`. Each record has `delivery_timeout`, too.

        Raises:
            KafkaUnavailable: Kafka is down, and `while_down="fail"`; nothing was taken.
            KafkaDeadlineExceeded: The topic's partitions were not known in time.
            KafkaClosed: The producer was closed.
            UnknownTopicOrPartitionError: There is no such topic.
            TypeError: `records` cannot be iterated over.
        """
        engine = self._engine
        if engine is None or engine.residence.loop is not get_running_loop():
            engine = self._begin("send_many")
        if timeout is not None:
            check_seconds("timeout", timeout)
        return await ship(
            engine,
            topic,
            records,
            timeout=timeout,
            serialize_key=self._serialize_key,
            serialize_value=self._serialize_value,
        )

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until every record given before has an outcome, lingering or not.

        Cancelling the wait changes nothing.

        Args:
            timeout: Longest wait in seconds; None waits as long as the records' own deadlines
                allow. An enclosing `resilient_io.deadline` bounds it too.

        Raises:
            KafkaDeadlineExceeded: Some have none yet; they go on.
            KafkaClosed: The producer was closed.
        """
        engine = self._engine
        if engine is None or engine.residence.loop is not get_running_loop():
            engine = self._begin("flush")
        if self._closed:
            raise engine.verdicts.closed(operation="flush")
        began = engine.loop.time()
        until = current_deadline()
        if timeout is not None:
            own = began + check_seconds("timeout", timeout)
            until = own if until is None else min(until, own)
        try:
            async with asyncio.timeout_at(until):
                await engine.accumulator.flushed()
        except TimeoutError:
            raise engine.verdicts.still_travelling(began) from None

    def transaction(self) -> Transaction:
        """Begin a transaction: `async with producer.transaction() as transaction:`.

        Everything sent inside is seen by readers with `isolation_level="read_committed"` together,
        or not at all. Leaving the block waits for all its records, then commits; if one of them
        failed, it aborts and raises that error. Leaving it by an exception aborts. Cancelling
        leaves at once; the abort goes on by itself. If no answer proves that the commit was
        applied, that is `KafkaOutcomeUnknown`: the instance is replaced, and its successor brings
        the transaction to the end that Kafka had decided on.

        There is one at a time, on one aiokafka instance; if that has to be replaced, the
        transaction is aborted. A producer that was fenced, because another one took its
        `transactional_id` or the transaction lasted longer than `transaction_timeout_ms`, says so
        and stays away: only the next `transaction()` takes the id back, and after three in a row
        without a commit none does any more: the error then says so until a new producer is made.

        Raises:
            ConfigurationError: On entering: the producer has no `transactional_id`.
            IllegalOperation: On entering: another one is under way.
            KafkaUnavailable: Kafka is down, and `while_down="fail"`.
            KafkaDeadlineExceeded: It could not begin, or its records were not delivered, in time;
                nothing is applied.
            KafkaOutcomeUnknown: On leaving: it may have been committed.
            ProducerFenced: Another producer took the transactional id; nothing is applied.
            KafkaClosed: The producer was closed.
        """
        return Transaction(self._transactions)

    # --- life

    async def aclose(self, timeout: float | None = None) -> DeliveryReport:
        """Deliver what is waiting, as far as there is time, and close everything.

        Nothing is taken in any more. What is left when the time ends fails: with `KafkaClosed` if
        it was not handed over, with `KafkaOutcomeUnknown` if it was. An open transaction is
        aborted. Closing twice is fine. Cancelling leaves at once; the closing goes on by itself.

        Args:
            timeout: Seconds for the deliveries; None for the policy's deadline, or 5. Ending what
                does not end by itself takes at most three more.

        Returns:
            What was not delivered, with its keys and values, and how many were while closing. In a
            process forked after its first use there is nothing to close: the parent delivers.

        Raises:
            RuntimeError: It runs in another living event loop.
        """
        if timeout is None:
            timeout = self._policy.deadline or _CLOSE_TIMEOUT
        check_number("timeout", timeout)
        engine = self._engine
        if engine is None or engine.residence.closed or engine.residence.forked:
            self._closed = True
            return DeliveryReport()
        engine.residence.check(type(self).__name__)
        self._closed = True
        return await engine.aclose(timeout)

    async def __aenter__(self) -> Self:
        """Start, without waiting for Kafka; a closed producer opens again."""
        if self._closed:
            engine = self._engine
            if engine is not None and not engine.residence.closed:
                engine.residence.check(type(self).__name__)
                await engine.aclose(0.0)
            self._engine, self._closed = None, False
        if self._engine is None or self._engine.residence.loop is not get_running_loop():
            self._begin("start")
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
        if self._engine is None:
            return ProducerStats()
        return self._engine.stats()

    def liveness_failure(self) -> str | None:
        """Say why only a new process helps: a task of its own is gone, by a bug of ours.

        None while all is well, before the first use and after closing. Kafka being away never
        counts, nor a transactional id that somebody else took: this is for liveness
        (`HealthMonitor(liveness=[producer])`), not for readiness.
        """
        engine = self._engine
        if engine is None or self._closed or engine.residence.closed:
            return None
        return engine.liveness_failure()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._target.name}: {self.health.state.value}>"

    def _transactions(self) -> Transactions:
        engine = self._engine
        if engine is None or engine.residence.loop is not get_running_loop():
            engine = self._begin("transaction")
        return engine.transactions

    def _begin(self, operation: str) -> Engine:
        """Start in the running loop.

        Raises:
            KafkaClosed: It was closed.
            RuntimeError: It runs in another living loop, or in the parent of this process.
        """
        if self._closed:
            raise KafkaClosed(
                "the producer was closed: make a new ResilientKafkaProducer",
                dependency=self.health.name,
                operation=operation,
            )
        if self._engine is not None and not self._engine.residence.closed:
            self._engine.residence.check(type(self).__name__)
        self._engine = Engine(
            target=self._target,
            options=self._options,
            policy=self._policy,
            health=self.health,
            owns_health=self._owns_health,
            settings=self._settings,
            partitioner=self._partitioner,
            rng=self._rng,
        )
        return self._engine


def _of_kind(name: str, given: T | None, kind: type[T]) -> T | None:
    if given is not None and not isinstance(given, kind):
        raise ConfigurationError(
            f"{name}={given!r} is no {kind.__name__}: write {name}={kind.__name__}(...)"
        )
    return given
