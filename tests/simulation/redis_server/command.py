"""The table of commands, and how their arguments are read."""

from __future__ import annotations

import enum
import functools
import re
from typing import TYPE_CHECKING, Any

from .resp import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from .node import Session

Words = tuple[bytes, ...]
SYNTAX = "ERR syntax error"
NOT_INTEGER = "ERR value is not an integer or out of range"


class Flag(enum.Flag):
    """Properties of a command, named like those of COMMAND INFO."""

    NONE = 0
    WRITE = enum.auto()
    DENYOOM = enum.auto()
    READONLY = enum.auto()
    LOADING = enum.auto()
    STALE = enum.auto()
    NOSCRIPT = enum.auto()
    NO_AUTH = enum.auto()
    ALLOW_BUSY = enum.auto()
    VALKEY_BUSY = enum.auto()  # as ALLOW_BUSY, in Valkey only
    MAY_REPLICATE = enum.auto()
    OWN_LOG = enum.auto()  # the handler writes the log itself


class Command:
    """A command, or a subcommand such as CLIENT ID.

    Attributes:
        name: In capitals; subcommands as "CLIENT|ID".
        least, most: Limits for the number of words.
        arity: As in COMMAND INFO.
        run: The handler, called with the session and the words. It returns the reply.
        subcommands: By their second word, for containers such as CLIENT.
    """

    __slots__ = (
        *("allow_busy", "arity", "denyoom", "flags", "least", "loading", "may_replicate", "most"),
        *("name", "no_auth", "no_script", "own_log", "run", "stale", "subcommands", "valkey_busy"),
        "write",
    )

    def __init__(self, name: str, arity: int, flags: Flag, run: Callable[..., Any]) -> None:
        self.name = name
        self.arity = arity
        self.least = abs(arity)
        self.most = arity if arity > 0 else 1_000_000_000
        self.flags = flags
        self.run = run
        self.write = Flag.WRITE in flags
        self.denyoom = Flag.DENYOOM in flags
        self.loading = Flag.LOADING in flags
        self.stale = Flag.STALE in flags
        self.no_script = Flag.NOSCRIPT in flags
        self.no_auth = Flag.NO_AUTH in flags
        self.allow_busy = Flag.ALLOW_BUSY in flags
        self.valkey_busy = self.allow_busy or Flag.VALKEY_BUSY in flags
        self.may_replicate = self.write or Flag.MAY_REPLICATE in flags
        self.own_log = Flag.OWN_LOG in flags
        self.subcommands: dict[bytes, Command] = {}


COMMANDS: dict[bytes, Command] = {}


def command(
    name: str, arity: int, flags: Flag = Flag.NONE
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds a handler to the table."""

    def add(run: Callable[..., Any]) -> Callable[..., Any]:
        entry = Command(name, arity, flags, run)
        container, bar, sub = name.partition("|")
        if bar:
            parent = COMMANDS.get(container.encode())
            if parent is None:
                parent = Command(container, -2, Flag.NONE, run)
                COMMANDS[container.encode()] = parent
            parent.subcommands[sub.encode()] = entry
        else:
            COMMANDS[name.encode()] = entry
        return run

    return add


def _quote(text: bytes) -> str:
    return text.decode(errors="replace").replace("\r", " ").replace("\n", " ")


def wrong_arity(name: str) -> str:
    """Return the error's text for a wrong number of words."""
    return f"ERR wrong number of arguments for '{name.lower()}' command"


def look_up(words: list[bytes]) -> tuple[Command, Words]:
    """Return the command and the words with its name in capitals; refuse unknown ones."""
    name = words[0].upper()
    found = COMMANDS.get(name)
    if found is None:
        beginning = ""
        for word in words[1:]:
            beginning += f"'{_quote(word)[: 128 - len(beginning)]}' "
            if len(beginning) >= 128:
                break
        raise Refused(
            f"ERR unknown command '{_quote(words[0])[:128]}', with args beginning with: {beginning}"
        )
    if found.subcommands and len(words) > 1:
        container, second = found, words[1].upper()
        sub = container.subcommands.get(second)
        if sub is None:
            asked = _quote(words[1])[:128]
            raise Refused(f"ERR unknown subcommand '{asked}'. Try {container.name} HELP.")
        return sub, (name, second, *words[2:])
    return found, (name, *words[1:])


def integer(word: bytes, text: str = NOT_INTEGER) -> int:
    """Return a 64-bit integer; refuse anything else with this text."""
    try:
        number = int(word)
    except ValueError:
        raise Refused(text) from None
    if b"%d" % number != word or not -(1 << 63) <= number < 1 << 63:
        raise Refused(text)
    return number


def not_negative(word: bytes) -> int:
    """Return an integer of at least 0."""
    number = integer(word, "ERR value is out of range, must be positive")
    if number < 0:
        raise Refused("ERR value is out of range, must be positive")
    return number


def number(word: bytes, text: str = "ERR value is not a valid float") -> float:
    """Return a floating point number; refuse anything else with this text."""
    try:
        found = float(word)
    except ValueError:
        raise Refused(text) from None
    if found != found or b"_" in word or word[:1].isspace() or word[-1:].isspace():  # noqa: PLR0124
        raise Refused(text)
    return found


def timeout_seconds(session: Session, word: bytes) -> float:
    """Return the timeout of a blocking command; 0 means none."""
    seconds = number(word, "ERR timeout is not a float or out of range")
    if seconds * 1000 >= 1 << 63:
        valkey = session.node.valkey
        raise Refused(f"ERR timeout is {'out of range' if valkey else 'negative'}")
    if seconds < 0:
        raise Refused("ERR timeout is negative")
    return seconds


@functools.lru_cache(maxsize=256)
def glob(pattern: bytes) -> re.Pattern[bytes]:
    """Return the regular expression of a glob pattern of Redis."""
    out = b""
    at = 0
    while at < len(pattern):
        one = pattern[at : at + 1]
        end = pattern.find(b"]", at + 1) if one == b"[" else -1
        if one == b"*":
            out += b".*"
        elif one == b"?":
            out += b"."
        elif end > 0:
            inside = pattern[at + 1 : end].replace(b"\\", b"\\\\")
            out += b"[" + inside + b"]"
            at = end
        else:
            if one == b"\\" and at + 1 < len(pattern):
                at += 1
                one = pattern[at : at + 1]
            out += re.escape(one)
        at += 1
    return re.compile(out, re.DOTALL)
