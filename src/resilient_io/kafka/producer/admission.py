"""What a call waits for before its records are taken in: Kafka, the topic, room in the buffer."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from aiokafka.errors import IllegalOperation, UnknownTopicOrPartitionError

from resilient_io.deadlines import current_deadline
from resilient_io.errors import ResilientIOError

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from .expiry import Expiry
    from .partitioning import Topic
    from .room import Room
    from .settings import DeliverySettings
    from .topics import Topics
    from .verdict import Verdicts

__all__ = ["Admission", "Call"]

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
