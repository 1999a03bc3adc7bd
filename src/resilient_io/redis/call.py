"""What passes the gate: a call, and the command that most calls are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .commands import Effect, Route, effect_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .commands import CommandSpec
    from .exchange import Limits


class Call(Protocol):
    """What the gate sends, judges and repeats."""

    operation: str
    bounded: bool
    """Whether the policy's deadline holds for it; a blocking command brings its own time."""

    @property
    def effect(self) -> Effect:
        """What executing it twice would do; asked only after a failure."""
        raise NotImplementedError

    async def attempt(self, limits: Limits) -> object:
        """Make one attempt within its limits.

        Raises:
            AttemptFailed: No usable reply came; the gate decides what follows.
        """


@dataclass(frozen=True, slots=True)
class Command:
    """One command as it was given to `execute_command`, with its row of the table."""

    spec: CommandSpec
    args: Sequence[Any]
    options: Mapping[str, Any]

    @property
    def effect(self) -> Effect:
        """What executing it twice would do; what a connection remembers means nothing elsewhere."""
        return (
            Effect.DANGEROUS if self.spec.route is Route.BOUND else effect_of(self.spec, self.args)
        )

    @property
    def block(self) -> float | None:
        """For how many seconds the server may hold back the reply; None is for ever."""
        return self.spec.block(self.args) if self.spec.block is not None else 0.0
