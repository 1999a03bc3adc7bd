"""Rules about order: fencing of finished calls, bursts and pipelines."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.simulation.history import Outcome

from .effects import BLOCKING
from .index import Broken, once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.history import Execution, Operation

    from .index import Command, Index

_ORDERED = frozenset({
    "set", "push", "append", "set conditional", "hash set", "add", "set binary", "traffic",
    "increment", "echo",
})  # fmt: skip
"""Kinds of calls whose single command is sent when the call begins."""

_NOTED = 0.3  # seconds, in which our own loop may be blocked

_OVERTAKEN = (Outcome.CANCELLED, Outcome.UNKNOWN)


def no_finished_call_is_applied_after_a_later_write(index: Index) -> Iterator[Broken]:
    """Nothing of a finished call is applied after a write that its client began later.

    Exempt are unknown and cancelled calls where the server forbids fencing, which is documented.
    So are calls that ended on their own while a large value kept the connection busy.
    """
    for late, newer, at in _overtaken(index):
        if not _on_own_connection(index, late) and not _on_own_connection(index, newer):
            yield _describe(late, newer, at)


def no_abandoned_transaction_is_applied_after_a_later_write(index: Index) -> Iterator[Broken]:
    """An EXEC after WATCH, on a connection of its own, is fenced like any other call."""
    for late, newer, at in _overtaken(index):
        if _on_own_connection(index, late):
            yield _describe(late, newer, at)


def no_transaction_overtakes_a_finished_call(index: Index) -> Iterator[Broken]:
    """A call on a connection of its own is not applied before one whose connection was lost."""
    for late, newer, at in _overtaken(index):
        if not _on_own_connection(index, late) and _on_own_connection(index, newer):
            operation = late.operation
            if operation.outcome is Outcome.UNKNOWN and "deadline" not in operation.error:
                yield _describe(late, newer, at)


def _on_own_connection(index: Index, command: Command) -> bool:
    """Return whether a command was sent after WATCH, or with one that blocks."""
    operation = command.operation
    return operation.kind == "watch" or (
        operation.kind == "pipeline"
        and any(each.name in BLOCKING for each in index.commands[operation.number])
    )


def _describe(late: Command, newer: Command, at: int) -> Broken:
    outcome = late.operation.outcome
    ended = "not ended" if outcome is None else outcome.value
    return Broken(
        f"{late} of a call that had ended ({ended}) was applied after {newer}, which began later",
        (late.operation.number, newer.operation.number),
        at,
    )


@once
def _overtaken(index: Index) -> list[tuple[Command, Command, int]]:
    """Return what was applied after its call, and after a write that began after that."""
    return list(_find_overtaken(index))


def _find_overtaken(index: Index) -> Iterator[tuple[Command, Command, int]]:
    newest: dict[tuple[str, str, bool], Command] = {}
    for execution, owner in zip(index.history.executions, index.owners, strict=True):
        if owner is None or not execution.applied:
            continue
        command = index.by_command_token.get(owner)
        if command is None or not _counts(command, execution):
            continue
        operation = command.operation
        own = _on_own_connection(index, command)
        ended = operation.ended_at
        if ended is not None and execution.at > ended:
            for side in (False, True):
                later = newest.get((operation.client, execution.server, side))
                if later is not None and later.operation.started_at > ended:
                    if not _exempt(index, command, execution):
                        yield command, later, execution.at
                    break
        key = (operation.client, execution.server, own)
        if key not in newest or newest[key].operation.started_at < operation.started_at:
            newest[key] = command


def _counts(command: Command, execution: Execution) -> bool:
    return (
        command.writes
        and command.operation.kind != "manual"  # its connection belongs to another client
        and command.name not in BLOCKING
        and execution not in command.put_back
    )


def _exempt(index: Index, command: Command, execution: Execution) -> bool:
    operation = command.operation
    if index.bare(operation.client):
        return True
    if index.unfenced < execution.at and (
        operation.outcome in _OVERTAKEN or operation.repeat in ("conditional", "any")
    ):
        return True
    own_end = operation.outcome is Outcome.CANCELLED or "deadline" in operation.error
    return own_end and any(
        each.kind in ("set large", "get large") for each in index.by_client[operation.client]
    )


def a_client_kills_only_connections_of_its_own(index: Index) -> Iterator[Broken]:
    """CLIENT KILL ID ends a connection that its client has named earlier, and no one else's.

    The server's IDs start again when it restarts, so an ID alone does not identify a connection.
    A client that was opened again ends the connections of its earlier life, which have other names.
    A connection that the server does not permit to have a name is not examined.
    """
    kills = any(b"KILL" in execution.words for execution in index.named(b"CLIENT"))
    if "opened" in index.events or not kills:
        return
    starts = [event.at for event in index.events.get("started", ())]
    names: dict[tuple[str, int, int], str] = {}
    for execution in index.history.executions:
        generation = bisect_left(starts, execution.at) if starts else 0
        names[execution.server, generation, execution.connection] = execution.client_name
        words = execution.words
        if (
            words[0] != b"CLIENT"
            or words[:3] != (b"CLIENT", b"KILL", b"ID")
            or not execution.applied
            or not execution.reply
            or not words[3].isdigit()
        ):
            continue
        victim = names.get((execution.server, generation, int(words[3])))
        itself = int(words[3]) == execution.connection
        other = execution.client_name and _family(victim or "") != _family(execution.client_name)
        if victim is not None and (itself or other):
            yield Broken(
                f"{execution.client_name or 'a connection without a name'} killed connection "
                f"{words[3].decode()}, which is {victim or 'without a name'}",
                (),
                execution.at,
            )


def _family(name: str) -> str:
    """Return the part of a connection's name that is common to all of one client."""
    return name.rpartition("-")[0].rpartition(":")[2]  # what precedes it may be set by a caller


def calls_of_one_tick_keep_their_order_for_each_key(index: Index) -> Iterator[Broken]:
    """Calls of a burst with the same key are executed in the order in which they were made.

    A call that was written twice was repeated after a failure, which may reorder it. So may a
    server that refuses writes as a replica: the client sends the rest over another connection.
    """
    bursts: dict[tuple[int, str, str], list[Command]] = {}
    for number, commands in index.commands.items():
        operation = index.operations[number]
        if operation.burst is None:
            continue
        if len(commands) != 1 or len(commands[0].words) < 2:
            continue
        command = commands[0]
        if command.token is None or not command.executions or index.bare(operation.client):
            continue
        if len(index.sent.get(command.token, ())) > 1 or index.unfenced < command.executions[0].at:
            continue
        key = (operation.burst, operation.client, command.words[1])
        bursts.setdefault(key, []).append(command)
    for members in bursts.values():
        members.sort(key=lambda each: each.operation.number)
        for first, second in pairwise(members):
            early, late = second.executions[0], first.executions[0]
            if early.at < late.at and (early.connection == late.connection or not _moved(index)):
                yield Broken(
                    f"{second} was executed before {first}, which was called first",
                    (first.operation.number, second.operation.number),
                    second.executions[0].at,
                )


def calls_keep_their_order_for_each_key(index: Index) -> Iterator[Broken]:
    """Calls of one client with the same key are executed in the order in which they were made.

    Calls that were written twice are exempt, and so are clients that use several connections at a
    time: because of large values, or after a server refused writes as a replica.
    """
    if _moved(index) or index.unfenced < float("inf"):
        return
    for label, operations in index.by_client.items():
        if index.bare(label):
            continue
        if any(operation.kind in ("set large", "get large") for operation in operations):
            continue
        latest: dict[str, Command] = {}
        for operation in operations:
            commands = index.commands[operation.number]
            if operation.kind not in _ORDERED or len(commands) != 1:
                continue
            command = commands[0]
            if len(command.applied) != 1 or len(index.sent.get(command.token or b"", ())) != 1:
                continue
            key = command.words[1]
            earlier = latest.get(key)
            if earlier is None or earlier.applied[0].at < command.applied[0].at:
                latest[key] = command
            elif earlier.applied[0].server == command.applied[0].server and not _of_one_burst(
                earlier, command
            ):
                yield Broken(
                    f"{earlier} was executed after {command}, which was called later",
                    (earlier.operation.number, operation.number),
                    earlier.applied[0].at,
                )


@once
def _moved(index: Index) -> bool:
    """Return whether a client left a server that refused writes, while calls were in flight."""
    texts = [execution.reply.text for execution in index.errors]
    return any(text.startswith("READONLY") or "instance state changed" in text for text in texts)


def calls_are_written_in_the_order_in_which_they_were_made(index: Index) -> Iterator[Broken]:
    """A client writes no call before an earlier one, whatever connections they use.

    Calls that were written twice, and clients with large values, are exempt.
    """
    for label, operations in index.by_client.items():
        if index.bare(label):
            continue
        if any(operation.kind in ("set large", "get large") for operation in operations):
            continue
        latest: Command | None = None
        written = 0
        for operation in operations:
            commands = index.commands[operation.number]
            if operation.kind not in _ORDERED or len(commands) != 1:
                continue
            sent = index.sent.get(commands[0].token or b"", ())
            if len(sent) != 1:
                continue
            if sent[0].at >= written:
                latest, written = commands[0], sent[0].at
            elif latest is not None and not _of_one_burst(latest, commands[0]):
                yield Broken(
                    f"{latest} was written before {commands[0]}, which was called later",
                    (latest.operation.number, operation.number),
                    sent[0].at,
                )


def writes_use_one_connection_while_it_is_open(index: Index) -> Iterator[Broken]:
    """A client sends no write over another connection while that of the write before is open.

    Otherwise their order would depend on the network. Exempt are calls that were written twice, and
    clients with large values or whose server refused writes as a replica.
    """
    if _moved(index):
        return
    lost = {event.facts.get("connection"): event.time for event in index.events.get("lost", ())}
    for label, operations in index.by_client.items():
        if index.bare(label):
            continue
        if any(map(_is_large, operations)):
            continue
        written = []
        for operation in operations:
            commands = index.commands[operation.number]
            if operation.kind in _ORDERED and len(commands) == 1 and commands[0].writes:
                sent = index.sent.get(commands[0].token or b"", ())
                if len(sent) == 1:
                    written.append((sent[0], commands[0]))
        written.sort(key=lambda each: each[0].at)
        for (before, first), (sent_later, second) in pairwise(written):
            closed = lost.get(before.connection, float("inf"))
            if (
                sent_later.connection != before.connection
                # The network notes a little later that the client has closed a connection.
                and closed > sent_later.time + _NOTED
            ):
                yield Broken(
                    f"{second} was written on connection {sent_later.connection}, although {first} "
                    f"had been written on connection {before.connection}, which was open",
                    (first.operation.number, second.operation.number),
                    sent_later.at,
                )


def _is_large(operation: Operation) -> bool:
    """Return whether a call has a value that may keep its connection busy."""
    words = operation.commands[0] if operation.commands else ()
    return "large" in operation.kind or any(word.startswith("big") for word in words[1:2])


def _of_one_burst(first: Command, second: Command) -> bool:
    """Return whether another rule compares two calls."""
    return first.operation.burst is not None and first.operation.burst == second.operation.burst


def commands_of_a_pipeline_are_executed_in_their_order(index: Index) -> Iterator[Broken]:
    """The first execution of each command of a pipeline follows that of the command before it."""
    for number, commands in index.commands.items():
        if index.operations[number].kind != "pipeline":
            continue
        previous: Command | None = None
        for command in commands:
            if command.token is None:
                continue
            if (
                previous is not None
                and command.executions
                and (
                    not previous.executions or previous.executions[0].at > command.executions[0].at
                )
            ):
                yield Broken(
                    f"{command} was executed before {previous}, which precedes it",
                    (number,),
                    command.executions[0].at,
                )
                break
            previous = command
