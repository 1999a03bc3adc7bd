"""The records of one partition, in order: those that wait, and the batch that travels."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from aiokafka import TopicPartition
from aiokafka.structs import RecordMetadata

from .records import Headers

if TYPE_CHECKING:
    from resilient_io.kafka.protocols import BatchBuilder, ProducerDriver

    from .parcel import Parcel, Slice

__all__ = ["Cargo", "Entry", "Line", "Record", "tombstone"]

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
