"""What a caller has set on a connection of its own: SELECT, WATCH, MULTI and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .commands import Effect, Route

if TYPE_CHECKING:
    from .commands import CommandSpec

_ENDS_TRANSACTION = ("EXEC", "DISCARD", "UNWATCH")
_TRANSACTION = ("WATCH", "MULTI")


class Session:
    """Remembers it, so that nothing goes on silently on a connection that does not."""

    def __init__(self) -> None:
        """Start with a connection on which nothing is set."""
        self._set: list[str] = []
        self.lost: list[str] = []
        """What a lost connection held, until the caller has been told."""

    def __bool__(self) -> bool:
        """Tell whether anything is set on the connection."""
        return bool(self._set)

    def note(self, spec: CommandSpec) -> None:
        """Note a command that is about to be sent."""
        if spec.name in _ENDS_TRANSACTION:
            self._set = [name for name in self._set if name not in _TRANSACTION]
        elif (
            spec.route is Route.BOUND
            and spec.effect is not Effect.READ
            and spec.name not in self._set
        ):
            self._set.append(spec.name)

    def lose(self) -> None:
        """Note that the connection is gone."""
        self._set, self.lost = [], self._set

    def take_loss(self) -> str:
        """Say what was lost, once, as the end of a sentence."""
        lost, self.lost = self.lost, []
        return f", and with it what {', '.join(lost)} had set: begin again"
