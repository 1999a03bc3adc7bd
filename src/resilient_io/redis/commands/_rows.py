"""A row of the reviewed lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_io.redis.commands._spec import Effect, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Judge = Callable[[Sequence[object]], Effect]
    Block = Callable[[Sequence[object]], float | None]
    Condition = Callable[[Sequence[object]], bool]


@dataclass(frozen=True, slots=True)
class Row:
    """What we decided about one or more commands.

    Attributes:
        effect: Their effect; with a judge, the worst of its answers.
        names: The commands, separated by spaces, a subcommand behind a bar: `CONFIG|GET`.
        judge: Finds the effect from the operands.
        route: The kind of connection they travel.
        blocks_if: If given, `route` and `block` hold only where it is true of the operands; else
            the command travels a lane.
        block: Block time from the operands.
        advice: What to use instead of a refused command.
        reason: Why, where the row surprises.
    """

    effect: Effect
    names: str
    judge: Judge | None = None
    route: Route = Route.LANE
    blocks_if: Condition | None = None
    block: Block | None = None
    advice: str = ""
    reason: str = ""
