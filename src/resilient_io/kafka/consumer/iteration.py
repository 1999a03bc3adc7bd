"""One record after the other, or batch after batch: handled when the next is asked for.

What the caller holds (an iterator) is apart from what the consumer holds (a walk): `break` and
exceptions drop the iterator, and nothing else would tell of them.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from resilient_io.deadlines import current_deadline

from .record import Record
from .walk import POLL, Walk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from .feed import Feed
    from .holdings import Holding

__all__ = ["BatchIterator", "BatchWalk", "RecordIterator", "RecordWalk"]


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


class RecordWalk(Walk[Record]):
    """One record after the other.

    Attributes:
        records: What is left of the records at hand.
        hand: The record that the caller has.
    """

    what = "iterating"

    def __init__(
        self,
        feed: Feed,
        enter: Callable[[Walk[Any]], Awaitable[None]],
        left: Callable[[], None],
        most: int,
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
            self._chunks = await self._feed.next(self._most, self._patience())
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

    def hold(self) -> None:
        """See `Walk.hold`."""
        chunks, rest = self._chunks, list(self.records)
        if self._holding is not None:
            chunks = [(self._holding, rest), *chunks]
        for holding, records in chunks:
            self._feed.put_back(holding, records)
        self.records, self._chunks = iter(()), []

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
        enter: Callable[[Walk[Any]], Awaitable[None]],
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
                until = min(loop.time() + self._max_wait, current_deadline() or math.inf)
            left = self._patience() if until is None else min(POLL, until - loop.time())
            if count >= self._most or left <= 0:
                return
            # Cancelled here, what was gathered stays for the next call.
            found = await self._feed.next(self._most - count, left)
            self._gathered += found  # only now: what was gathered may have been dropped meanwhile

    def drop(self, gone: list[Holding]) -> None:
        """See `Walk.drop`; what is in hand stays there, for the caller has it."""
        self._gathered = [chunk for chunk in self._gathered if chunk[0] not in gone]

    def hold(self) -> None:
        """See `Walk.hold`."""
        chunks, self._gathered = self._gathered, []
        for holding, records in reversed(chunks):
            self._feed.put_back(holding, records)

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
