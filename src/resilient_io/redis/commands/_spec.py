"""What the gate has to know of a command: its effect, its route, its block time."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Effect(enum.IntEnum):
    """What executing a command twice does, compared with executing it once.

    Ordered: `max()` over the commands of a batch never says less than the worst of them.
    """

    READ = 0
    """Changes nothing."""
    IDEMPOTENT = 1
    """A plain overwrite: neither the data nor the reply differ the second time."""
    CONDITIONAL = 2
    """The effect cannot repeat, but the second reply would lie (DEL, SADD, SET NX)."""
    NON_IDEMPOTENT = 3
    """Adds, consumes, toggles, runs code, or is unknown to the table."""
    DANGEROUS = 4
    """As NON_IDEMPOTENT; repeated only if the call itself asks for it (FLUSHALL, CLIENT KILL)."""


class Route(enum.Enum):
    """The kind of connection a command may travel."""

    LANE = "lane"
    """A connection shared with other callers."""
    DEDICATED = "dedicated"
    """A connection of its own for the time of the call: it may keep the server silent."""
    BOUND = "bound"
    """The caller's own connection only: it sets, or asks about, what that connection remembers.

    Whatever its effect, it means nothing on another connection, so it is never repeated on one.
    """
    REFUSED = "refused"
    """Never a plain call: it takes the connection out of request and reply."""


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A row of the command table.

    `judge` and `block` take the arguments as given to `execute_command`, the name included.

    Attributes:
        name: The command in capitals, with its subcommand: `"CONFIG GET"`.
        words: What the first argument becomes on the wire: `(*words, *args[1:])` is the request.
        route: The kind of connection it may travel.
        effect: Its effect; where `judge` is set, the worst that `judge` can answer.
        judge: Finds the effect where it depends on the arguments; use `effect_of`.
        block: For how many seconds the server may hold back the reply; None is for ever.
        advice: What to use instead where a shared client refuses it, as a sentence.
        reason: Why the row says so, where it surprises.
        known: False for what the table does not know.
        simple: It travels lanes and is one word: the hot path can send it as it was given.
    """

    name: str
    words: tuple[bytes, ...]
    route: Route
    effect: Effect
    judge: Callable[[Sequence[object]], Effect] | None = None
    block: Callable[[Sequence[object]], float | None] | None = None
    advice: str = ""
    reason: str = ""
    known: bool = True
    simple: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "simple", self.route is Route.LANE and len(self.words) == 1)


def effect_of(spec: CommandSpec, args: Sequence[object]) -> Effect:
    """Judge what a second execution of this call would do.

    Never raises: arguments that the judge does not understand are the worst case. Costs some
    microseconds, so it is meant for the moment after a failure.

    Args:
        spec: The command's row, from `SPECS` or `lookup`.
        args: The arguments as given to `execute_command`, the name included.
    """
    return spec.effect if spec.judge is None else spec.judge(args)
