"""Rules about locks: "acquire" and "release" operations, with the name and token as facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.history import Outcome

from .index import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.history import Execution, Operation

    from .index import Index

_MARGIN = 0.05  # seconds before its timeout during which a lock may already be gone


def two_callers_never_hold_one_lock(index: Index) -> Iterator[Broken]:
    """No one takes a lock between an acquisition that returned and its release.

    Except after its timeout by the server's clock, or after the server lost its data.
    """
    if index.data_lost:
        return
    takings = _takings(index)
    releases = _releases(index)
    for holder in _acquired(index):
        token = holder.facts["token"].encode()
        name = holder.facts["lock"].encode()
        mine = [each for each in takings.get(name, ()) if each.words[2] == token]
        if not mine or holder.ended_at is None:
            continue
        release = releases.get(holder.facts["token"])
        until = _extended(index, holder, mine[0])
        for other in takings[name]:
            if (
                other.words[2] != token
                and other.at > holder.ended_at
                and (release is None or other.at < release.started_at)
                and other.time < until
            ):
                yield Broken(
                    f"{name.decode()} was taken with another token while call {holder.number} "
                    f"held it",
                    (holder.number,),
                    other.at,
                )
                break


def an_acquired_lock_was_taken_on_the_server(index: Index) -> Iterator[Broken]:
    """An acquisition that returned True set the key of the lock to its own token."""
    takings = _takings(index)
    for holder in _acquired(index):
        token = holder.facts["token"].encode()
        taken = takings.get(holder.facts["lock"].encode(), ())
        if not any(each.words[2] == token for each in taken):
            yield Broken(
                f"{holder.facts['lock']} was acquired, but the server did not set its token",
                (holder.number,),
                holder.ended_at,
            )


def a_lock_that_is_still_held_can_be_released(index: Index) -> Iterator[Broken]:
    """A release is not refused as "not owned" before the lock's timeout."""
    if index.data_lost:
        return
    takings = _takings(index)
    holders = {each.facts["token"]: each for each in _acquired(index)}
    for operation in _releases(index).values():
        holder = holders.get(operation.facts["token"])
        if (
            holder is None
            or operation.repeat == "any"
            or operation.outcome is not Outcome.REFUSED
            or "no longer owned" not in operation.error
            or (operation.ended_at or 0) > index.unfenced
        ):
            continue
        token = operation.facts["token"].encode()
        taken = takings.get(operation.facts["lock"].encode(), ())
        mine = [each for each in taken if each.words[2] == token]
        timeout = holder.facts.get("timeout")
        ended = operation.ended if operation.ended is not None else operation.started
        if mine and (timeout is None or ended < mine[0].time + timeout - _MARGIN):
            yield Broken(
                f"{operation.facts['lock']} was held, but its release raised: {operation.error}",
                (holder.number, operation.number),
                operation.ended_at,
            )


def a_released_lock_is_no_longer_held(index: Index) -> Iterator[Broken]:
    """A release that returned removed the key of the lock, unless it had expired."""
    if index.data_lost:
        return
    takings = _takings(index)
    holders = {each.facts["token"]: each for each in _acquired(index)}
    for operation in _releases(index).values():
        holder = holders.get(operation.facts["token"])
        if holder is None or operation.outcome is not Outcome.OK or operation.ended is None:
            continue
        name, token = operation.facts["lock"].encode(), operation.facts["token"].encode()
        mine = [each for each in takings.get(name, ()) if each.words[2] == token]
        timeout = holder.facts.get("timeout")
        if not mine or (timeout is not None and operation.ended > mine[0].time + timeout - _MARGIN):
            continue
        if not any(
            execution.applied
            and execution.reply == 1
            and name in execution.words
            and token in execution.words
            for execution in index.executions_between(
                operation.started_at, operation.ended_at or operation.started_at
            )
        ):
            yield Broken(
                f"{operation.facts['lock']} was released, but the server still held it",
                (holder.number, operation.number),
                operation.ended_at,
            )


def an_acquisition_that_failed_has_not_taken_the_lock(index: Index) -> Iterator[Broken]:
    """When `acquire` returns False, the server has not set its token, or no longer has it."""
    tokens = {operation.facts["token"].encode() for operation in _acquired(index)}
    acquisitions = [each for each in index.history.operations if each.kind == "acquire"]
    last = index.history.executions[-1].at + 1 if index.history.executions else 0
    for name, taken in _takings(index).items():
        for execution in taken:
            token = execution.words[2]
            if token in tokens:
                continue
            written = next((w.at for w in index.history.written if token in w.data), execution.at)
            callers = [
                each
                for each in acquisitions
                if each.facts["lock"].encode() == name
                and each.started_at < written
                and (each.ended_at is None or written < each.ended_at)
            ]
            if not callers or any(
                each.outcome is not Outcome.OK
                or each.reply
                or (each.ended or 0.0) > execution.time + (each.facts.get("timeout") or 1e9)
                for each in callers
            ):
                continue  # or it had expired until the reply
            if any(
                token in each.words and each.words[0] != b"SET"
                for each in index.executions_between(execution.at, last)
            ):
                continue  # released
            yield Broken(
                f"{name.decode()} was taken, but no caller heard that it holds it",
                tuple(each.number for each in callers),
                execution.at,
            )


def _acquired(index: Index) -> list[Operation]:
    return [
        operation
        for operation in index.history.operations
        if operation.kind == "acquire" and "token" in operation.facts
    ]


def _releases(index: Index) -> dict[str, Operation]:
    return {
        operation.facts["token"]: operation
        for operation in index.history.operations
        if operation.kind == "release" and "token" in operation.facts
    }


def _takings(index: Index) -> dict[bytes, list[Execution]]:
    """Return the executions that took a lock, by its key."""
    names = {
        operation.facts["lock"].encode(): None
        for operation in index.history.operations
        if operation.kind == "acquire"
    }
    found: dict[bytes, list[Execution]] = {}
    if not names:
        return found
    for execution in index.history.executions:
        words = execution.words
        if (
            words[0] == b"SET"
            and words[1] in names
            and execution.applied
            and execution.reply is not None
        ):
            found.setdefault(words[1], []).append(execution)
    return found


def _extended(index: Index, holder: Operation, taken: Execution) -> float:
    """Return the time at which a lock expires, unless it is extended."""
    timeout = holder.facts.get("timeout")
    return float("inf") if timeout is None else taken.time + timeout - _MARGIN
