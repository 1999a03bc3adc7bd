"""The records of one partition, in order: those that wait, and the batch that travels."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from aiokafka import TopicPartition
from aiokafka.structs import RecordMetadata

from .records import Headers
from .reports import DeliveryFailure, DeliveryReport, OffsetRange, progress_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..protocols import BatchBuilder, ProducerDriver


Record: TypeAlias = tuple[
    asyncio.Future[RecordMetadata],
    bytes | None,
    bytes | None,
    Headers | None,
    int | None,
    float,
    int,
    float,
]
"""The future, key, value, headers, timestamp (ms), until (loop time), size, sent (loop time).

A bare tuple, not a class: one is made for each record, on the hottest path there is.
"""

Entry: TypeAlias = "Record | Parcel"


class Line:
    """What waits for one partition, and the one batch of it that was handed over.

    Attributes:
        topic: The topic's name.
        partition: The partition's number.
        tp: Both, as aiokafka wants them.
        records: What waits, oldest first.
        position: How many entries have left `records` at its front, ever.
        waiting: Their size in bytes, as the buffer counts them.
        cargo: The batch that was handed over and is not settled.
        idle: Nothing waits and nothing travels, so nobody looks at it: the next record must call.
        held: Something waits, but cannot be handed over now.
        byte_limit: Most bytes of records in a batch, once the broker found one too large.
    """

    __slots__ = (
        "byte_limit",
        "cargo",
        "held",
        "idle",
        "partition",
        "position",
        "records",
        "topic",
        "tp",
        "waiting",
    )

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.tp = TopicPartition(topic, partition)
        self.records: deque[Entry] = deque()
        self.position = 0
        self.waiting = 0
        self.cargo: Cargo | None = None
        self.idle = True
        self.held = False
        self.byte_limit: int | None = None

    @property
    def end(self) -> int:
        """The position behind the newest entry."""
        return self.position + len(self.records)

    @property
    def settled_to(self) -> int:
        """The position before which every entry has an outcome."""
        if self.cargo is not None and not self.cargo.told:
            return self.cargo.position
        return self.position


class Cargo:
    """One batch that was handed over: maybe applied until it is settled.

    Attributes:
        line: Where it came from.
        instance: Which instance has it.
        batch: The driver's batch.
        entries: Its records, and its slices of parcels, in order.
        stamps: The timestamps of the single records, in order, in milliseconds.
        position: The position of its first entry in the line.
        count: How many records it has.
        size: Their bytes, as the buffer counts them.
        at: When it was handed over, in loop time.
        taken: The driver's own record of it; None until it took it.
        told: All its callers know the outcome, or that it is unknown.
    """

    __slots__ = (
        "at",
        "batch",
        "count",
        "entries",
        "instance",
        "line",
        "position",
        "size",
        "stamps",
        "taken",
        "told",
    )

    def __init__(
        self, line: Line, instance: ProducerDriver, batch: BatchBuilder, position: int, at: float
    ) -> None:
        self.line = line
        self.instance = instance
        self.batch = batch
        self.entries: list[Record | Slice] = []
        self.stamps: list[int] = []
        self.position = position
        self.count = 0
        self.size = 0
        self.at = at
        self.taken: object = None
        self.told = False


def tombstone(loop: asyncio.AbstractEventLoop) -> Record:
    """Make what takes the place of a record that has ended before its turn."""
    done: asyncio.Future[RecordMetadata] = loop.create_future()
    done.cancel()
    return (done, None, b"", None, 0, math.inf, 0, 0.0)


Item: TypeAlias = "tuple[int, bytes | None, bytes | None, Headers | None, int | None]"
"""The place among the given records, key, value, headers, timestamp (ms)."""


class Shipment:
    """One call of `send_many`: counts what becomes of its records.

    Attributes:
        cancelled: The caller has left: what was not handed over is dropped.
        failures: What failed so far.
        delivered: How many were confirmed so far.
    """

    __slots__ = ("_offsets", "_settled", "_waiter", "cancelled", "delivered", "failures", "taken")

    def __init__(self) -> None:
        self.cancelled = False
        self.failures: list[DeliveryFailure] = []
        self.delivered = 0
        self.taken = 0
        self._settled = 0
        self._offsets: dict[int, OffsetRange] = {}
        self._waiter: asyncio.Future[None] | None = None

    def confirm(self, partition: int, base: int, count: int) -> None:
        """Take the news that consecutive records were written from an offset on."""
        self.delivered += count
        known = self._offsets.get(partition)
        last = base + count - 1 if base >= 0 else -1
        if known is None:
            self._offsets[partition] = OffsetRange(base, last, count)
        else:
            known.first = min(known.first, base) if known.first >= 0 else base
            known.last = max(known.last, last)
            known.count += count
        self._settle(count)

    def fail(self, tp: TopicPartition, items: Iterable[Item], error: Exception) -> None:
        """Take the news that records failed, all for one reason."""
        count = 0
        for position, key, value, headers, stamp in items:
            count += 1
            self.failures.append(
                DeliveryFailure(
                    position=position,
                    topic=tp.topic,
                    partition=tp.partition,
                    key=key,
                    value=value,
                    headers=headers,
                    timestamp_ms=stamp,
                    error=error,
                    progress=progress_of(error),
                )
            )
        self._settle(count)

    def reject(self, failure: DeliveryFailure) -> None:
        """Take a record that never got to a partition."""
        self.failures.append(failure)
        self._settle(1)

    @property
    def outstanding(self) -> int:
        """How many records have no outcome yet."""
        return self.taken - self._settled

    async def settled(self) -> None:
        """Wait until every record taken so far has an outcome."""
        while self.outstanding:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def report(self, *, complete: bool) -> DeliveryReport:
        """Say what became of the records."""
        return DeliveryReport(
            delivered=self.delivered,
            failures=tuple(sorted(self.failures, key=lambda failure: failure.position)),
            offsets=dict(sorted(self._offsets.items())),
            taken=self.taken,
            complete=complete,
        )

    def _settle(self, count: int) -> None:
        self._settled += count
        if self._waiter is not None and self._settled >= self.taken and not self._waiter.done():
            self._waiter.set_result(None)


class Parcel:
    """Consecutive records of one shipment for one partition, one entry of its line.

    Attributes:
        shipment: Whose they are.
        items: The records.
        cursor: The first one that was not handed over.
        until: When they must be delivered, in loop time.
        sent: When they were given, in loop time.
        size: Their bytes, as the buffer counts them.
        left: Those among them that are still waiting.
    """

    __slots__ = ("cursor", "items", "left", "sent", "shipment", "size", "until")

    def __init__(
        self, shipment: Shipment, items: list[Item], size: int, sent: float, until: float
    ) -> None:
        self.shipment = shipment
        self.items = items
        self.cursor = 0
        self.size = size
        self.left = size
        self.sent = sent
        self.until = until

    def drop(self) -> None:
        """Have nothing more to hand over."""
        self.cursor, self.left = len(self.items), 0

    def share(self, count: int) -> int:
        """Give the bytes of that many records, and leave the rest for the others."""
        rest = len(self.items) - self.cursor
        part = self.left if count >= rest else self.size * count // len(self.items)
        self.left -= part
        return part


class Slice:
    """The part of a parcel that one batch carries.

    Attributes:
        parcel: Whose part.
        first: The place of its first record in the parcel.
        last: The place behind its last one.
        size: Its bytes, as the buffer counts them.
        told: Its shipment knows the outcome, or that it is unknown.
    """

    __slots__ = ("first", "last", "parcel", "size", "told")

    def __init__(self, parcel: Parcel, first: int, last: int, size: int) -> None:
        self.parcel = parcel
        self.first = first
        self.last = last
        self.size = size
        self.told = False

    @property
    def count(self) -> int:
        """How many records it has."""
        return self.last - self.first

    def confirm(self, tp: TopicPartition, base: int) -> None:
        """Tell the shipment that it was written."""
        if not self.told:
            self.told = True
            self.parcel.shipment.confirm(tp.partition, base, self.count)

    def fail(self, tp: TopicPartition, error: Exception) -> None:
        """Tell the shipment that it failed."""
        if not self.told:
            self.told = True
            self.parcel.shipment.fail(tp, self.parcel.items[self.first : self.last], error)
