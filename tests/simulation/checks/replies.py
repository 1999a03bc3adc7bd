"""Rules about replies: each caller gets the reply to its own command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.history import ErrorReply, Outcome

from .effects import BLOCKING
from .index import BATCHES, Broken, reply_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .index import Index

_UNORDERED = frozenset(["HGETALL", "SMEMBERS", "HKEYS", "HVALS"])
_RETURN_TOKENS = frozenset(["ECHO", "EVAL", "EVAL_RO", "EVALSHA", "EVALSHA_RO"])
_NOT_COMPARED = frozenset(["WATCH", "UNWATCH", "MULTI", "EXEC"])


def is_error(reply: Any) -> bool:
    """Return whether a reply is an error."""
    return isinstance(reply, (ErrorReply, Exception))


def flatten(reply: Any, into: list[str]) -> None:
    """Append the values in a reply as text, in order, whatever types redis-py converts them to."""
    if reply is None:
        into.append("nil")
    elif reply is True or reply in (b"OK", "OK"):
        into.append("1")
    elif reply is False:
        into.append("0")
    elif isinstance(reply, bytes):
        into.append(reply.decode("utf-8", "replace"))
    elif isinstance(reply, str):
        into.append(reply)
    elif isinstance(reply, float) and reply.is_integer():
        into.append(str(int(reply)))
    elif isinstance(reply, dict):
        for key, value in reply.items():
            flatten(key, into)
            flatten(value, into)
    elif isinstance(reply, (list, tuple)):
        for each in reply:
            flatten(each, into)
    elif isinstance(reply, (set, frozenset)):
        into.extend(sorted(str(each) for each in reply))
    elif is_error(reply):
        into.append("error")
    else:
        into.append(str(reply))


def same(name: str, reply: Any, logged: Any) -> bool:
    """Return whether a caller's reply is what redis-py returns for a reply of the server."""
    # The usual cases.
    if type(logged) is bytes and type(reply) is str and reply == logged.decode("utf-8", "replace"):
        return True
    if reply is True and logged == b"OK":
        return True
    if type(reply) is int and type(logged) is int:
        return reply == logged
    ours: list[str] = []
    theirs: list[str] = []
    flatten(reply, ours)
    flatten(logged, theirs)
    if ours == theirs:
        return True
    return name in _UNORDERED and sorted(ours) == sorted(theirs)


def a_reply_is_one_that_the_server_gave_during_the_call(index: Index) -> Iterator[Broken]:
    """A caller gets the reply to its own command, so a read returns what was current then."""
    for number, commands in index.commands.items():
        operation = index.operations[number]
        for command in commands:
            known, reply = reply_of(command)
            name = command.name
            if not known or name in _NOT_COMPARED:
                continue
            if name in BLOCKING and not reply:
                continue  # the time ran out; the server need not log that
            for execution in index.during_call(command):
                if same(name, reply, execution.reply):
                    break
            else:
                given = [execution.reply for execution in index.during_call(command)]
                shown = ", ".join(_short(each) for each in given) or "nothing"
                yield Broken(
                    f"{command} returned {_short(reply)}; the server had replied {shown}",
                    (number,),
                    operation.ended_at,
                )


def a_reply_with_a_token_has_that_of_its_own_command(index: Index) -> Iterator[Broken]:
    """ECHO, and scripts, which all return their argument, return the caller's own token."""
    for number, commands in index.commands.items():
        operation = index.operations[number]
        for command in commands:
            if command.name not in _RETURN_TOKENS or command.token is None:
                continue
            known, reply = reply_of(command)
            if known and not is_error(reply) and reply != f"t{command.token.decode()}":
                yield Broken(f"{command} returned {_short(reply)}", (number,), operation.ended_at)


def a_batch_returns_one_reply_for_each_command(index: Index) -> Iterator[Broken]:
    """A pipeline and EXEC return as many replies as there were commands."""
    for operation, commands in index.ended(Outcome.OK):
        if operation.kind in BATCHES:
            expected = len(commands)
        elif operation.kind == "watch":
            expected = sum(command.queued for command in commands)
        else:
            continue
        replies = operation.reply
        if not isinstance(replies, (list, tuple)) or len(replies) != expected:
            yield Broken(
                f"{operation.kind} of {expected} commands returned {_short(replies)}",
                (operation.number,),
                operation.ended_at,
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
