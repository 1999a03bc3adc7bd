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

_current: contextvars.ContextVar[float | None] = contextvars.ContextVar(
    "resilient_io_deadline", default=None
)

current_deadline = _current.get
"""Return the absolute loop time of the deadline in force, or None. A bound method: 25 ns a call."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time at which a `with deadline(...)` block expires.

    Attributes:
        at: Absolute time of the running event loop, in seconds.
    """

    at: float

    def remaining(self) -> float:
        """Return the seconds left, or 0.0 after the deadline."""
        return max(0.0, self.at - asyncio.get_running_loop().time())


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[Deadline]:
    """Limit the total time of all resilient-io calls inside the block.

    The limit covers queueing, connecting, attempts and backoff. A nested block can only shorten
    it. Tasks created inside the block inherit it. Other code is not interrupted: only calls of
    this library check the deadline and raise `DeadlineExceeded` (or `OutcomeUnknown`).

    Args:
        seconds: Seconds from now, greater than 0.

    Raises:
        ConfigurationError: `seconds` is not a finite number greater than 0.
        RuntimeError: No event loop is running.
    """
    check_seconds("seconds", seconds)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError as exc:
        message = "deadline() needs a running event loop: use it inside a coroutine"
        raise RuntimeError(message) from exc
    at = loop.time() + seconds
    outer = _current.get()
    at = at if outer is None else min(outer, at)
    token = _current.set(at)
    try:
        yield Deadline(at)
    finally:
        _current.reset(token)


def earlier(first: float | None, second: float | None) -> float | None:
    """Return the earlier of two absolute loop times, where None means no limit."""
    if first is None or second is None:
        return first if second is None else second
    return min(first, second)


def timeout_within(seconds: float | None) -> asyncio.Timeout:
    """Return a timeout of `seconds` (None for no limit of its own) within the deadline in force."""
    at = None if seconds is None else asyncio.get_running_loop().time() + seconds
    return asyncio.timeout_at(earlier(at, current_deadline()))


def context_without_deadline() -> contextvars.Context:
    """Return a copy of the context without a deadline, for tasks that outlive their creator."""
    context = contextvars.copy_context()
    context.run(_current.set, None)
    return context
