"""One record after the other, or batch after batch: handled when the next is asked for.

What the caller holds (an iterator) is apart from what the consumer holds (a walk): `break` and
exceptions drop the iterator, and nothing else would tell of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from .record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .feed import Feed
    from .holdings import Holding

__all__ = ["BatchIterator", "BatchWalk", "RecordIterator", "RecordWalk", "Walk"]

T = TypeVar("T")

_POLL = 1.0
"""Longest wait for records, in seconds, before the driver is told again that we are alive."""

_LOOK = 0.02
"""Seconds between two looks at whether the record in hand was marked as handled."""


class RecordIterator:
    """Iterates over records; made by `async for record in consumer`."""

    __slots__ = ("_walk",)

    def __init__(self, walk: RecordWalk) -> None:
        self._walk = walk

    def __aiter__(self) -> RecordIterator:
        return self

    async def __anext__(self) -> Record:
        walk = self._walk
        for record in walk.records:
            walk.hand = record
            return record
        return await walk.next()

    def __del__(self) -> None:
        self._walk.leave()

    async def aclose(self) -> None:
        """End the iteration; only needed for an iterator that is kept beyond its loop.

        What is in hand and not `done()` is handed out again by the next one.
        """
        self._walk.leave()


class BatchIterator:
    """Iterates over lists of records; made by `consumer.batches()`."""

    __slots__ = ("_walk",)

    def __init__(self, walk: BatchWalk) -> None:
        self._walk = walk

    def __aiter__(self) -> BatchIterator:
        return self

    async def __anext__(self) -> list[Record]:
        return await self._walk.next()

    def __del__(self) -> None:
        self._walk.leave()

    async def aclose(self) -> None:
        """End the iteration; only needed for an iterator that is kept beyond its loop.

        What is in hand and not `done()` is handed out again by the next one.
        """
        self._walk.leave()


class Walk(Generic[T]):
    """What both ways have in common.

    Args:
        feed: Gives the records.
        enter: Called when it begins, with what it is; raises when somebody else takes records.
        left: Called when it is over.
    """

    what: ClassVar[str]

    def __init__(
        self, feed: Feed, enter: Callable[[Walk[Any]], None], left: Callable[[], None]
    ) -> None:
        self._feed = feed
        self._enter = enter
        self._left = left
        self._asked: asyncio.Future[None] | None = None
        self._task: asyncio.Task[object] | None = None
        self._entered = False
        self._over = False
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

    def _begin(self) -> None:
        self._task = asyncio.current_task()
        if self._over:
            raise StopAsyncIteration
        if not self._entered:
            self._enter(self)
            self._entered = True

    async def next(self) -> T:
        """Return the next; what was in hand before is handled."""
        self._begin()
        found: T | None = None
        try:
            self._finish()
            if self._asked is not None:
                if not self._asked.done():
                    self._asked.set_result(None)
                self._asked = None
            # Who handles records without ever waiting would keep everybody else from running.
            await asyncio.sleep(0)
            found = await self._find()
        finally:
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


class RecordWalk(Walk[Record]):
    """One record after the other.

    Attributes:
        records: What is left of the records at hand.
        hand: The record that the caller has.
    """

    what = "iterating"

    def __init__(
        self, feed: Feed, enter: Callable[[Walk[Any]], None], left: Callable[[], None], most: int
    ) -> None:
        super().__init__(feed, enter, left)
        self.records: Iterator[Record] = iter(())
        self.hand: Record | None = None
        self._most = most
        self._chunks: list[tuple[Holding, list[Record]]] = []
        self._holding: Holding | None = None

    async def _find(self) -> Record | None:
        while not self._feed.closed:
            while self._chunks:
                holding, records = self._chunks.pop(0)
                if holding.open:
                    self._holding = holding
                    self.records = iter(records)
                    self.hand = next(self.records)
                    return self.hand
            self._chunks = await self._feed.next(self._most, _POLL)
        return None

    def settle(self) -> None:
        """Tell the partition in hand how far it is handled."""
        if self.hand is not None:
            self.hand._progress.reached(self.hand.offset + self.hand.handled)

    def _finish(self) -> None:
        hand = self.hand
        self.hand = self._holding = None
        if hand is not None:
            hand._progress.reached(hand.offset + 1)

    def drop(self, gone: list[Holding]) -> None:
        """See `Walk.drop`."""
        self._chunks = [chunk for chunk in self._chunks if chunk[0] not in gone]
        if self._holding in gone:
            self.records = iter(())

    def _in_hand(self) -> object:
        return self.hand

    def _holds(self, gone: list[Holding]) -> bool:
        return self.hand is not None and self._holding in gone and not self.hand.handled

    def _give_back(self) -> None:
        rest = list(self.records)
        if self.hand is not None and not self.hand.handled:
            rest.insert(0, self.hand)
        chunks = self._chunks
        if self._holding is not None:
            chunks = [(self._holding, rest), *chunks]
        for holding, records in chunks:
            self._feed.give_back(holding, records)
        self.records, self._chunks, self.hand, self._holding = iter(()), [], None, None


class BatchWalk(Walk[list[Record]]):
    """Batch after batch."""

    what = "iterating over batches"

    def __init__(
        self,
        feed: Feed,
        enter: Callable[[Walk[Any]], None],
        left: Callable[[], None],
        most: int,
        max_wait: float,
    ) -> None:
        super().__init__(feed, enter, left)
        self._most = most
        self._max_wait = max_wait
        self._gathered: list[tuple[Holding, list[Record]]] = []  # not handed out yet
        self._hand: list[tuple[Holding, list[Record]]] = []

    async def _find(self) -> list[Record] | None:
        while not self._feed.closed:
            await self._gather()
            if self._gathered and not self._feed.closed:
                self._hand, self._gathered = self._gathered, []
                return [record for _, records in self._hand for record in records]
        return None

    def _finish(self) -> None:
        for _, records in self._hand:
            records[-1]._progress.reached(records[-1].offset + 1)
        self._hand = []

    async def _gather(self) -> None:
        """Wait for records, and for as many as the caller allows time for."""
        loop = asyncio.get_running_loop()
        until: float | None = None
        while not self._feed.closed:
            count = sum(len(records) for _, records in self._gathered)
            if count and until is None:
                until = loop.time() + self._max_wait
            left = _POLL if until is None else min(_POLL, until - loop.time())
            if count >= self._most or left <= 0:
                return
            # Cancelled here, what was gathered stays for the next call.
            self._gathered += await self._feed.next(self._most - count, left)

    def drop(self, gone: list[Holding]) -> None:
        """See `Walk.drop`; what is in hand stays there, for the caller has it."""
        self._gathered = [chunk for chunk in self._gathered if chunk[0] not in gone]

    def _in_hand(self) -> object:
        return self._hand

    def _holds(self, gone: list[Holding]) -> bool:
        return any(
            holding in gone and not all(record.handled for record in records)
            for holding, records in self._hand
        )

    def _give_back(self) -> None:
        chunks, self._hand, self._gathered = [*self._hand, *self._gathered], [], []
        for holding, records in reversed(chunks):
            self._feed.give_back(holding, [record for record in records if not record.handled])
