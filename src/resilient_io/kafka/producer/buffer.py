"""Buffer memory: how many bytes of records a producer holds, and which callers wait for room."""

from __future__ import annotations

import asyncio
from collections import deque


class BufferMemory:
    """Limits the bytes of records held, and the bytes accepted in one iteration of the event loop.

    The hot path only compares and lowers `allowance`; what it took is accounted for later.

    Args:
        limit: Maximum bytes held. One record that is larger is accepted when nothing else is held.
        burst: Maximum bytes accepted before other callbacks of the event loop run. Otherwise a
            caller that never waits would fill the buffer before the first batch leaves.

    Attributes:
        limit: As given.
        allowance: Bytes that may be taken now without calling `reserve`.
        closed: No more bytes are reserved.
    """

    def __init__(self, limit: int, burst: int) -> None:
        self.allowance = 0
        self.closed = False
        self.limit = limit
        self._burst = burst
        self._used = 0
        self._granted = 0
        self._waiters: deque[tuple[asyncio.Future[bool], int]] = deque()
        self.refill()

    @property
    def used(self) -> int:
        """The bytes held."""
        return self._used + self._granted - self.allowance

    @property
    def callers_waiting(self) -> int:
        """The number of callers that wait for room."""
        return len(self._waiters)

    def has_room(self, size: int) -> bool:
        """Return whether `size` bytes fit and no caller waits already."""
        return not self._waiters and self.used + size <= self.limit

    def refill(self) -> None:
        """Admit waiting callers in order as far as there is room, then renew the allowance."""
        self._used += self._granted - self.allowance
        waiters = self._waiters
        while waiters:
            future, size = waiters[0]
            if future.done():  # cancelled or timed out; about to leave
                waiters.popleft()
            elif self._fits(size):
                waiters.popleft()
                self._used += size
                future.set_result(True)
            else:
                break
        free = 0 if waiters or self.closed else max(0, self.limit - self._used)
        self._granted = self.allowance = min(free, self._burst)

    def release(self, size: int) -> None:
        """Release bytes that were reserved or taken."""
        self._used -= size
        if self._waiters or self.allowance < self._burst:
            self.refill()

    async def reserve(self, size: int, until: float | None) -> bool:
        """Wait for room, in the order of the calls, and take it.

        If cancelled, take nothing.

        Returns:
            Whether the bytes were taken: False if the time ended or the buffer was closed.
        """
        self.refill()
        if self.closed:
            return False
        if not self._waiters and self._fits(size):
            self._used += size
            self.refill()
            return True
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append((future, size))
        self.refill()
        taken = False
        try:
            async with asyncio.timeout_at(until):
                taken = await future
        except TimeoutError:
            pass
        finally:
            if not taken:
                self._withdraw(future, size)
        return taken

    def close(self) -> None:
        """Reserve nothing more; callers that wait are turned away."""
        self.closed = True
        for future, _ in self._waiters:
            if not future.done():
                future.set_result(False)
        self._waiters.clear()
        self.refill()

    def _fits(self, size: int) -> bool:
        return self._used + size <= self.limit or self._used <= 0

    def _withdraw(self, future: asyncio.Future[bool], size: int) -> None:
        if future.done() and not future.cancelled() and future.result():
            self.release(size)  # the room was granted while the caller was being cancelled
            return
        future.cancel()
        self.refill()
