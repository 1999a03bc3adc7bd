"""What was asked of `run`, checked as a whole."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count

from .dead_letter import check_producer
from .failures import Verdict
from .gatekeeping import check_requires
from .settings import (
    DeadLetter,
    HandlerPolicy,
    OnUnknown,
    Order,
    RunLimits,
    check_choice,
    check_order,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from resilient_io.health._availability import Availability

    from .failures import OnFailure

__all__ = ["Plan", "plan_run"]


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
