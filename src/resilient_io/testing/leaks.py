"""Find what code leaves behind (tasks, sockets, messages to the loop) and where a task waits."""

from __future__ import annotations

import asyncio
import gc
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_STEPS: Final = 50
_POLL_INTERVAL: Final = 0.002
_OLDEST_GENERATION: Final = 2


class LeakWatch:
    """Compares the tasks and sockets of this process, and records warnings about unclosed ones.

    Enter it once around everything; `begin` and `end` enclose each piece.

    Args:
        settle: Seconds that tasks and sockets have to end on their own.
    """

    def __init__(self, settle: float) -> None:
        self._settle = settle
        self._loop = asyncio.get_running_loop()
        self._recorder = warnings.catch_warnings(record=True)
        self._warnings: list[warnings.WarningMessage] = []
        self._messages: list[str] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sockets: set[tuple[int, int]] = set()

    def __enter__(self) -> Self:
        gc.collect()  # leaks of earlier code are not blamed on the first piece
        self._previous_handler = self._loop.get_exception_handler()
        self._loop.set_exception_handler(self._record_message)
        self._warnings = self._recorder.__enter__()
        warnings.simplefilter("always", ResourceWarning)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._recorder.__exit__(kind, error, traceback)
        self._loop.set_exception_handler(self._previous_handler)
        for other in self._warnings:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)

    def begin(self) -> None:
        """Remember the present tasks and sockets."""
        self._tasks = asyncio.all_tasks()
        self._sockets = open_sockets()

    async def end(self) -> tuple[list[str], list[str], list[str]]:
        """Return descriptions of the new tasks, sockets and messages that do not go away.

        The tasks are cancelled, so that they do not disturb later pieces.
        """
        until = self._loop.time() + self._settle
        steps = _STEPS
        while (self._new_tasks() or open_sockets() - self._sockets) and (
            steps or self._loop.time() < until
        ):
            await asyncio.sleep(0 if steps else _POLL_INTERVAL)
            steps = max(0, steps - 1)
        tasks = self._new_tasks()
        names = sorted(map(repr, tasks))
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._settle)
        del tasks
        unclosed = self.collected(_OLDEST_GENERATION - 1)
        sockets = [f"file descriptor {fd}" for fd, _ in sorted(open_sockets() - self._sockets)]
        return names, unclosed + sockets, self.messages()

    def collected(self, generation: int = _OLDEST_GENERATION) -> list[str]:
        """Collect garbage, and return descriptions of the unclosed objects in it."""
        gc.collect(generation)
        unclosed = [each for each in self._warnings if each.category is ResourceWarning]
        for each in unclosed:
            self._warnings.remove(each)
        return [str(each.message) for each in unclosed]

    def messages(self) -> list[str]:
        """Return messages to the loop's exception handler since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def _new_tasks(self) -> list[asyncio.Task[Any]]:
        new = asyncio.all_tasks() - self._tasks
        return sorted(new, key=asyncio.Task.get_name)

    def _record_message(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._messages.append(context["message"] + (f": {error!r}" if error else ""))


def open_sockets() -> set[tuple[int, int]]:
    """Return the descriptors of this process that are sockets, each with its inode."""
    sockets = set()
    for path in Path("/dev/fd").iterdir():
        try:
            status = os.fstat(int(path.name))
        except OSError:  # the descriptor with which the folder was listed
            continue
        if stat.S_ISSOCK(status.st_mode):
            sockets.add((int(path.name), status.st_ino))
    return sockets


def place_of(awaited: object) -> str:
    """Return where the innermost coroutine that `awaited` waits for is suspended."""
    place = repr(awaited)
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None)
        if frame is None:
            break
        code = frame.f_code
        place = f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"
        awaited = getattr(awaited, "cr_await", None)
    return place
