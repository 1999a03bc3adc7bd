"""A row of the command table: effect, route and block time of a command."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .keys import first

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .keys import KeyRule


class Effect(enum.IntEnum):
    """What executing a command twice does, compared with executing it once.

    Ordered: `max()` over the commands of a batch is at least as bad as the worst of them.
    """

    READ = 0
    """Changes nothing."""
    IDEMPOTENT = 1
    """A plain overwrite: neither the data nor the reply differs the second time."""
    CONDITIONAL = 2
    """The effect cannot happen twice, but the second reply would mislead (DEL, SADD, SET NX)."""
    NON_IDEMPOTENT = 3
    """Adds, consumes, toggles, runs code, or is not in the table."""
    DANGEROUS = 4
    """As NON_IDEMPOTENT; repeated only if the call itself permits it (FLUSHALL, CLIENT KILL)."""


class Route(enum.Enum):
    """The kind of connection that may carry a command."""

    MULTIPLEXED = "multiplexed"
    """A connection shared with other callers."""
    EXCLUSIVE = "exclusive"
    """A connection of its own during the call, because the server may delay the reply."""
    BOUND = "bound"
    """Only the caller's own connection, whose state the command sets or reads.

    Whatever its effect, it means nothing on another connection, so it is never repeated on one.
    """
    REFUSED = "refused"
    """Never an ordinary call: afterwards the connection no longer answers requests."""


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A row of the command table.

    `resolve` and `block` take the arguments as passed to `execute_command`, including the name.

    Attributes:
        name: The command in capitals, with its subcommand: `"CONFIG GET"`.
        words: The first argument as it is sent. The request is `(*words, *args[1:])`.
        route: The kind of connection that may carry it.
        effect: Its effect, or the worst result of `resolve`.
        resolve: Returns the effect if it depends on the arguments; use `effect_of`.
        block: Returns how many seconds the server may delay the reply; None for no limit.
        advice: What to use instead where a shared client refuses it, as a sentence.
        reason: Why, if the row is surprising.
        keys: Returns the keys among the operands; use `keys_of`.
        known: False for a command that is not in the table.
        key_at: The index of the only key among the arguments, or 0 if there is not exactly one.
        simple: Whether the hot path can send it as it was passed: multiplexed, and one word.
        bulk: Its name as it is in a packed request if it is simple.
        head: How its packed request begins if it is simple and has one operand.
    """

    name: str
    words: tuple[bytes, ...]
    route: Route
    effect: Effect
    resolve: Callable[[Sequence[object]], Effect] | None = None
    block: Callable[[Sequence[object]], float | None] | None = None
    advice: str = ""
    reason: str = ""
    keys: KeyRule = first
    known: bool = True
    key_at: int = field(init=False)
    simple: bool = field(init=False)
    bulk: str = field(init=False, repr=False, default="")
    head: str = field(init=False, repr=False, default="")

    def __post_init__(self) -> None:
        simple = self.route is Route.MULTIPLEXED and len(self.words) == 1
        simple = simple and self.words[0].isascii()
        object.__setattr__(self, "simple", simple)
        if simple:
            word = self.words[0].decode("ascii")
            object.__setattr__(self, "bulk", f"${len(word)}\r\n{word}\r\n")
            object.__setattr__(self, "head", f"*2\r\n{self.bulk}")
        object.__setattr__(self, "key_at", self.operands_at if self.keys is first else 0)

    @property
    def operands_at(self) -> int:
        """The index of the first operand among the arguments."""
        return 1 + self.name.count(" ") + 1 - len(self.words)


def effect_of(spec: CommandSpec, args: Sequence[object]) -> Effect:
    """Return what a second execution of this call would do.

    Never raises: arguments that `resolve` does not understand are the worst case. Takes some
    microseconds, so it is called only after a failure.

    Args:
        spec: The command's row, from `SPECS` or `lookup`.
        args: The arguments as passed to `execute_command`, including the name.
    """
    return spec.effect if spec.resolve is None else spec.resolve(args)


_NO_DATA = (
    "ACL", "AUTH", "BGREWRITEAOF", "BGSAVE", "CLIENT", "CLUSTER", "CONFIG", "DEBUG", "FAILOVER",
    "HELLO", "LATENCY", "MEMORY", "MIGRATE", "MODULE", "MONITOR", "PUBLISH", "QUIT", "REPLICAOF",
    "RESET", "SAVE", "SCRIPT", "SELECT", "SENTINEL", "SHUTDOWN", "SLAVEOF", "SLOWLOG", "SPUBLISH",
    "WAIT", "WAITAOF",
)  # fmt: skip
"""First words of the commands that change something, but no data: replicas need not have it."""


def changes_data(spec: CommandSpec, args: Sequence[object]) -> bool:
    """Return whether a command changes data, so that a server that accepts no writes refuses it."""
    return (
        spec.route is not Route.BOUND
        and spec.name.partition(" ")[0] not in _NO_DATA
        and effect_of(spec, args) is not Effect.READ
    )


def keys_of(spec: CommandSpec, args: Sequence[object]) -> Sequence[object]:
    """Return the keys of a call, in the order of its arguments.

    Never raises: arguments that the server would refuse have no keys.

    Args:
        spec: The command's row, from `SPECS` or `lookup`.
        args: The arguments as passed to `execute_command`, including the name.
    """
    return spec.keys(args[spec.operands_at :])


_OVERWRITES = ("SET", "SETEX", "PSETEX", "SETRANGE", "MSET", "LSET", "HMSET", "CONFIG SET")
"""Commands that write constants and read nothing: repeating any sequence of them is idempotent.

This is not true of others that may be repeated alone: COPY a b, then SET a.
"""


def effect_of_batch(specs: Sequence[CommandSpec], commands: Sequence[Sequence[object]]) -> Effect:
    """Return the effect of executing commands twice, in their order. Each includes its name."""
    pending = {effect_of(spec, args) for spec, args in zip(specs, commands, strict=True)}
    if pending <= {Effect.READ}:
        return Effect.READ
    if pending == {Effect.IDEMPOTENT} and (
        len(specs) == 1 or all(spec.name in _OVERWRITES for spec in specs)
    ):
        return Effect.IDEMPOTENT
    return max(Effect.NON_IDEMPOTENT, *pending)
