"""One deadline over everything that happens inside a `with` block."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_io.validation import check_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Deadline", "context_without_deadline", "current_deadline", "deadline"]

_current: contextvars.ContextVar[float | None] = contextvars.ContextVar(
    "resilient_io_deadline", default=None
)

current_deadline = _current.get
"""The absolute loop time of the deadline in force, or None. The bound method: 25 ns a call."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment at which the time of a `with deadline(...)` block is used up.

    Attributes:
        at: Absolute time of the running event loop, in seconds.
    """

    at: float

    def remaining(self) -> float:
        """Return the seconds left; 0.0 once it has passed."""
        return max(0.0, self.at - asyncio.get_running_loop().time())


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[Deadline]:
    """Bound every call of this library made inside the block, all of them together.

    The bound covers waiting, connecting, attempts and backoff. Nested blocks only shorten it.
    Tasks created inside the block inherit it. Code of others is not interrupted: only this
    library's calls look at it, and raise `DeadlineExceeded` (or `OutcomeUnknown`).

    Args:
        seconds: Seconds from now, above 0.

    Raises:
        ConfigurationError: `seconds` is no finite number above 0.
        RuntimeError: No event loop is running.
    """
    check_seconds("seconds", seconds)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError as exc:
        message = "deadline() needs a running event loop: write it inside a coroutine"
        raise RuntimeError(message) from exc
    at = loop.time() + seconds
    outer = _current.get()
    if outer is not None and outer < at:
        at = outer
    token = _current.set(at)
    try:
        yield Deadline(at)
    finally:
        _current.reset(token)


def context_without_deadline() -> contextvars.Context:
    """Return a copy of the current context in which no deadline is in force.

    For tasks that outlive the call that happens to create them.
    """
    context = contextvars.copy_context()
    context.run(_current.set, None)
    return context
