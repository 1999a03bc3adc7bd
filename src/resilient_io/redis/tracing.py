"""What tracing of ours is told about a call; who makes spans of it is beyond this package."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager


class Tracing(Protocol):
    """What makes the spans of one client's calls; entered in the context of the caller."""

    def current(self) -> object:
        """Return the span that is current, before anybody sees the call."""

    def command(self, operation: str, before: object) -> AbstractContextManager[object]:
        """Begin the span of one command; leaving it ends the span, with what was raised.

        If another span than `before` is current by now, somebody has begun one for it already.
        """
        raise NotImplementedError

    def batch(
        self, operations: Sequence[str], before: object, *, transaction: bool
    ) -> AbstractContextManager[object]:
        """Begin the span of a pipeline."""
        raise NotImplementedError

    def retrying(self, attempt: int, backoff: float, cause: str) -> None:
        """Note in the current span that another attempt follows, in so many seconds."""


tracing_of_call: Final[ContextVar[Tracing | None]] = ContextVar("tracing_of_call", default=None)
"""Whom the gate tells of retries: who traces the call that runs in this context."""
