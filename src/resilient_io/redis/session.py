"""What callers set on connections: on all of a client, or on the only one of a bound client.

CLIENT SETNAME, SETINFO, NO-EVICT and NO-TOUCH change their own connection only, and the calls of a
client share several, which come and go. So the client sends them on each open connection and on
each new one. What SELECT, WATCH and MULTI set on the connection of a bound client is lost with it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from .commands import Effect, Route
from .driver_connection import identity
from .errors import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .commands import CommandSpec
    from .driver_connection import Query

SETTINGS = ("CLIENT SETNAME", "CLIENT SETINFO", "CLIENT NO-EVICT", "CLIENT NO-TOUCH")
"""The commands that apply to all connections of a client."""

_SETNAME, _SETINFO, *_ = SETTINGS
_DEFAULT_NAME = "resilient-io"
_OURS = re.compile(r"(.*):[0-9a-f]{16}-[0-9]+")  # as `Reconnector.next_name` makes them


class SessionSettings:
    """The settings of all connections of one client, in the order in which they were made.

    A name that a caller sets is the beginning of each connection's name. The rest is unique, so
    that a dead connection can be distinguished from its successor.
    """

    __slots__ = ("_commands", "client_name", "version")

    def __init__(self, client_name: str | None) -> None:
        self.client_name = client_name
        """The name as the caller set it, or None."""
        self.version = 0  # increases with each change
        self._commands: dict[Sequence[str], tuple[object, ...]] = {}

    @property
    def prefix(self) -> str:
        """The beginning of the name of each connection."""
        return self.client_name or _DEFAULT_NAME

    def take(self, name: str, operands: Sequence[Any]) -> tuple[object, ...]:
        """Record a command that the server has accepted. Return its words; use `words_for`."""
        self.version += 1
        key: tuple[str, ...] = (name,)
        if name == _SETNAME:
            self.client_name = _text(operands[0]) or None
        elif name == _SETINFO:
            key = (name, _text(operands[0]).upper())
        self._commands.pop(key, None)
        words = self._commands[key] = (*name.split(), *operands)
        return words

    def words_for(self, words: tuple[object, ...], connection_name: str) -> tuple[object, ...]:
        """Return the words of a command as they are sent on the connection with this name."""
        if words[:2] == tuple(_SETNAME.split()):
            return (*words[:2], f"{self.prefix}:{identity(connection_name)}")
        return words

    async def apply(self, query: Query, connection_name: str) -> int:
        """Send all commands on a new connection. Return the version that it has then.

        Another server than the one that accepted a command may not know it.
        """
        version = -1
        while version != self.version:
            version = self.version
            for words in list(self._commands.values()):
                try:
                    await query(*self.words_for(words, connection_name))
                except ResponseError as error:
                    if refusal(error) is not None:
                        raise  # BUSY, for example: connect again later
        return version


def read_client_name(reply: Any, **_: object) -> str | None:
    """Return the part of a reply to CLIENT GETNAME that a caller has set, as redis-py does."""
    if reply is None:
        return None
    name = _text(reply)
    ours = _OURS.fullmatch(name)
    if ours is None:
        return name
    return None if ours[1] == _DEFAULT_NAME else ours[1]


def check_client_name(operands: Sequence[Any]) -> None:
    """Raise the error that the server would return if the name is invalid."""
    if len(operands) != 1:
        raise ResponseError("wrong number of arguments for 'client|setname' command")
    if not all("!" <= character <= "~" for character in _text(operands[0])):
        raise ResponseError("Client names cannot contain spaces, newlines or special characters.")


def _text(value: Any) -> str:
    return (
        bytes(value).decode() if isinstance(value, bytes | bytearray | memoryview) else str(value)
    )


_ENDS_TRANSACTION = ("EXEC", "DISCARD", "UNWATCH")
_TRANSACTION = ("WATCH", "MULTI")


class BoundState:
    """The state that a caller set on its own connection (SELECT, WATCH, MULTI).

    If that connection is lost, the next call raises instead of continuing without the state.
    """

    __slots__ = ("_set", "losses", "lost")

    def __init__(self) -> None:
        self._set: list[str] = []
        self.lost: list[str] = []  # the commands whose state was lost, until an error reported that
        self.losses = 0
        """How often state was lost. A call that was made before a loss is not sent after it."""

    def __bool__(self) -> bool:
        """Return whether any state is set."""
        return bool(self._set)

    @property
    def in_transaction(self) -> bool:
        """Whether MULTI was sent, so that the server queues every command."""
        return "MULTI" in self._set

    def note(self, spec: CommandSpec) -> Callable[[], None]:
        """Record a command that is about to be sent.

        Return a function to call if it was not sent, which removes what this has added.
        """
        before = after = self._set
        if spec.name in _ENDS_TRANSACTION:
            self._set = [name for name in before if name not in _TRANSACTION]
        elif (
            spec.route is Route.BOUND and spec.effect is not Effect.READ and spec.name not in before
        ):
            self._set = after = [*before, spec.name]

        def undo() -> None:
            if self._set is after:  # otherwise, it was lost or changed since
                self._set = before

        return undo

    def lose(self) -> None:
        """Record that the connection was lost."""
        self._set, self.lost = [], self._set
        self.losses += 1

    def take_loss(self) -> str:
        """Return once what was lost, as the end of a sentence."""
        lost, self.lost = self.lost, []
        return f", and with it the state set by {', '.join(lost)}: start again"
