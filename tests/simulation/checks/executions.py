"""Rules about how often, and when, a command was executed, and what its call reported."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.simulation.history import Outcome

from .effects import READ, SCRIPTS
from .index import TRANSACTIONS, Broken, reply_of
from .replies import is_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .index import Command, Index

_TOKEN = re.compile(r"t(\d+\.\d+)")

_LATE = 0.25  # seconds by which bytes may be written after a deadline that passed meanwhile


def no_command_is_applied_more_often_than_its_policy_permits(index: Index) -> Iterator[Broken]:
    """Only what `repeat` permits is applied twice; a plain overwrite by default."""
    for commands in index.commands.values():
        for command in commands:
            if len(command.applied) > 1 and command.writes and not index.repeatable(command):
                operation = command.operation
                yield Broken(
                    f"{command} was applied {len(command.applied)} times "
                    f"(repeat={operation.repeat!r})",
                    (operation.number,),
                    command.applied[1].at,
                )


def an_acknowledged_command_was_applied_during_its_call(index: Index) -> Iterator[Broken]:
    """A command whose call returned was executed by the server between its start and its end."""
    for operation, commands in index.ended(Outcome.OK):
        for command in commands:
            if command.token is not None and not any(index.during_call(command)):
                yield Broken(
                    f"{command} returned, but the server did not execute it during the call",
                    (operation.number,),
                    operation.ended_at,
                )


def an_acknowledged_command_is_not_applied_after_its_call(index: Index) -> Iterator[Broken]:
    """No copy of a command is applied after its call returned."""
    for operation, commands in index.ended(Outcome.OK):
        if operation.repeat not in ("read", "idempotent"):
            continue
        for command in commands:
            if not command.writes:
                continue
            for execution in command.applied:
                if operation.ended_at is not None and execution.at > operation.ended_at:
                    yield Broken(
                        f"a copy of {command} was applied after the call had returned",
                        (operation.number,),
                        execution.at,
                    )


def a_call_that_reports_nothing_applied_was_never_applied(index: Index) -> Iterator[Broken]:
    """What "nothing was applied" promises holds, before and after the error.

    Commands of a pipeline whose replies the error carries may be applied, but then the error does
    not say that nothing was sent.
    """
    for number, commands in index.commands.items():
        operation = index.operations[number]
        promised = operation.outcome in (Outcome.NOT_APPLIED, Outcome.WATCH_FAILED) or (
            "notes" in operation.facts
            and any("nothing was applied" in note for note in operation.facts["notes"])
        )
        if not promised:
            continue
        progress = operation.facts.get("progress")
        answered = len(operation.answered) if operation.kind == "pipeline" else 0
        for command in commands:
            if not command.writes or not command.applied:
                continue
            if command.index < answered and progress != "not sent":
                continue
            yield Broken(
                f"{command} was applied, but the call reported: {operation.error}",
                (number,),
                command.applied[0].at,
            )


def a_refused_command_was_never_applied(index: Index) -> Iterator[Broken]:
    """A command whose call raised the server's refusal was not applied by an earlier attempt.

    An error reply of a script proves nothing, nor does that of one command of a batch about others.
    """
    for number, commands in index.commands.items():
        operation = index.operations[number]
        for command in commands:
            if not command.applied or not command.writes or command.name in SCRIPTS:
                continue
            if operation.outcome is Outcome.REFUSED and _is_refused(command):
                what = operation.error
            elif _has_error_reply(command):
                what = "an error as its reply in the batch"
            else:
                continue
            yield Broken(
                f"{command} was applied, but the caller got: {what}",
                (number,),
                command.applied[0].at,
            )


def _is_refused(command: Command) -> bool:
    operation = command.operation
    if len(operation.commands) == 1 and operation.kind != "watch":
        return True
    if operation.kind in ("pipeline", "transaction") and operation.facts.get("raise_on_error"):
        # The error is that of the first failing command, which its text quotes.
        return (command.token or b"").decode() in _TOKEN.findall(operation.error)
    return operation.kind == "pipeline" or operation.kind in TRANSACTIONS


def _has_error_reply(command: Command) -> bool:
    if command.operation.kind not in ("pipeline", *TRANSACTIONS):
        return False
    known, reply = reply_of(command)
    return known and is_error(reply)


def an_unknown_outcome_was_written(index: Index) -> Iterator[Broken]:
    """Only a call whose bytes were passed to a transport ends with an unknown outcome."""
    for operation, commands in index.ended(Outcome.UNKNOWN):
        if operation.kind == "manual":
            continue
        tokens = [command.token for command in commands if command.token is not None]
        if tokens and not any(token in index.sent for token in tokens):
            yield Broken(
                f"{commands[0]} was never written, but its outcome is unknown: {operation.error}",
                (operation.number,),
                operation.ended_at,
            )


def a_read_does_not_end_with_an_unknown_outcome(index: Index) -> Iterator[Broken]:
    """A call that only reads has nothing to apply."""
    for operation, commands in index.ended(Outcome.UNKNOWN):
        if (
            commands
            and operation.kind not in ("manual", "watch")
            and all(command.effect == READ for command in commands)
        ):
            yield Broken(
                f"{commands[0]}: {operation.error}", (operation.number,), operation.ended_at
            )


def a_command_is_attempted_no_more_often_than_its_policy_permits(
    index: Index,
) -> Iterator[Broken]:
    """`attempts` limits how often a command is written and executed, applied or refused."""
    sent = index.sent
    for number, commands in index.commands.items():
        operation = index.operations[number]
        limit = operation.facts.get("attempts") or _attempts_of(index, operation.client)
        for command in commands:
            if command.token is None:
                continue
            # A registered script is sent again after it was loaded, as a call of its own.
            most = limit * 2 if command.name == "EVALSHA" else limit
            written = len(sent.get(command.token, ()))
            # An element that was taken may have been put back.
            if (
                written > most or len(command.executions) > most
            ) and f"t{command.token.decode()}" not in index.pops:
                yield Broken(
                    f"{command} was written {written} times and executed or refused "
                    f"{len(command.executions)} times; the policy permits {most} attempts",
                    (number,),
                    operation.ended_at,
                )


def _attempts_of(index: Index, label: str) -> int:
    if index.plan is not None:
        for setup in index.plan.clients:
            if setup.label == label:
                return int(setup.policy.get("attempts", 3))
    return 3


def nothing_is_written_after_its_call_ended(index: Index) -> Iterator[Broken]:
    """A call that ended or was cancelled before it was written is never sent."""
    for token, sent in index.sent.items():
        command = index.by_command_token.get(token)
        if command is None:
            continue
        operation = command.operation
        cancelled = operation.cancelled_at if operation.facts.get("cancel_delivered") else None
        if cancelled is not None and sent[0].at > cancelled:
            yield Broken(
                f"{command} was written after its call had been cancelled",
                (operation.number,),
                sent[0].at,
            )
        elif operation.ended_at is not None and sent[0].at > operation.ended_at:
            ended = operation.outcome.value if operation.outcome is not None else "not ended"
            yield Broken(
                f"{command} was written after its call had ended ({ended})",
                (operation.number,),
                sent[0].at,
            )


def an_expired_call_is_not_written(index: Index) -> Iterator[Broken]:
    """A call whose deadline has passed sends nothing."""
    for number, commands in index.commands.items():
        operation = index.operations[number]
        if operation.deadline is None:
            continue
        expired = operation.facts.get("already_late") or operation.deadline <= operation.started
        for command in commands:
            sent = index.sent.get(command.token, ()) if command.token is not None else ()
            if not sent:
                continue
            late = sent[0].time - operation.deadline
            if expired or (
                late > _LATE and late > _LATE + index.stalled(operation.deadline, sent[0].time)
            ):
                when = "before the call" if expired else f"{late:.3f} s earlier"
                yield Broken(
                    f"{command} was written, but its deadline had passed {when}",
                    (number,),
                    sent[0].at,
                )
