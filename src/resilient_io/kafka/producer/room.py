"""How many bytes may be held, and who waits for room."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Room"]


class Room:
    """Bounds the bytes that are held, and how many a tick of the loop may take in.

    The hot path only reads and lowers `allowance`; what it took is counted when somebody looks.

    Attributes:
        allowance: Bytes that may be taken without asking, now.
    """

    def __init__(self, limit: int, burst: int) -> None:
        """Begin empty.

        Args:
            limit: Most bytes held. One record that is larger is let in alone.
            burst: Most bytes taken in before the loop gets a turn: a caller that never waits would
                otherwise fill the buffer before the first batch leaves.
        """
        self.allowance = 0
        self._limit = limit
        self._burst = burst
        self._used = 0
        self._granted = 0
        self._waiters: deque[tuple[asyncio.Future[bool], int]] = deque()
        self.closed = False
        self.regrant()

    @property
    def used(self) -> int:
        """The bytes that are held."""
        return self._used + self._granted - self.allowance

    @property
    def waiting(self) -> int:
        """How many callers wait for room."""
        return len(self._waiters)

    def has(self, size: int) -> bool:
        """Tell whether there is room, and nobody waits for it."""
        return not self._waiters and self.used + size <= self._limit

    def regrant(self) -> None:
        """Let waiting callers in as far as there is room, then allow a new burst."""
        self._used += self._granted - self.allowance
        waiters = self._waiters
        while waiters:
            future, size = waiters[0]
            if future.done():  # given up, and about to leave
                waiters.popleft()
            elif self._fits(size):
                waiters.popleft()
                self._used += size
                future.set_result(True)
            else:
                break
        free = 0 if waiters or self.closed else max(0, self._limit - self._used)
        self._granted = self.allowance = min(free, self._burst)

    def release(self, size: int) -> None:
        """Give bytes back."""
        self._used -= size
        if self._waiters or self.allowance < self._burst:
            self.regrant()

    async def take(self, size: int, until: float | None) -> bool:
        """Wait for room in the order of calling, and take it.

        Cancelling leaves at once and takes nothing.

        Returns:
            Whether it was taken; not when the time ended or the room was closed.
        """
        self.regrant()
        if self.closed:
            return False
        if not self._waiters and self._fits(size):
            self._used += size
            self.regrant()
            return True
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append((future, size))
        self.regrant()
        taken = False
        try:
            async with asyncio.timeout_at(until):
                taken = await future
        except TimeoutError:
            pass
        finally:
            if not taken:
                self._give_up(future, size)
        return taken

    def close(self) -> None:
        """Let nobody in any more."""
        self.closed = True
        for future, _ in self._waiters:
            if not future.done():
                future.set_result(False)
        self._waiters.clear()
        self.regrant()

    def _fits(self, size: int) -> bool:
        return self._used + size <= self._limit or self._used <= 0

    def _give_up(self, future: asyncio.Future[bool], size: int) -> None:
        if future.done() and not future.cancelled() and future.result():
            self.release(size)  # granted in the moment of giving up
            return
        future.cancel()
        self.regrant()
