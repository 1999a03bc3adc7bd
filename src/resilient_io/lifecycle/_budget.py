"""The time there is for ending, and how much of it each step may take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Budget"]

_LEAST = 1.0
"""Seconds kept for each step that comes later."""

_MOST = 0.25
"""Share of the time that is left which is kept for all of them at most: mostly they need little."""

_FORCE = 3.0
"""Seconds that a client may need beyond its timeout to end by force what does not end by itself."""


class Budget:
    """Each step may use what is not kept for those after it.

    Args:
        grace: Seconds for all steps together.
        began: Loop time from which they count.
    """

    def __init__(self, grace: float, began: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._grace = grace
        self._hurried: asyncio.Future[None] = self._loop.create_future()
        self._began = began
        self.until = began + grace

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return self._loop.time() - self._began

    @property
    def hurried(self) -> bool:
        """Whether it was told to hurry."""
        return self._hurried.done()

    @property
    def over(self) -> bool:
        """Whether more than the grace was used."""
        return self.spent > self._grace

    def hurry(self, seconds: float) -> None:
        """Leave only so many seconds from now on; whoever waits looks at the time again."""
        self.until = min(self.until, self._loop.time() + seconds)
        if not self._hurried.done():
            self._hurried.set_result(None)

    def share(self, after: int) -> float:
        """Give the seconds that the next step may take, with `after` steps behind it."""
        left = max(0.0, self.until - self._loop.time())
        return left - min(after * _LEAST, left * _MOST)

    async def wait(self, future: asyncio.Future[Any], seconds: Callable[[], float]) -> bool:
        """Wait for a future; False when it took too long.

        Args:
            future: What is waited for; it is not cancelled.
            seconds: Gives the longest wait; asked again, from that moment on, when there is a
                hurry.
        """
        until = self._loop.time() + seconds()
        while not future.done():
            watching = [future] if self.hurried else [future, self._hurried]
            hurried = self.hurried
            await asyncio.wait(
                watching,
                timeout=max(0.0, until - self._loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if hurried == self.hurried:
                break
            until = min(until, self._loop.time() + seconds())
        return future.done()

    @staticmethod
    def timeout_in(share: float) -> float:
        """Give the timeout for a client's `aclose`, so that ending by force fits in, too."""
        return share - min(_FORCE, share / 8)
