"""Background tasks, shared tasks, the timers of tasks, and waiters for a change."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from resilient_io.errors import Closed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

Result = TypeVar("Result")

_log = logging.getLogger("resilient_io")

BEAT: Final = 0.25
"""Seconds between two beats; a power of two, so that their times are exact."""


_LONGEST_END = 0.5  # seconds for which the end of a cancelled task is waited for


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


def future_factory(loop: asyncio.AbstractEventLoop) -> Callable[[], asyncio.Future[object]]:
    """Return the fastest way to create a future while the loop runs."""
    # Before Python 3.12, to look for the running loop takes a system call.
    return asyncio.Future if sys.version_info >= (3, 12) else partial(asyncio.Future, loop=loop)


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


class SharedTask:
    """A task whose result all callers share that come while it runs.

    So a lookup that hangs occupies one thread, instead of one for each connect attempt. Cancelling
    a wait leaves the task running for the next caller.

    Args:
        name: The name of the task.
        ended: Returns the error to raise if the task was cancelled.
        kept: Seconds for which a result that nothing has received is kept for the next caller.
        longest: Seconds after which a task is replaced, because it may have hung.
    """

    def __init__(
        self,
        name: str,
        *,
        ended: Callable[[], Exception],
        kept: float = 0.0,
        longest: float = math.inf,
    ) -> None:
        self._name = name
        self._ended = ended
        self._kept = kept
        self._longest = longest
        self._task: asyncio.Task[object] | None = None
        self._until = 0.0  # loop time from which another task is started

    async def result(self, start: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of the running task, or of a new one that awaits `start()`."""
        loop = asyncio.get_running_loop()
        task = self._task
        if task is not None and task.get_loop() is not loop:
            task = None  # that loop was closed
        if task is not None and loop.time() >= self._until:
            task.cancel()
            task = None
        if task is None:

            async def run() -> object:
                return await start()

            # In an empty context: it outlives the call that starts it, and the call's deadline.
            task = self._task = loop.create_task(run(), name=self._name, context=Context())
            self._until = loop.time() + self._longest
            task.add_done_callback(self._done)
        await asyncio.wait([task])
        while task.cancelled() and self._task not in (task, None):
            task = self._task  # it replaced the one that hung
            await asyncio.wait([task])
        if self._task is task:
            self._task = None
        if task.cancelled():
            raise self._ended()
        result: Result = task.result()  # type: ignore[assignment]
        return result

    def _done(self, task: asyncio.Task[object]) -> None:
        if task is self._task:
            self._until = task.get_loop().time() + self._kept
        if not task.cancelled():
            task.exception()  # the caller may be gone, and asyncio would log it

    async def aclose(self) -> None:
        """Cancel the task if it is running, and wait for its end for half a second. Idempotent."""
        task, self._task = self._task, None
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            return  # that loop was closed
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_LONGEST_END)
