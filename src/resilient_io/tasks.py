"""Tasks that nobody awaits and nobody starts again: how their end is told."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from resilient_io.errors import Closed

if TYPE_CHECKING:
    import asyncio

__all__ = ["describe_task_end", "log_task_death"]

_log = logging.getLogger("resilient_io")


def describe_task_end(task: asyncio.Task[None] | None) -> str | None:
    """Say what a task that was to go on for ever ended of; None while it runs, or is none.

    The words have the kind of the error only: its message may hold anything.
    """
    if task is None or not task.done():
        return None
    if task.cancelled():
        return "it was cancelled"
    error = task.exception()
    if isinstance(error, Closed):
        return None  # on purpose: what it works with was closed
    return "it returned" if error is None else f"it raised {type(error).__name__}"


def log_task_death(task: asyncio.Task[None]) -> None:
    """Log the exception of a background task as soon as the task ends, with its traceback."""
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and not isinstance(error, Closed):
        _log.error(
            "%s ended of a bug; only a new process helps",
            task.get_name(),
            exc_info=error,
            extra={"event": "task_died", "task": task.get_name(), "error": type(error).__name__},
        )
