"""Rules about MULTI, EXEC and WATCH."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.history import Outcome

from .effects import READS
from .index import TRANSACTIONS, Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.history import Execution

    from .index import Command, Index

_FRAME = frozenset((b"MULTI", b"EXEC", b"DISCARD", b"WATCH", b"UNWATCH"))


def a_transaction_is_executed_whole_and_in_order(index: Index) -> Iterator[Broken]:
    """EXEC executes exactly the commands of its transaction, in their order, without a gap."""
    for members in index.transactions.values():
        body = [each for each in members if each.words[0] not in _FRAME]
        command = _first_command(index, body)
        if command is None:
            continue
        operation = command.operation
        queued = [each for each in index.commands[operation.number] if each.queued]
        expected = [tuple(word.encode() for word in each.words) for each in queued]
        executed = [each.words for each in body]
        if expected != executed:
            shown = ", ".join(b" ".join(words)[:40].decode(errors="replace") for words in executed)
            yield Broken(
                f"EXEC executed {len(executed)} commands instead of the {len(expected)} that were "
                f"queued: {shown}",
                (operation.number,),
                body[0].at,
            )


def a_transaction_is_executed_without_interruption(index: Index) -> Iterator[Broken]:
    """No other command is executed between those of a transaction."""
    for number, members in index.transactions.items():
        if len(members) < 2:
            continue
        first, last, server = members[0].at, members[-1].at, members[0].server
        for execution in index.executions_between(first, last):
            if execution.server == server and execution.transaction != number:
                yield Broken(
                    f"{_words(execution)} was executed within transaction {number}",
                    _operations_of(index, members),
                    execution.at,
                )
                break


def no_command_of_a_transaction_is_applied_outside_it(index: Index) -> Iterator[Broken]:
    """A command that is queued by MULTI is applied by EXEC, or not at all."""
    for number, commands in index.commands.items():
        if index.operations[number].kind not in TRANSACTIONS:
            continue
        for command in commands:
            if not command.queued:
                continue
            for execution in command.applied:
                if execution.transaction is None:
                    yield Broken(
                        f"{command} was applied outside its transaction", (number,), execution.at
                    )


def a_transaction_is_applied_only_if_its_watched_keys_did_not_change(
    index: Index,
) -> Iterator[Broken]:
    """Between WATCH and EXEC, on one connection, no one else writes to the watched keys."""
    for number, commands in index.commands.items():
        operation = index.operations[number]
        if operation.kind != "watch" or not commands:
            continue
        keys = [word.encode() for word in commands[0].words[1:]]
        for command in commands:
            for execution in command.applied if command.queued else ():
                watched = _watch_of(index, operation.started_at, execution, keys)
                if watched is None:
                    yield Broken(
                        f"{command} was applied on a connection that did not watch its keys",
                        (number,),
                        execution.at,
                    )
                    continue
                changed = _change(index, watched, execution, keys)
                if changed is not None:
                    yield Broken(
                        f"{command} was applied, although {_words(changed)} had changed a watched "
                        f"key",
                        (number,),
                        execution.at,
                    )


def a_transaction_fails_only_if_a_watched_key_changed(index: Index) -> Iterator[Broken]:
    """WatchError from the server means that someone wrote to a key that this caller watched."""
    if index.data_lost:
        return
    for number, commands in index.commands.items():
        operation = index.operations[number]
        if (
            operation.kind != "watch"
            or operation.outcome is not Outcome.WATCH_FAILED
            or "Watched variable changed" not in operation.error
            or not commands
        ):
            continue
        keys = [word.encode() for word in commands[0].words[1:]]
        ended = operation.ended_at or operation.started_at
        watches = [
            each
            for each in index.executions_between(operation.started_at, ended)
            if each.words == (b"WATCH", *keys)
        ]
        if watches and not any(
            each.applied
            and each.words[0].decode() not in READS
            and any(key in each.words[1:] for key in keys)
            for each in index.executions_between(watches[0].at, ended)
        ):
            yield Broken(
                f"{commands[-1]} failed, although no one had changed its watched keys: "
                f"{operation.error}",
                (number,),
                operation.ended_at,
            )


def _first_command(index: Index, body: list[Execution]) -> Command | None:
    """Return the first command of the workload in a transaction, or None for one of the library."""
    for execution in body:
        for word in execution.words:
            token = index.token_in(word)
            if token is not None:
                command = index.by_command_token.get(token)
                if command is not None and command.queued:
                    return command
    return None


def _operations_of(index: Index, members: list[Execution]) -> tuple[int, ...]:
    command = _first_command(index, members)
    return () if command is None else (command.operation.number,)


def _watch_of(
    index: Index, started_at: int, execution: Execution, keys: list[bytes]
) -> Execution | None:
    found = None
    for each in index.executions_between(started_at, execution.at):
        if each.connection == execution.connection and each.server == execution.server:
            if each.words[0] == b"WATCH" and set(keys) <= set(each.words[1:]):
                found = each
            elif each.words[0] in (b"UNWATCH", b"EXEC", b"DISCARD"):
                found = None
    return found


def _change(
    index: Index, watched: Execution, execution: Execution, keys: list[bytes]
) -> Execution | None:
    for each in index.executions_between(watched.at, execution.at):
        if (
            each.applied
            and each.server == execution.server
            and each.connection != execution.connection
            and each.words[0].decode() not in READS
            and any(key in each.words[1:] for key in keys)
        ):
            return each
    return None


def _words(execution: Execution) -> str:
    return b" ".join(execution.words)[:60].decode("utf-8", "replace")
