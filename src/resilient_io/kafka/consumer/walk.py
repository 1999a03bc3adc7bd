"""What iterating over records and over batches have in common."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from resilient_io.deadlines import current_deadline
from resilient_io.kafka.errors import KafkaDeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .feed import Feed
    from .holdings import Holding

__all__ = ["POLL", "Walk"]

T = TypeVar("T")

POLL = 1.0
"""Longest wait for records, in seconds, before the driver is told again that we are alive."""

_LOOK = 0.02
"""Seconds between two looks at whether the record in hand was marked as handled."""


class Walk(Generic[T]):
    """What both ways have in common.

    Args:
        feed: Gives the records.
        enter: Called when it begins, with what it is; raises when somebody else takes records.
        left: Called when it is over.
    """

    what: ClassVar[str]

    def __init__(
        self, feed: Feed, enter: Callable[[Walk[Any]], Awaitable[None]], left: Callable[[], None]
    ) -> None:
        self._feed = feed
        self._enter = enter
        self._left = left
        self._asked: asyncio.Future[None] | None = None
        self._task: asyncio.Task[object] | None = None
        self._entered = False
        self._over = False
        self._finding = False
        self._noted: object = None

    def settle(self) -> None:
        """Tell the partitions how far they are handled."""

    def moved(self) -> bool:
        """Tell whether something new is in hand since this was asked last."""
        before, self._noted = self._noted, self._in_hand()
        return self._noted is not before

    def drop(self, gone: list[Holding]) -> None:
        """Hand out no more of what already came from these partitions."""
        raise NotImplementedError

    def hold(self) -> None:
        """Put back what already came and nobody has in hand: the feed hands out nothing now."""
        raise NotImplementedError

    async def drain(
        self,
        gone: list[Holding],
        timeout: float,
        asking: asyncio.Task[object] | None = None,
    ) -> None:
        """Hand out no more of these partitions; wait until what is in hand of them is handled.

        Args:
            gone: The partitions.
            timeout: Longest wait in seconds.
            asking: Who waits for it. When it is the one that iterates, there is no waiting: it
                cannot ask for the next meanwhile.
        """
        self.drop(gone)
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while self._holds(gone) and asking is not self._task:
            left = until - loop.time()
            if left <= 0 or not self._entered:
                break
            self._asked = self._asked or loop.create_future()
            await asyncio.wait([self._asked], timeout=min(_LOOK, left))
        self.settle()

    async def _begin(self) -> None:
        self._task = asyncio.current_task()
        if self._over:
            raise StopAsyncIteration
        if not self._entered:
            await self._enter(self)
            self._entered = True

    async def next(self) -> T:
        """Return the next; what was in hand before is handled.

        Raises:
            RuntimeError: Another task waits for the next one: it would take for handled what the
                other has in hand.
        """
        if self._finding:
            raise RuntimeError(
                "this iterator is in use by another task: take records in one loop, and share out "
                "the work with run(handler, concurrency=...)"
            )
        self._finding = True
        found: T | None = None
        try:
            await self._begin()
            self._finish()
            if self._asked is not None:
                if not self._asked.done():
                    self._asked.set_result(None)
                self._asked = None
            # Who handles records without ever waiting would keep everybody else from running.
            await asyncio.sleep(0)
            found = await self._find()
        finally:
            self._finding = False
            # Also when it is cancelled: the traceback holds the iterator, so nobody drops it.
            if found is None:
                self._suspend()
        if found is None:
            self._over = True
            raise StopAsyncIteration
        return found

    def leave(self) -> None:
        """End it: what is in hand and not handled is handed out again."""
        self._over = True
        self._suspend()

    def _suspend(self) -> None:
        """Let others take records, until the next is asked for."""
        if self._entered:
            self._entered = False
            self.settle()
            self._give_back()
            self._left()

    def _patience(self) -> float:
        """Give the seconds to wait for records now.

        Raises:
            KafkaDeadlineExceeded: The time of an enclosing `resilient_io.deadline` is used up.
        """
        at = current_deadline()
        if at is None:
            return POLL
        left = at - asyncio.get_running_loop().time()
        if left <= 0:
            raise KafkaDeadlineExceeded(
                "no record came in time", dependency=self._feed.name, operation=self.what
            )
        return min(POLL, left)

    async def _find(self) -> T | None:
        """Wait for the next; None once nothing comes any more."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Count what is in hand as handled."""
        raise NotImplementedError

    def _in_hand(self) -> object:
        raise NotImplementedError

    def _holds(self, gone: list[Holding]) -> bool:
        raise NotImplementedError

    def _give_back(self) -> None:
        raise NotImplementedError
