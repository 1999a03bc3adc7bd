"""Background tasks that run until their owner closes, their timers, and waiters for a change."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final

from resilient_io.errors import Closed

if TYPE_CHECKING:
    from collections.abc import Iterable

_log = logging.getLogger("resilient_io")

BEAT: Final = 0.25
"""Seconds between two beats; a power of two, so that their times are exact."""


def beat_before(when: float, spacing: float = BEAT) -> float:
    """Return the last beat that is not after this loop time. `spacing` may be a part of a beat.

    Periodic timers that need not be exact are set to beats, so that they run together. In an idle
    process, waking up costs more than what such a timer does.
    """
    return math.floor(when / spacing) * spacing


def describe_task_end(task: asyncio.Task[None] | None) -> str | None:
    """Return why a long-running task ended, or None if it is running or was never started."""
    if task is None or not task.done():
        return None
    if task.cancelled():
        return "it was cancelled"
    error = task.exception()
    if isinstance(error, Closed):
        return None  # on purpose: the client that the task belongs to was closed
    # Not the message of the exception, which may contain anything.
    return "it returned" if error is None else f"it raised {type(error).__name__}"


def log_task_death(task: asyncio.Task[None]) -> None:
    """Log the exception of a background task with its traceback. Use it as a done callback."""
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and not isinstance(error, Closed):
        _log.error(
            "%s crashed (a bug in resilient-io): restart the process",
            task.get_name(),
            exc_info=error,
            extra={"event": "task_died", "task": task.get_name(), "error": type(error).__name__},
        )


def wake(waiters: Iterable[asyncio.Future[None]]) -> None:
    """Wake all tasks that wait for one of these futures. A future that is done is skipped."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


class Signal:
    """An `asyncio.Event` that takes no memory for waiting tasks until there are some."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[asyncio.Future[None]] | None = None  # until the first one

    def is_set(self) -> bool:
        """Return whether `wait` returns immediately."""
        return self._set

    def set(self) -> None:
        """Wake all tasks that wait."""
        self._set = True
        wake(self._waiters or ())

    def clear(self) -> None:
        """Make `wait` wait from now on."""
        self._set = False

    async def wait(self) -> None:
        """Wait until it is set."""
        if self._set:
            return
        waiter = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        waiters = self._waiters
        waiters.append(waiter)
        try:
            await waiter
        finally:
            waiters.remove(waiter)
