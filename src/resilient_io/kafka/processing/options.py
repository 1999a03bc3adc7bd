"""Options of `run`, validated when they are created."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from resilient_io.errors import ConfigurationError
from resilient_io.health import Dependency
from resilient_io.retry import backoff_bound
from resilient_io.validation import (
    check_choice,
    check_count,
    check_name,
    check_number,
    check_seconds,
    check_type,
)

from .retry_topics import check_retry_topics

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from ..producer import ResilientKafkaProducer
    from ..record import Record
    from .retry_topics import RetryTopic, RetryTopics


Order = Literal["key", "partition", "none"]
"""Which records are handled in order: those of one key, those of one partition, or none."""

OnUnknown = Literal["retry", "dead_letter", "stop", "skip"]
"""What to do with a record whose handler raised `OutcomeUnknown`."""

Verdict: TypeAlias = Literal["dead_letter", "stop", "skip"]
"""What to do with a record that is given up."""

OnFailure: TypeAlias = "Verdict | Callable[[Failure], object]"
"""A verdict, or a function (sync or async) that returns one; None means "skip"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why handling a record has failed, as passed to the application's `on_failure`.

    Attributes:
        record: The record. If it could not be deserialized, `record.error` is the reason and
            `record.raw_value` the bytes.
        error: The last exception of the handler, or the exception of the deserializer.
        attempts: Handler calls that count, including those before it waited in retry topics; 0 if
            the record could not be deserialized.
        outcome_unknown: Number of all calls that raised `OutcomeUnknown`.
        seconds: Time from the first failure to the last, in seconds.
    """

    record: Record
    error: Exception
    attempts: int
    outcome_unknown: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerPolicy:
    """How often a failing handler is retried, and how long a call of it may take.

    Args:
        attempts: Maximum number of calls for one record, including the first.
        backoff: Upper bound of the first backoff, in seconds; it doubles with each retry. The
            backoff is chosen at random between half of the bound and the bound. It delays only
            records with the same key, or of the same partition.
        backoff_cap: Largest upper bound, in seconds.
        timeout: Seconds after which a call is cancelled and counts as failed; None sets no limit,
            but logs a warning before `max_poll_interval_ms`.

    Raises:
        ConfigurationError: A value is out of range.
    """

    attempts: int = 3
    backoff: float = 0.1
    backoff_cap: float = 10.0
    timeout: float | None = None

    def __post_init__(self) -> None:
        check_count("attempts", self.attempts)
        check_number("backoff", self.backoff)
        check_number("backoff_cap", self.backoff_cap)
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)
        if self.backoff > self.backoff_cap:
            raise ConfigurationError(
                f"backoff={self.backoff!r} is above backoff_cap={self.backoff_cap!r}: "
                f"use backoff_cap={self.backoff!r} or more"
            )

    def backoff_before(self, retry: int, rng: random.Random) -> float:
        """Return the seconds to wait before a retry (1 is the first)."""
        return half_jitter(backoff_bound(self.backoff, self.backoff_cap, retry), rng)


def half_jitter(bound: float, rng: random.Random) -> float:
    """Return a random number between half of the bound and the bound."""
    return bound * (0.5 + 0.5 * rng.random())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """How many records of `run` may be in memory, and how fast handling restarts.

    Args:
        records: Maximum number of records in memory, being handled or waiting. When it is reached,
            no more records are fetched until a quarter of them is handled; polling and heartbeats
            continue. A partition that fills half of it alone is paused until it has caught up, so
            that a slow partition leaves room for the others.
        bytes: Maximum size of their keys and values, as received. One fetch may exceed it.
        slow_start: Seconds over which the number of handlers grows from 1 to `concurrency` after a
            dependency in `requires` is available again; 0 starts all of them at once.

    Raises:
        ConfigurationError: A value is out of range.
    """

    records: int = 10_000
    bytes: int = 64 * 1024 * 1024
    slow_start: float = 5.0

    def __post_init__(self) -> None:
        check_count("records", self.records)
        check_count("bytes", self.bytes)
        check_number("slow_start", self.slow_start)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """Where to write records that could not be handled.

    A dead letter contains the key, value and headers of the record as received. It has a timestamp
    of its own, so that the retention of its topic applies, and these headers: `x-original-topic`,
    `x-original-partition`, `x-original-offset`, `x-original-timestamp`, `x-error-type`,
    `x-error-message` (at most 1,000 characters), `x-attempts`, `x-first-failure-ago` and
    `x-last-failure-ago` (seconds before it was written). `x-outcome-unknown` is the number of calls
    that may have been applied, `x-attempts-not-counted` the number of failures caused by a required
    dependency; both are left out if 0. The numbers include the calls after the waits in
    `retry_topics`. A dead letter of a dead letter keeps the first origin.

    Args:
        topic: Topic name.
        producer: Writes the dead letters, and the records for `retry_topics`. It must have no
            serializers, because it receives bytes.
            You have to close it. None creates an idempotent producer for the consumer's cluster
            when the first dead letter is written, which writes up to 1 MiB and is closed when `run`
            ends. Pass your own if the cluster or the topic needs other options.

    Raises:
        ConfigurationError: `topic` is not a string, or is empty.
        TypeError: `producer` has no `send_and_wait`.
    """

    topic: str
    producer: ResilientKafkaProducer | None = None

    def __post_init__(self) -> None:
        check_name("topic", self.topic, example="orders.dead")
        producer = self.producer
        if producer is not None and not callable(getattr(producer, "send_and_wait", None)):
            raise TypeError(
                f"producer must be a ResilientKafkaProducer, not {type(producer).__name__}: pass "
                f"one without serializers, or leave it out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The validated arguments of `run`; created by `plan_run`."""

    handler: Callable[[Any], Awaitable[object]]
    order: Order
    concurrency: int
    batch_size: int | None
    handler_policy: HandlerPolicy
    dead_letter: DeadLetter | None
    retry_topics: RetryTopics
    on_failure: OnFailure
    on_outcome_unknown: OnUnknown
    requires: tuple[Dependency, ...]
    limits: RunLimits


def _reads_no_topic(_topic: str) -> bool:
    return False


def plan_run(
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
    group: str = "",
    reads: Callable[[str], bool] = _reads_no_topic,
) -> RunPlan:
    """Return the arguments of `run`, each of them and their combination checked.

    `group` is that of the consumer, and `reads` returns whether it reads a topic.
    """
    _check_handler(handler, "records" if batch_size is not None else "record")
    check_choice("order", order, get_args(Order))
    check_count("concurrency", concurrency)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    if isinstance(dead_letter, str):
        dead_letter = DeadLetter(topic=dead_letter)
    if dead_letter is not None:
        check_type("dead_letter", dead_letter, DeadLetter, use='dead_letter="orders.dead"')
        if reads(dead_letter.topic):
            raise ConfigurationError(
                f"{dead_letter.topic!r} is both a topic of this consumer and the dead-letter "
                f"topic: its dead letters would be handled again and again; use a topic that "
                f"the consumer does not read, by name or pattern="
            )
    if handler_policy is not None:
        check_type("handler_policy", handler_policy, HandlerPolicy, use="HandlerPolicy(attempts=3)")
    if limits is not None:
        check_type("limits", limits, RunLimits, use="RunLimits(records=10_000)")
    if on_failure is None:
        on_failure = "stop" if dead_letter is None else "dead_letter"
    _check_verdicts(on_failure, on_outcome_unknown, has_topic=dead_letter is not None)
    limits = limits or RunLimits()
    if limits.records < concurrency:
        raise ConfigurationError(
            f"limits=RunLimits(records={limits.records}) is less than concurrency={concurrency}: "
            f"use RunLimits(records={concurrency * 10})"
        )
    checked_topics = check_retry_topics(
        retry_topics,
        group=group,
        reads=reads,
        dead_letter=None if dead_letter is None else dead_letter.topic,
    )
    return RunPlan(
        handler=checked_topics.handler_of_originals(handler, batches=batch_size is not None),
        order=order,
        concurrency=concurrency,
        batch_size=batch_size,
        handler_policy=handler_policy or HandlerPolicy(),
        dead_letter=dead_letter,
        retry_topics=checked_topics,
        on_failure=on_failure,
        on_outcome_unknown=on_outcome_unknown,
        requires=_check_requires(requires),
        limits=limits,
    )


def _check_verdicts(on_failure: object, on_outcome_unknown: object, *, has_topic: bool) -> None:
    if not callable(on_failure):
        check_choice("on_failure", on_failure, get_args(Verdict))
    check_choice("on_outcome_unknown", on_outcome_unknown, get_args(OnUnknown))
    for name, value in (("on_failure", on_failure), ("on_outcome_unknown", on_outcome_unknown)):
        if value == "dead_letter" and not has_topic:
            raise ConfigurationError(
                f'{name}="dead_letter" needs a topic: pass dead_letter="orders.dead" too'
            )


def _check_handler(handler: object, parameter: str) -> None:
    """Check that a handler is a coroutine function (or an object with one) of one argument."""
    wanted = f"use `async def handle({parameter}): ...` and run(handle)"
    function: Any = handler
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(type(function), "__call__", None)  # noqa: B004 - is it a coroutine function?
    if not inspect.iscoroutinefunction(function) and not inspect.iscoroutinefunction(call):
        raise TypeError(
            f"the handler must be a coroutine function, not {_kind_of(function)}: {wanted}"
        )
    try:
        inspect.signature(cast("Any", handler)).bind(None)
    except TypeError as error:
        raise TypeError(
            f"the handler cannot be called with one argument ({error}): {wanted}"
        ) from None


def _kind_of(handler: object) -> str:
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        return "a generator function"
    return "a plain function" if inspect.isroutine(handler) else type(handler).__name__


def _check_requires(requires: object) -> tuple[Dependency, ...]:
    hint = "use requires=[redis.health], the health of a client"
    if not isinstance(requires, (list, tuple)):
        raise TypeError(f"requires must be a list, not {type(requires).__name__}: {hint}")
    for each in requires:
        if not isinstance(each, Dependency):
            raise TypeError(f"requires contains an object of type {type(each).__name__}: {hint}")
    return tuple(requires)
