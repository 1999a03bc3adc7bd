"""Rules about the retry budget: repetitions are paid, and nothing else changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.history import ErrorReply, Outcome

from .effects import BLOCKING
from .index import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.history import Event, Operation

    from .index import Command, Index

_EXCLUSIVE = BLOCKING | {"WATCH"}
_ROUNDING = 1e-6
_REFUSALS = ("OOM ", "MISCONF ", "NOREPLICAS ")
"""Refusals after which a call is sent again on the same connection, after its backoff."""


def a_payment_is_taken_from_the_budget(index: Index) -> Iterator[Broken]:
    """A repetition costs its price if the budget has as much, and is not granted otherwise."""
    for event in index.events.get("paid", ()):
        facts = event.facts
        if facts["cost"] > facts["before"] + _ROUNDING:
            yield _broken(event, "was granted more than there was")
        elif abs(facts["before"] - facts["cost"] - facts["after"]) > _ROUNDING:
            yield _broken(event, "did not pay")
    for event in index.events.get("not paid", ()):
        if event.facts["cost"] < event.facts["before"] - _ROUNDING:
            yield _broken(event, "was not granted what there was")


def a_refund_returns_what_the_call_had_paid(index: Index) -> Iterator[Broken]:
    """A call gets back no more than it paid, and the budget never exceeds its size."""
    paid = _by_call(index, "paid")
    returned: dict[int | None, float] = {}
    for event in index.events.get("refunded", ()):
        facts = event.facts
        call, cost = facts["call"], facts["cost"]
        returned[call] = returned.get(call, 0.0) + cost
        if returned[call] > paid.get(call, 0.0) + _ROUNDING:
            yield _broken(event, f"got back {returned[call]:g} of {paid.get(call, 0.0):g}")
        if abs(min(facts["before"] + cost, facts["size"]) - facts["after"]) > _ROUNDING:
            yield _broken(event, "was refunded another amount")


def the_budget_earns_one_token_for_each_reply(index: Index) -> Iterator[Broken]:
    """Between its uses, the budget grows by no more than what the server has executed."""
    if any(each.reply.text.startswith("EXECABORT") for each in index.errors):
        return  # what was queued was answered, too, and is not in the log
    executions = [execution.at for execution in index.history.executions]
    changes = sorted(
        (
            event
            for kind in ("paid", "not paid", "refunded")
            for event in index.events.get(kind, ())
        ),
        key=lambda event: event.at,
    )
    earned: dict[int, float] = {}
    left: dict[int, float] = {}
    position = 0
    for event in changes:
        facts = event.facts
        budget = facts["budget"]
        while position < len(executions) and executions[position] < event.at:
            position += 1
        if budget in left:
            earned[budget] = earned.get(budget, 0.0) + facts["before"] - left[budget]
            most = position + len(index.transactions)  # MULTI has a reply, but is not executed
            if earned[budget] > most + _ROUNDING:
                yield Broken(
                    f"budget {budget} earned {earned[budget]:g} tokens with at most {most} replies",
                    (),
                    event.at,
                )
                return
        left[budget] = facts["after"]


def a_call_that_is_cancelled_in_its_backoff_is_refunded(index: Index) -> Iterator[Broken]:
    """A repetition that was paid and never sent is not paid in the end.

    Only refusals are examined: after another failure, the call may also wait for a connection. So
    it may while an earlier call opens a connection of its own.
    """
    paid, refunded = _by_call(index, "paid"), _by_call(index, "refunded")
    for number, amount in paid.items():
        operation = index.operations.get(number) if number is not None else None
        if (
            operation is None
            or operation.outcome is not Outcome.CANCELLED
            or len(index.commands[operation.number]) != 1
        ):
            continue
        command = index.commands[operation.number][0]
        if not _only_refused(command):
            continue
        ended = operation.ended if operation.ended is not None else operation.started
        faults = index.disturbances_between(operation.started - 3.0, ended)
        if any(fault.kind != "refuse writes" for fault in faults):
            continue
        if any(_needs_own_connection(other, operation) for other in index.history.operations):
            continue
        sent = len(index.sent.get(command.token or b"", ()))
        price = amount / sum(event.facts["call"] == number for event in index.events["paid"])
        if amount - refunded.get(number, 0.0) > (sent - 1) * price + _ROUNDING:
            yield Broken(
                f"{command} was sent {sent} times, and its call was cancelled after it had paid "
                f"{amount:g} tokens, of which it got back {refunded.get(number, 0.0):g}",
                (operation.number,),
                operation.ended_at,
            )


def _needs_own_connection(other: Operation, operation: Operation) -> bool:
    """Return whether another call of the client opened a connection of its own meanwhile."""
    meanwhile = other.started_at < (operation.ended_at or 0) and (
        other.ended_at is None or other.ended_at > operation.started_at
    )
    names = {words[0] for words in other.commands}
    return other.client == operation.client and meanwhile and not names.isdisjoint(_EXCLUSIVE)


def _only_refused(command: Command) -> bool:
    """Return whether the server answered each copy of a command with a refusal, at least one."""
    return bool(command.executions) and all(
        isinstance(each.reply, ErrorReply) and each.reply.text.startswith(_REFUSALS)
        for each in command.executions
    )


def _by_call(index: Index, kind: str) -> dict[int | None, float]:
    """Return the sum of all payments or refunds of each call."""
    total: dict[int | None, float] = {}
    for event in index.events.get(kind, ()):
        call = event.facts["call"]
        total[call] = total.get(call, 0.0) + event.facts["cost"]
    return total


def _broken(event: Event, how: str) -> Broken:
    facts = event.facts
    call = facts["call"]
    return Broken(
        f"call {call} {how}: {event.kind} {facts['cost']:g}, the budget of {facts['size']:g} "
        f"changed from {facts['before']:g} to {facts['after']:g}",
        () if call is None else (call,),
        event.at,
    )
