"""News for those who iterate: bounded to the newest, and never in anybody's way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Feed", "Watch"]

T = TypeVar("T")


class Feed(Generic[T]):
    """Holds the newest item, and wakes those who wait for one."""

    def __init__(self, newest: T) -> None:
        self.newest = newest
        self.number = 0
        self.closed = False
        self._waiting: list[asyncio.Future[None]] = []

    def publish(self, item: T) -> None:
        """Replace the newest item."""
        self.newest = item
        self.number += 1
        self._wake()

    def close(self) -> None:
        """End every iteration once it has seen the newest item."""
        self.closed = True
        self._wake()

    async def wait(self) -> None:
        """Return at the next `publish` or `close`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(None)


class Watch(Generic[T]):
    """An endless iteration over a feed: what is now, then the newest of what came since.

    It needs no clean-up: leaving it by `break` or by cancellation leaves nothing behind.
    """

    def __init__(self, feed: Feed[T]) -> None:
        self._feed = feed
        self._seen = -1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        feed = self._feed
        while self._seen == feed.number:
            if feed.closed:
                raise StopAsyncIteration
            await feed.wait()
        self._seen = feed.number
        return feed.newest
