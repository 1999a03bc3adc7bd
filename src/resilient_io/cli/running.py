"""Runs a command in an event loop that Ctrl-C ends at once, whatever still hangs somewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from resilient_io.cli.exits import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Interruption", "run"]

_LEAVING = 0.1
"""Seconds that something interrupted gets to leave in good order."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(asyncio.Event):
    """Is set by the first Ctrl-C or SIGTERM. The second ends the process as it would any."""

    async def before(self, other: Coroutine[Any, Any, object]) -> bool:
        """Wait for something, but no longer than until the interruption; then it is cancelled.

        Cancelling cancels both.

        Args:
            other: What to wait for. What it raises is raised.

        Returns:
            Whether the interruption came before its end.
        """
        task = asyncio.create_task(other, name="until interrupted")
        mine = asyncio.create_task(self.wait(), name="interruption")
        try:
            await asyncio.wait([task, mine], return_when=asyncio.FIRST_COMPLETED)
            finished = task.done()
        finally:
            mine.cancel()
            task.cancel()
            await asyncio.wait([task, mine], timeout=_LEAVING)
        if finished:
            task.result()
        elif task.done() and not task.cancelled():
            task.exception()  # of its leaving: nobody waits for that any more
        return not finished


class _LookUps(ThreadPoolExecutor):
    """The loop's threads, counted: a resolver that hangs cannot be stopped, only left behind."""

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
    """Run a command to its end.

    Args:
        command: Takes the interruption, which it has to heed, and returns the exit code.
    """
    look_ups = _LookUps()
    runner = asyncio.Runner()
    try:
        runner.get_loop().set_default_executor(look_ups)
        try:
            code = runner.run(_interruptible(command))
        except KeyboardInterrupt:
            code = INTERRUPTED
        if look_ups.busy:
            # Python would wait for these threads, for as long as a resolver likes to be silent.
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
