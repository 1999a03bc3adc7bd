"""One record after the other, or batch after batch: handled when the next is asked for.

What the caller holds (an iterator) is apart from what the consumer holds (a walk): `break` and
exceptions drop the iterator, and nothing else would tell of them.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from resilient_io.deadlines import current_deadline

from ..errors import KafkaDeadlineExceeded
from .record import Record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from .assignment import Holding
    from .fetcher import Feed


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
