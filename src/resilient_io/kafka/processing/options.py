"""What can be chosen for `run`, checked when it is made."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count, check_name, check_number, check_seconds

from .dead_letter import check_producer
from .dependencies import check_requires
from .retries import Verdict

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from resilient_io.health.dependency import Availability

    from ..producer import ResilientKafkaProducer
    from .retries import OnFailure


Order = Literal["key", "partition", "none"]
"""Which records wait for each other: those of one key, of one partition, or none."""

OnUnknown = Literal["retry", "dead_letter", "stop", "skip"]
"""What becomes of a record whose handler raised `OutcomeUnknown`."""

_MAX_DOUBLINGS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerPolicy:
    """How often a failing handler is called again, and how long a call of it may take.

    Args:
        attempts: Calls of the handler for one record, the first included.
        backoff: Upper bound of the first wait, in seconds; it doubles with each retry. The wait is
            drawn evenly between half of the bound and the bound. Only the record's own line (its
            key, or its partition) waits meanwhile.
        backoff_cap: Greatest bound of a wait, in seconds.
        timeout: Seconds after which a call is cancelled and counts as failed; None lets it take
            as long as it needs, with one warning before `max_poll_interval_ms`.

    Raises:
        ConfigurationError: A value is out of range.
    """

    attempts: int = 3
    backoff: float = 0.1
    backoff_cap: float = 10.0
    timeout: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_count("attempts", self.attempts)
        check_number("backoff", self.backoff)
        check_number("backoff_cap", self.backoff_cap)
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)
        if self.backoff > self.backoff_cap:
            raise ConfigurationError(
                f"backoff={self.backoff!r} is above backoff_cap={self.backoff_cap!r}: "
                f"write backoff_cap={self.backoff!r} or more"
            )

    def wait_before(self, retry: int, rng: random.Random) -> float:
        """Return the seconds to wait before the `retry`-th retry (1 is the first)."""
        bound = min(self.backoff * 2.0 ** min(retry - 1, _MAX_DOUBLINGS), self.backoff_cap)
        return bound * (0.5 + 0.5 * rng.random())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """How much of `run` may be under way, and how long its ends may take.

    Args:
        records: Records in memory, being handled or waiting for it. When reached, no more are
            fetched until a quarter of them is handled; polling and heartbeats go on. A partition
            that fills half of it alone is not fetched from until it has caught up, so that a slow
            one leaves the others room.
        bytes: Bytes of their keys and values, as they came. One fetch may go past it.
        drain_timeout: Seconds that handlers get to end by themselves when their partition is
            revoked or `run` is stopped; then they are cancelled. At a rebalance they get no more
            than the group waits for: 80 % of `rebalance_timeout_ms` (by default
            `session_timeout_ms`, 10 s), less the second that a cancelled handler has for its
            clean-up.
        slow_start: Seconds over which the number of handlers grows from 1 to `concurrency` after
            a dependency of `requires` came back; 0 starts them all at once.

    Raises:
        ConfigurationError: A value is out of range.
    """

    records: int = 10_000
    bytes: int = 64 * 1024 * 1024
    drain_timeout: float = 5.0
    slow_start: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_count("records", self.records)
        check_count("bytes", self.bytes)
        check_number("drain_timeout", self.drain_timeout)
        check_number("slow_start", self.slow_start)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """Where records go that could not be handled.

    The dead letter has the key, value and headers of the record as they came, its own timestamp
    (so that it is kept for as long as its topic says), and more headers: `x-original-topic`,
    `x-original-partition`, `x-original-offset`, `x-original-timestamp`, `x-error-type`,
    `x-error-message` (up to 1,000 characters), `x-attempts`, `x-first-failure-ago` and
    `x-last-failure-ago` (seconds before it was written); `x-outcome-unknown` (how many calls may
    have been applied) and `x-attempts-excused` (how many failed for a required dependency) if
    there were any. A dead letter of a dead letter keeps the first origin.

    Args:
        topic: Topic to write to.
        producer: Writes them; without serializers, for the bytes are passed on as they came. It
            stays yours to close. None makes one to the consumer's own cluster when the first
            dead letter is written, and closes it when `run` ends: an idempotent one, which writes
            up to 1 MiB. A cluster or a topic that needs another needs one of yours.

    Raises:
        ConfigurationError: `topic` is no string, or empty.
    """

    topic: str
    producer: ResilientKafkaProducer | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_name("topic", self.topic)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of the choices.

    Raises:
        ConfigurationError: It is none of them; the message names the closest.
    """
    if value in choices:
        return
    close = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    wanted = " or ".join(f'{name}="{choice}"' for choice in close or choices)
    raise ConfigurationError(f"{name}={value!r} is unknown: write {wanted}")


def check_order(order: object) -> None:
    """Refuse an unknown order.

    Raises:
        ConfigurationError: It is no `Order`.
    """
    check_choice("order", order, get_args(Order))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The checked arguments of `run`; made by `plan_run`."""

    handler: Callable[[Any], Awaitable[object]]
    order: Order
    concurrency: int
    batch_size: int | None
    policy: HandlerPolicy
    dead_letter: DeadLetter | None
    on_failure: OnFailure
    on_outcome_unknown: OnUnknown
    requires: tuple[Availability, ...]
    limits: RunLimits


def plan_run(
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
) -> Plan:
    """Check the arguments of `run`, one by one and together.

    Raises:
        ConfigurationError: One of them cannot work; the message says what to write instead.
    """
    _check_handler(handler, "records" if batch_size is not None else "record")
    check_order(order)
    check_count("concurrency", concurrency)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    if isinstance(dead_letter, str):
        dead_letter = DeadLetter(topic=dead_letter)
    _check_kind("dead_letter", dead_letter, DeadLetter, 'dead_letter="orders.dead"')
    if dead_letter is not None:
        check_producer(dead_letter.producer)
    _check_kind("policy", policy, HandlerPolicy, "policy=HandlerPolicy(attempts=3)")
    _check_kind("limits", limits, RunLimits, "limits=RunLimits(records=10_000)")
    if on_failure is None:
        on_failure = "stop" if dead_letter is None else "dead_letter"
    if not callable(on_failure):
        check_choice("on_failure", on_failure, get_args(Verdict))
    check_choice("on_outcome_unknown", on_outcome_unknown, get_args(OnUnknown))
    if dead_letter is None:
        for name, value in (("on_failure", on_failure), ("on_outcome_unknown", on_outcome_unknown)):
            if value == "dead_letter":
                raise ConfigurationError(
                    f'{name}="dead_letter" needs a topic: write dead_letter="orders.dead" too'
                )
    limits = limits or RunLimits()
    if limits.records < concurrency:
        raise ConfigurationError(
            f"limits=RunLimits(records={limits.records}) leaves less than concurrency="
            f"{concurrency} to do: write RunLimits(records={concurrency * 10})"
        )
    return Plan(
        handler=handler,
        order=order,
        concurrency=concurrency,
        batch_size=batch_size,
        policy=policy or HandlerPolicy(),
        dead_letter=dead_letter,
        on_failure=on_failure,
        on_outcome_unknown=on_outcome_unknown,
        requires=check_requires(requires),
        limits=limits,
    )


def _check_handler(handler: object, takes: str) -> None:
    wanted = f"write `async def handle({takes}): ...` and run(handle)"
    if not callable(handler):
        raise ConfigurationError(f"the handler {handler!r} is no function: {wanted}")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise ConfigurationError(f"the handler {handler!r} yields, so it does nothing: {wanted}")


def _check_kind(name: str, value: object, kind: type, example: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"{name}={value!r} must be a {kind.__name__}: write {example}")
