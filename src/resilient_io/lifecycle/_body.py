"""The body of `async with Lifecycle(...)`: left by itself, or ended when its time is up."""

from __future__ import annotations

import asyncio

__all__ = ["Body"]


class Body:
    """The task that entered the block, until it leaves it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        self._cuts = 0
        self.gone: asyncio.Future[None] = self._loop.create_future()

    def leave(self) -> None:
        """It leaves, by itself or with an error."""
        if not self.gone.done():
            self.gone.set_result(None)

    def cut(self) -> None:
        """Cancel what it is doing."""
        if self._task is not None and not self.gone.done():
            self._cuts += 1
            self._task.cancel("the lifecycle ends the block that it is used in")

    def settle(self, error: BaseException | None) -> bool:
        """Take back our cancellations, as `asyncio.timeout` does.

        Returns:
            Whether the error is one of them, and nobody else's.
        """
        if self._task is None or asyncio.current_task() is not self._task:
            return False
        cuts, self._cuts = self._cuts, 0
        for _ in range(cuts):
            self._task.uncancel()
        ours = cuts > 0 and isinstance(error, asyncio.CancelledError)
        return ours and self._task.cancelling() <= self._cancelling
