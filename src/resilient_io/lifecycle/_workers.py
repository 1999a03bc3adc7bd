"""What a service does in tasks of the lifecycle's own, beside the body."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from resilient_io.deadlines import context_without_deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Workers"]


class Workers:
    """Runs each function once, in a task; tells of the first that fails.

    Args:
        failed: Called with the name and the error of the first that fails.

    Attributes:
        ending: Whether the lifecycle ends: from then on it is no failure to be cancelled.
    """

    def __init__(self, failed: Callable[[str, Exception], object]) -> None:
        self._failed = failed
        self._functions: list[Callable[[], Coroutine[Any, Any, object]]] = []
        self._tasks: list[asyncio.Task[object]] = []
        self.ending = False
        self.error: Exception | None = None

    def add(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run this one, too, once it is started."""
        self._functions.append(function)

    def start(self) -> None:
        """Run them."""
        for function in self._functions:
            name = getattr(function, "__name__", type(function).__name__)
            task = asyncio.get_running_loop().create_task(
                function(), name=f"resilient-io worker {name}", context=context_without_deadline()
            )
            task.add_done_callback(self._ended)
            self._tasks.append(task)

    @property
    def busy(self) -> list[asyncio.Task[object]]:
        """Those that still run."""
        return [task for task in self._tasks if not task.done()]

    def _ended(self, task: asyncio.Task[object]) -> None:
        name = task.get_name().rpartition(" ")[2]
        error: BaseException | None
        if not task.cancelled():
            error = task.exception()
        elif self.ending:
            return
        else:  # nobody would miss it otherwise
            error = RuntimeError(f"the worker {name} ended by a cancellation of its own")
        if isinstance(error, Exception) and self.error is None:
            self.error = error
            self._failed(name, error)
