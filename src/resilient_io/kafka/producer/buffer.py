"""How many bytes may be held, and who waits for room."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING

from aiokafka.errors import IllegalOperation, UnknownTopicOrPartitionError

from resilient_io.deadlines import current_deadline
from resilient_io.errors import ResilientIOError

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from .errors import Verdicts
    from .expiry import Expiry
    from .metadata import Topics
    from .options import DeliverySettings
    from .partitioner import Topic


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


_SWEEP_SPACING = 0.1
"""Least seconds between two looks for cancelled records when there is no room."""


class Call:
    """One call that has to wait.

    Attributes:
        operation: What it is called, for errors.
        began: When it began, in loop time.
        until: When it must end, in loop time; None for no bound.
        transaction: The one it belongs to.
    """

    __slots__ = ("began", "operation", "transaction", "until")

    def __init__(
        self, operation: str, began: float, until: float | None, transaction: object
    ) -> None:
        self.operation = operation
        self.began = began
        self.until = until
        self.transaction = transaction


class Admission:
    """Lets calls in, within their deadlines.

    Attributes:
        closed: Nobody is let in any more.
        transaction: Tells which transaction a call belongs to.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        room: Room,
        expiry: Expiry,
        health: Dependency,
        verdicts: Verdicts,
        policy: RetryPolicy,
        settings: DeliverySettings,
    ) -> None:
        self.closed = False
        self.transaction: Callable[[], object] = lambda: None
        self._topics = topics
        self._room = room
        self._expiry = expiry
        self._health = health
        self._verdicts = verdicts
        self._waits_while_down = policy.while_down == "wait"
        self._timeout = policy.deadline
        self._buffer = settings.buffer_bytes
        self._swept = -math.inf
        self._time = asyncio.get_running_loop().time

    def begin(self, operation: str, timeout: float | None = None) -> Call:
        """Begin a call that has to wait.

        Args:
            operation: What it is called.
            timeout: Its seconds; None for what the policy says. An enclosing deadline bounds it.
        """
        began = self._time()
        timeout = self._timeout if timeout is None else timeout
        until = None if timeout is None else began + timeout
        outer = current_deadline()
        if outer is not None and (until is None or outer < until):
            until = outer
        return Call(operation, began, until, self.transaction())

    @property
    def up(self) -> bool:
        """Whether calls are let in as far as Kafka is concerned."""
        return self._health.available or self._waits_while_down

    def check(self, call: Call) -> None:
        """Refuse a call that is not to wait.

        Raises:
            KafkaUnavailable: Kafka is down.
            KafkaDeadlineExceeded: Its time is over.
            KafkaClosed: The producer was closed.
        """
        if self.closed:
            raise self._verdicts.closed(operation=call.operation)
        if not self.up:
            raise self._verdicts.down(call.began, call.operation)
        if call.until is not None and call.until <= self._time():
            raise self._verdicts.too_late(call.began, call.operation)

    async def topic(self, name: str, call: Call) -> Topic:
        """Give a topic whose partitions are known.

        Raises:
            KafkaUnavailable: Kafka is down, and calls are not to wait for it.
            KafkaDeadlineExceeded: They were not known in time.
            KafkaClosed: The producer was closed meanwhile.
            KafkaError: The topic does not exist, or may not be seen.
        """
        self.check(call)
        topic = self._topics.known.get(name)
        if topic is None:
            try:
                topic = await self._topics.resolve(name, call.until)
            except ResilientIOError as told:
                told.operation = call.operation  # a copy of what all who look are told
                raise
            self.check(call)
        if topic is None:
            error = self._verdicts.too_late(call.began, call.operation)
            error.add_note(f"the partitions of topic {name!r} are not known yet")
            raise error
        return topic

    async def partition(self, topic: Topic, partition: int, call: Call) -> None:
        """See to it that a partition exists; one that is not known is asked for once.

        Raises:
            UnknownTopicOrPartitionError: There is none.
        """
        if partition not in topic.lines:
            await self._topics.look_again(call.until)
        if partition not in topic.lines:
            raise unknown_partition(topic, partition)

    async def room(self, size: int, call: Call) -> None:
        """Take bytes of the buffer, as soon as there are so many.

        Raises:
            KafkaOverloaded: There was no room in time.
            KafkaUnavailable: Kafka went down, and calls are not to wait for it.
            KafkaClosed: The producer was closed meanwhile.
            IllegalOperation: The transaction it belongs to has ended.
        """
        # The loop gets a turn after each burst: that is what sends the first batches off.
        await asyncio.sleep(0)
        self.check(call)
        if not self._room.has(size) and self._time() - self._swept >= _SWEEP_SPACING:
            self._swept = self._time()
            self._expiry.sweep()  # cancelled records may hold the room
        if not await self._room.take(size, call.until):
            if self.closed:
                raise self._verdicts.closed(operation=call.operation)
            raise self._verdicts.overloaded(call.began, self._buffer, call.operation)
        if self.closed or not self.up or self.transaction() is not call.transaction:
            self._room.release(size)
            self.check(call)
            raise IllegalOperation("the transaction ended while the call waited for room")


def unknown_partition(topic: Topic, partition: int | None) -> Exception:
    """Say that a topic has no such partition."""
    return UnknownTopicOrPartitionError(
        f"topic {topic.name!r} has no partition {partition}: it has {sorted(topic.lines)}"
    )
