"""Background tasks that run until their owner closes, and waiters that wait for a change."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from resilient_io.errors import Closed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

_log = logging.getLogger("resilient_io")


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
