"""Run a command in an event loop that Ctrl-C ends quickly, even if a name lookup hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .terminal import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_CLEANUP = 0.1
"""Seconds that an interrupted task gets to clean up."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(asyncio.Event):
    """Set by the first Ctrl-C or SIGTERM. A second one ends the process as usual."""

    async def before(self, other: Coroutine[Any, Any, object]) -> bool:
        """Wait for a coroutine until the interruption, and then cancel the coroutine.

        Cancelling the wait cancels both. An exception of the coroutine is raised.

        Returns:
            Whether the interruption came before the coroutine ended.
        """
        task = asyncio.create_task(other, name="until interrupted")
        interrupted = asyncio.create_task(self.wait(), name="interruption")
        try:
            await asyncio.wait([task, interrupted], return_when=asyncio.FIRST_COMPLETED)
            finished = task.done()
        finally:
            interrupted.cancel()
            task.cancel()
            await asyncio.wait([task, interrupted], timeout=_CLEANUP)
        if finished:
            task.result()
        elif task.done() and not task.cancelled():
            task.exception()  # raised during its cleanup; the interruption takes precedence
        return not finished


class _LookupThreads(ThreadPoolExecutor):
    """The loop's threads, counted: a name lookup that hangs cannot be stopped."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="resilient-io")
        self.busy = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        self.busy += 1
        future = super().submit(function, *args, **options)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _future: Future[Any]) -> None:
        self.busy -= 1


def run(command: Callable[[Interruption], Coroutine[Any, Any, int]]) -> int:
    """Run a command and return its exit code.

    Args:
        command: Takes the interruption, which must end it.
    """
    threads = _LookupThreads()
    runner = asyncio.Runner()
    try:
        runner.get_loop().set_default_executor(threads)
        try:
            code = runner.run(_interruptible(command))
        except KeyboardInterrupt:
            code = INTERRUPTED
        if threads.busy:
            # Python would wait for these threads, as long as the resolver hangs.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    finally:
        runner.close()
    return code


async def _interruptible(command: Callable[[Interruption], Coroutine[Any, Any, int]]) -> int:
    loop = asyncio.get_running_loop()
    interruption = Interruption()

    def interrupted() -> None:
        interruption.set()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupted)
    return await command(interruption)
