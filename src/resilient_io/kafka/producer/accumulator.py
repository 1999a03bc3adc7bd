"""Takes records in: chooses their line, counts their bytes, and calls the courier once a tick."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING

from resilient_io.deadlines import current_deadline
from resilient_io.errors import ResilientIOError

from .buffer import Admission
from .expiry import Expiry
from .partition_queue import tombstone

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka.structs import RecordMetadata

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from .buffer import Room
    from .errors import Verdicts
    from .metadata import Topics
    from .options import DeliverySettings
    from .partition_queue import Line
    from .records import Headers
    from .sender import Courier

__all__ = ["OVERHEAD", "Accumulator"]

OVERHEAD = 256
"""Bytes that a record costs beside its own: its tuple, its future, its place in a line."""

_TURN = 2 * 1024 * 1024
"""Bytes of records made into batches before the loop gets a turn."""


class Accumulator:
    """Where records wait, one line for each partition.

    Attributes:
        loop: The event loop it works in.
        room: Bounds what is held.
        lines: Where the records wait.
        admission: What calls wait for before.
        expiry: Ends what is late.
        max_request_size: Bytes of the largest record that is taken.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        room: Room,
        courier: Courier,
        health: Dependency,
        verdicts: Verdicts,
        policy: RetryPolicy,
        settings: DeliverySettings,
        max_request_size: int,
        full: int,
    ) -> None:
        """Prepare.

        Args:
            topics: Know the lines.
            room: Bounds what is held.
            courier: Takes batches from the lines.
            health: Says whether Kafka is down.
            verdicts: Makes the errors.
            policy: What a call does while Kafka is down, and how long it may take.
            settings: Times and bounds.
            max_request_size: Bytes of the largest record that is taken.
            full: Bytes for which a line need not linger.
        """
        self.loop = asyncio.get_running_loop()
        self._topics = topics.known
        self.room = room
        self._courier = courier
        self._health = health
        self._verdicts = verdicts
        self._linger = settings.linger
        self.max_request_size = max_request_size
        self._full = full
        self._linger_full = full if settings.linger else math.inf
        self._lingering: dict[Line, asyncio.TimerHandle] = {}
        self._due: list[Line] = []
        self._scheduled = False
        self._time = self.loop.time
        self._create_future: Callable[[], asyncio.Future[RecordMetadata]]
        self._create_future = partial(asyncio.Future, loop=self.loop)
        self._progress: list[asyncio.Future[None]] = []
        self.lines = topics.lines
        self.expiry = Expiry(
            loop=self.loop,
            lines=topics.lines,
            room=room,
            verdicts=verdicts,
            health=health,
            suspicious=policy.response_timeout,
            tombstone=tombstone(self.loop),
            progressed=self.progressed,
        )
        self.admission = Admission(
            topics=topics,
            room=room,
            expiry=self.expiry,
            health=health,
            verdicts=verdicts,
            policy=policy,
            settings=settings,
        )

    # --- the way of a record

    def offer(  # noqa: C901, PLR0912, PLR0917 (the hottest path: calls and keywords cost)
        self,
        name: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        stamp: int | None,
        headers: Headers | None,
        size: int,
        lifetime: float,
    ) -> asyncio.Future[RecordMetadata] | None:
        """Take a record in, if that needs no waiting.

        Returns:
            Its future; None when `admit` has to be awaited instead.
        """
        topic = self._topics.get(name)
        if topic is None or not self._health.available:
            return None
        if partition is not None:
            line = topic.lines.get(partition)
            if line is None:
                return None
        elif key is None:
            line = topic.sticky
            if line is None or line.waiting >= topic.enough:
                line = topic.route(None)
        else:
            line = topic.keys.get(key)
            if line is None:
                line = topic.route(key)
        room = self.room
        allowance = room.allowance - size
        if allowance < 0:
            return None
        now = self._time()
        until = now + lifetime
        bound = current_deadline()
        if bound is not None and bound < until:
            if bound <= now:
                return None
            until = bound
        room.allowance = allowance
        if until < self.expiry.at:
            self.expiry.set(until)
        future = self._create_future()
        line.records.append((future, key, value, headers, stamp, until, size, now))
        line.waiting += size
        if line.idle:
            self.call(line)
        elif line.waiting >= self._linger_full:
            self._call_now(line)
        return future

    async def admit(  # noqa: PLR0917 (its twin)
        self,
        name: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        stamp: int | None,
        headers: Headers | None,
        size: int,
        lifetime: float,
        operation: str,
    ) -> asyncio.Future[RecordMetadata]:
        """Take a record in as soon as the topic is known and there is room.

        Cancelling leaves at once, and the record is not sent.

        Raises:
            KafkaUnavailable: Kafka is down, and calls are not to wait for it.
            KafkaDeadlineExceeded: The topic's partitions were not known in time.
            KafkaOverloaded: There was no room in time.
            KafkaClosed: The producer was closed meanwhile.
            KafkaError: The topic or the partition does not exist.
        """
        call = self.admission.begin(operation)
        try:
            topic = await self.admission.topic(name, call)
            if partition is not None:
                await self.admission.partition(topic, partition, call)
            await self.admission.room(size, call)
        except ResilientIOError as error:
            self._verdicts.count(error)
            raise
        routed = False
        try:
            line = topic.route(key) if partition is None else topic.lines[partition]
            routed = True
        finally:
            if not routed:  # the user's own partitioner raised
                self.room.release(size)
        now = self._time()
        # The call's own bound goes on from its beginning, the record's from here.
        ends = (call.began if operation == "send_and_wait" else now) + lifetime
        bound = current_deadline()
        if bound is not None and bound < ends:
            ends = bound
        self.expect(ends)
        future = self._create_future()
        line.records.append((future, key, value, headers, stamp, ends, size, now))
        line.waiting += size
        self.notice(line)
        return future

    # --- lines that call

    def expect(self, until: float) -> None:
        """See to it that the deadline is kept."""
        if until < self.expiry.at:
            self.expiry.set(until)

    def notice(self, line: Line) -> None:
        """Look at a line that has just got something."""
        if line.idle:
            self.call(line)
        elif line.waiting >= self._linger_full:
            self._call_now(line)

    def call(self, line: Line) -> None:
        """Have an idle line handed over: at the end of this tick, or after lingering."""
        line.idle = False
        if self._linger and line.waiting < self._full:
            self._lingering[line] = self.loop.call_later(self._linger, self._call_now, line)
            return
        self._due.append(line)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._hand_over)

    def hurry(self) -> None:
        """Linger no more: somebody waits for all that there is."""
        for line in list(self._lingering):
            self._call_now(line)

    def _call_now(self, line: Line) -> None:
        timer = self._lingering.pop(line, None)
        if timer is None:
            return  # it was called already, or it travels
        timer.cancel()
        self._due.append(line)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        due, self._due = self._due, []
        made = 0
        hand_over = self._courier.hand_over
        for place, line in enumerate(due):
            made += line.waiting
            hand_over(line)
            if made >= _TURN:
                self._due = due[place + 1 :] + self._due
                break
        self._scheduled = bool(self._due)
        if self._scheduled:
            self.loop.call_soon(self._hand_over)
        self.room.regrant()

    # --- waiting for the end

    def progressed(self) -> None:
        """Let those look who wait for records to be settled."""
        if self._progress:
            waiting, self._progress = self._progress, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    async def flushed(self, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Wait until every record taken in so far has an outcome, or there is no use in it."""
        self.hurry()
        targets = [(line, line.end) for line in self.lines]
        while True:
            targets = [(line, end) for line, end in targets if line.settled_to < end]
            if not targets or unless():
                return
            future: asyncio.Future[None] = self.loop.create_future()
            self._progress.append(future)
            await future

    def close(self) -> None:
        """Take nothing more in."""
        self.admission.closed = True
        self.room.close()
        self.hurry()

    def finish(self) -> None:
        """Keep no timer."""
        self.expiry.close()
        for timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()
