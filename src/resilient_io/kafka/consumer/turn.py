"""Who takes the records of a consumer: one loop or one `run` at a time."""

from __future__ import annotations

import asyncio

__all__ = ["Turn"]


class Turn:
    """Given to one at a time."""

    __slots__ = ("_ending", "_waiting", "_who")

    def __init__(self) -> None:
        self._who: str | None = None
        self._ending = False
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self, who: str) -> None:
        """Take it; wait only for one that is ending by itself.

        Cancelling leaves at once, without it.

        Args:
            who: What is going to take records, in words.

        Raises:
            RuntimeError: Somebody has it.
        """
        while self._who is not None:
            if not self._ending:
                raise RuntimeError(
                    f"this consumer is {self._who} already: one loop or run() at a time; make a "
                    f"second consumer of the same group for more"
                )
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self._who = who

    def ending(self) -> None:
        """Say that who has it takes nothing more, and gives it back soon."""
        self._ending = self._who is not None

    def give_back(self) -> None:
        """Let others have it."""
        self._who = None
        self._ending = False
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
