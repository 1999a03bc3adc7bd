"""Rules about time: deadlines, cancellations, closing, and calls that never end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.history import Outcome

from .index import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.history import Operation

    from .index import Index

_DEADLINE_TOLERANCE = 0.3
_CANCELLATION_TOLERANCE = 0.05
_CLOSING_TOLERANCE = 0.1

_LOCKS = frozenset({"acquire", "extend", "release", "release again"})
_SLEEPS = frozenset({"manual", "watch", "peek", "late", *_LOCKS})
"""Kinds that may sleep between their commands."""


def a_call_ends_by_its_deadline(index: Index) -> Iterator[Broken]:
    """A call with a deadline has ended soon after it, apart from stalls of our own loop."""
    for operation in index.history.operations:
        if operation.deadline is None or operation.ended is None:
            continue
        if not index.commands[operation.number] and operation.kind not in _LOCKS:
            continue  # closing and waiting for health have no deadline
        late = operation.ended - operation.deadline
        if late <= _DEADLINE_TOLERANCE:
            continue
        if operation.kind in _SLEEPS:
            late -= float(index.argument(operation.number, "think") or 0.0)
        if late > _DEADLINE_TOLERANCE + index.stalled(operation.deadline, operation.ended):
            yield Broken(
                f"{_name(operation)} ended {late:.3f} s after its deadline",
                (operation.number,),
                operation.ended_at,
            )


def a_blocking_call_reaches_the_server_by_its_deadline(index: Index) -> Iterator[Broken]:
    """Reaching the server takes a blocking call no longer than the deadline, in all attempts."""
    for operation in index.by_outcome.get(Outcome.NOT_APPLIED, ()):
        limit = operation.facts.get("reach_deadline")
        if (
            limit is None
            or operation.ended is None
            or operation.facts.get("progress") != "not sent"
        ):
            continue
        for command in index.commands[operation.number][:1]:
            if any(index.during_call(command)):
                limit += float(operation.facts.get("block", 0.0))
        took = operation.ended - operation.started
        stalled = index.stalled(operation.started + limit, operation.ended)
        if took > limit + _DEADLINE_TOLERANCE + stalled:
            yield Broken(
                f"{_name(operation)} was not sent within {limit:g} s, but ended after {took:.3f} s",
                (operation.number,),
                operation.ended_at,
            )


def a_cancellation_ends_its_call_at_once(index: Index) -> Iterator[Broken]:
    """A cancelled call ends with CancelledError immediately.

    The block of a lock that is held releases it first, which the policy's deadline limits.
    """
    for operation in index.history.operations:
        if operation.cancelled is None or operation.ended is None:
            continue
        took = operation.ended - operation.cancelled
        if "entered" in operation.facts:
            took -= operation.facts["release"]  # the block releases its lock first
        if took > _CANCELLATION_TOLERANCE + index.stalled(operation.cancelled, operation.ended):
            yield Broken(
                f"{_name(operation)} ended {took:.3f} s after it was cancelled",
                (operation.number,),
                operation.ended_at,
            )


def a_cancellation_is_not_swallowed(index: Index) -> Iterator[Broken]:
    """A call that was cancelled while it ran raises CancelledError."""
    for operation in index.history.operations:
        if (
            operation.facts.get("cancel_delivered")
            and operation.outcome is not None
            and operation.outcome is not Outcome.CANCELLED
        ):
            yield Broken(
                f"{_name(operation)} was cancelled, but ended with: {operation.outcome.value}",
                (operation.number,),
                operation.ended_at,
            )


def only_a_cancelled_call_ends_as_cancelled(index: Index) -> Iterator[Broken]:
    """A call does not raise CancelledError unless the workload cancelled it."""
    for operation in index.history.operations:
        if operation.outcome is Outcome.CANCELLED and operation.cancelled_at is None:
            if operation.number in index.history.ending.hanging:
                continue  # the run ended it
            yield Broken(
                f"{_name(operation)} raised CancelledError without a cancellation",
                (operation.number,),
                operation.ended_at,
            )


def every_call_ends(index: Index) -> Iterator[Broken]:
    """No call waits forever."""
    for number in index.history.ending.hanging:
        operation = index.operations.get(number)
        if operation is None or operation.started_at:
            name = "a call" if operation is None else _name(operation)
            yield Broken(f"{name} did not end", (number,))


def calls_end_when_their_client_has_closed(index: Index) -> Iterator[Broken]:
    """Calls that wait, or back off before a retry, end when `aclose()` returns."""
    for label, changes in index.lifecycle.items():
        for at, time, kind in changes:
            if kind != "closed":
                continue
            if any(
                at < each[0]
                and each[1] <= time + _CLOSING_TOLERANCE
                and each[2] in ("opening", "opened")  # opening may have begun while it closed
                for each in changes
            ):
                continue  # opened again immediately
            for operation in index.by_client.get(label, ()):
                if operation.started_at > at:
                    break
                if not operation.started_at or operation.kind in _SLEEPS:
                    continue
                if not index.commands[operation.number]:
                    continue
                ended = operation.ended
                limit = time + _CLOSING_TOLERANCE
                if ended is not None and ended <= limit:
                    continue
                if ended is None or ended > limit + index.stalled(time, ended):
                    late = "did not end" if ended is None else f"ended {ended - time:.3f} s later"
                    yield Broken(
                        f"{_name(operation)} was running when its client closed, and {late}",
                        (operation.number,),
                        operation.ended_at,
                    )


def _name(operation: Operation) -> str:
    words = operation.commands[0] if operation.commands else ()
    shown = " ".join(word[:40] for word in words)
    return f"call {operation.number} ({operation.kind}{': ' if shown else ''}{shown})"
