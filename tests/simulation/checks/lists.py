"""Rules about the elements of lists: none is delivered twice, and none is lost."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.simulation.history import Outcome

from .effects import PUSHES, UNDO
from .index import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.history import Execution, Operation

    from .index import Index

_TOKEN = re.compile(r"t\d+\.\d+")

_BEFORE = 3.0  # seconds before a cancellation in which nothing may go wrong
_AFTER = 2.0  # seconds that putting an element back may take, generously


def no_element_is_delivered_twice(index: Index) -> Iterator[Broken]:
    """An element that was pushed once is returned to at most one caller.

    After a failover, the new master may still have an element that was taken from the old one.
    """
    if index.data_lost:
        return
    for element, operations in index.delivered.items():
        command = index.by_command_token.get(element[1:].encode())
        pushed = 1 if command is None else max(1, len(command.applied))
        if len(operations) > pushed:
            yield Broken(
                f"{element} was returned to {len(operations)} callers",
                tuple(operation.number for operation in operations),
                operations[-1].ended_at,
            )


def no_element_is_lost(index: Index) -> Iterator[Broken]:
    """An element that was taken reached a caller, or was put back, or its call said so.

    A call that ends with an unknown outcome may have taken one. A cancelled pop that can be undone
    loses none unless something fails at that time, or the server forbids undoing it.
    """
    for element, pops in index.pops.items():
        command = index.by_command_token.get(element[1:].encode())
        put_back = 0 if command is None else len(command.put_back)
        missing = len(pops) - len(index.delivered.get(element, ())) - put_back
        if missing <= 0:
            continue
        takers = [_takers(index, pop) for pop in pops]
        suspects = [each for group in takers for each in group]
        pairs = [(pop, each) for pop, group in zip(pops, takers, strict=True) for each in group]
        if any(_may_lose(index, pop, each) for pop, each in pairs):
            continue
        numbers = tuple(dict.fromkeys(each.number for each in suspects))
        how = ", ".join(dict.fromkeys(_ending(each) for each in suspects)) or "no known call"
        yield Broken(
            f"{element} was taken by {pops[-1].words[0].decode()} and is lost ({how})",
            numbers,
            pops[-1].at,
        )


def _takers(index: Index, pop: Execution) -> list[Operation]:
    """Return the calls to which an execution of a pop may belong."""
    words = tuple(word.decode("utf-8", "replace") for word in pop.words)
    return [
        operation
        for operation in index.history.operations
        if operation.started_at
        and operation.started_at < pop.at
        and (operation.outcome is not Outcome.OK or operation.repeat == "any")
        and words in operation.commands
    ]


def _may_lose(index: Index, pop: Execution, operation: Operation) -> bool:
    """Return whether a call may have taken an element that reached no one."""
    if operation.outcome is Outcome.OK:
        return True  # the caller permitted to repeat the pop, which may take two elements
    if operation.outcome is not Outcome.CANCELLED:
        return operation.outcome in (Outcome.UNKNOWN, Outcome.OTHER, None)
    if pop.words[0].decode() not in UNDO:
        return True
    since = operation.cancelled if operation.cancelled is not None else operation.started
    until = max(pop.time, operation.ended or pop.time) + _AFTER
    return (
        index.disturbed(since - _BEFORE, until)
        or index.stalled(since - _BEFORE, until) > 0.5
        or _bound(index, operation.client)
        or index.bare(operation.client)
        or (index.forbidden("CLIENT|UNBLOCK", "CLIENT|ID") or pop.at) < pop.at
        or any(
            since - _BEFORE <= time <= until
            for _, time, _ in index.lifecycle.get(operation.client, ())
        )
    )


def _bound(index: Index, label: str) -> bool:
    """Return whether a client uses one connection for everything, where a pop is not undone."""
    if index.plan is None:
        return False
    return any(setup.label == label and setup.single for setup in index.plan.clients)


def _ending(operation: Operation) -> str:
    outcome = operation.outcome.value if operation.outcome is not None else "not ended"
    return f"call {operation.number}: {outcome}"


def an_acknowledged_element_is_in_a_list_or_was_taken(index: Index) -> Iterator[Broken]:
    """An element whose push was acknowledged, and that was not taken, is there at the end."""
    if index.data_lost or not index.history.ending.data:
        return
    present = _elements_at_end(index.history.ending.data)
    for command in index.by_command_token.values():
        operation = command.operation
        if command.name not in PUSHES or operation.outcome is not Outcome.OK:
            continue
        element = f"t{(command.token or b'').decode()}"
        pushed = len(command.applied) + len(command.put_back)
        taken = len(index.pops.get(element, ()))
        if pushed > taken and element not in present:
            yield Broken(
                f"{element} was pushed {pushed} times and taken {taken} times, and is gone",
                (operation.number,),
                operation.ended_at,
            )


def _elements_at_end(data: dict[str, dict[str, Any]]) -> dict[str, None]:
    return {
        element: None
        for keys in data.values()
        for value in keys.values()
        if isinstance(value, (list, dict))
        for text in value
        if isinstance(text, str)
        for element in _TOKEN.findall(text)
    }
