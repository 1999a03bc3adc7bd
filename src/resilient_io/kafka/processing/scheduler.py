"""The records that wait: which may be handled now, and which wait behind another."""

from __future__ import annotations

from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from ..consumer.assignment import PartitionProgress
    from ..consumer.record import Record, TopicPartition
    from .options import Order, RunLimits
    from .retries import Case


_WHOLE_PARTITION = True  # the one line of a partition whose order is kept as a whole


class Flow:
    """One partition, from when it becomes ours until it is taken away.

    Attributes:
        partition: Its topic and number.
        progress: The account of what is done.
        lines: Those whose order matters and of whom one is ready or being handled, each with who
            waits behind it.
        resting: Items whose record failed and waits for its backoff to end, by offset.
        revoked: It is no longer ours: nothing more of it is handled.
    """

    __slots__ = ("lines", "partition", "progress", "resting", "revoked")

    def __init__(self, partition: TopicPartition, progress: PartitionProgress) -> None:
        self.partition = partition
        self.progress = progress
        self.lines: dict[Hashable, deque[Item] | None] = {}
        self.resting: dict[int, Item] = {}
        self.revoked = False


Item: TypeAlias = "tuple[Flow, Record, Case | None]"
"""A record to be handled, with where it belongs and, if it failed before, its history."""


class Backlog:
    """All records in memory, in the order in which they may be handled.

    At most one record of a line is ready or being handled; those behind it wait in the line. When
    it is finished, the next one goes to the end of the queue, so that a busy key cannot keep the
    others waiting.

    Attributes:
        ready: What may be handled now, first come first served. Always the same object.
        records: Records in memory.
        bytes: Bytes of their keys and values.
        awaits_room: Whether `room` is to be called once a quarter of the bounds is free.
    """

    __slots__ = (
        "_by_key",
        "_by_partition",
        "_low_bytes",
        "_low_records",
        "_room",
        "awaits_room",
        "bytes",
        "flows",
        "limits",
        "ready",
        "records",
    )

    def __init__(self, order: Order, limits: RunLimits, room: Callable[[], None]) -> None:
        self._by_key = order == "key"
        self._by_partition = order == "partition"
        self._room = room
        self._low_records = limits.records * 3 // 4
        self._low_bytes = limits.bytes * 3 // 4
        self.limits = limits
        self.ready: deque[Item] = deque()
        self.flows: dict[TopicPartition, Flow] = {}
        self.records = 0
        self.bytes = 0
        self.awaits_room = False

    @property
    def full(self) -> bool:
        """Whether a bound is reached."""
        return self.records >= self.limits.records or self.bytes >= self.limits.bytes

    @property
    def resting(self) -> int:
        """Records that wait for their backoff to end."""
        return sum(len(flow.resting) for flow in self.flows.values())

    def open(self, partition: TopicPartition, progress: PartitionProgress) -> Flow:
        """Return the flow of a partition; a new one when its assignment is a new one."""
        flow = self.flows.get(partition)
        if flow is None or flow.progress is not progress:
            if flow is not None:
                self.withdraw([flow])
            flow = self.flows[partition] = Flow(partition, progress)
        return flow

    def admit(self, flow: Flow, records: Sequence[Record]) -> None:
        """Take records of a partition, in the order of their offsets."""
        self.records += len(records)
        self.bytes += sum(
            [record.serialized_key_size + record.serialized_value_size for record in records]
        )
        ready = self.ready
        if not self._by_key and not self._by_partition:
            ready.extend(zip(repeat(flow), records, repeat(None)))
            return
        lines, by_key = flow.lines, self._by_key
        for record in records:
            item = (flow, record, None)
            key: Hashable = _WHOLE_PARTITION
            if by_key:
                raw = record._raw
                key = record.key if raw is None else raw[0]
                if key is None:  # no key, no order
                    ready.append(item)
                    continue
            if key not in lines:
                lines[key] = None
                ready.append(item)
            elif (waiting := lines[key]) is None:
                lines[key] = deque((item,))
            else:
                waiting.append(item)

    def finished(self, flow: Flow, record: Record) -> None:
        """A record is settled: its offset may be committed, the next in its line may go.

        Once per record, so it is all in one piece.
        """
        flow.progress.done(record.offset)
        key: Hashable = None
        if self._by_key:
            raw = record._raw
            key = record.key if raw is None else raw[0]
        elif self._by_partition:
            key = _WHOLE_PARTITION
        if key is not None:
            waiting = flow.lines.get(key)
            if waiting:
                self.ready.append(waiting.popleft())
            else:
                flow.lines.pop(key, None)
        self.records -= 1
        self.bytes -= record.serialized_key_size + record.serialized_value_size
        if self.awaits_room:
            self._look_for_room()

    def forget(self, record: Record) -> None:
        """A record leaves the memory."""
        self.records -= 1
        self.bytes -= size_of(record)
        if self.awaits_room:
            self._look_for_room()

    def _look_for_room(self) -> None:
        if self.records <= self._low_records and self.bytes <= self._low_bytes:
            self.awaits_room = False
            self._room()

    def key_of(self, record: Record) -> Hashable:
        """Return the line of a record in its partition; None if it is alone."""
        if self._by_key:
            raw = record._raw
            key: Hashable = record.key if raw is None else raw[0]
            return key
        return _WHOLE_PARTITION if self._by_partition else None

    def behind(self, flow: Flow, record: Record) -> deque[Item] | None:
        """Return who waits behind a record in its line, first come first."""
        return flow.lines.get(self.key_of(record))

    def put_behind(self, flow: Flow, record: Record, items: Iterable[Item]) -> None:
        """Put items into the line right behind a record that was not passed on."""
        followers = deque(items)
        if followers:
            key = self.key_of(record)
            followers.extend(flow.lines.get(key) or ())
            flow.lines[key] = followers

    def withdraw(self, flows: Sequence[Flow]) -> None:
        """Drop what is not being handled: it stays undone, so it will come again."""
        for flow in flows:
            flow.revoked = True
            dropped = [item for waiting in flow.lines.values() if waiting for item in waiting]
            for item in flow.resting.values():
                case = item[2]
                if case is not None and case.timer is not None:
                    case.timer.cancel()
                dropped.append(item)
            flow.lines.clear()
            flow.resting.clear()
            if self.flows.get(flow.partition) is flow:
                del self.flows[flow.partition]
            for _, record, _ in dropped:
                self.forget(record)
        kept = []
        for item in self.ready:
            if item[0].revoked:
                self.forget(item[1])
            else:
                kept.append(item)
        self.ready.clear()
        self.ready.extend(kept)


def size_of(record: Record) -> int:
    """Return the bytes of key and value; one or two less where there is none."""
    return record.serialized_key_size + record.serialized_value_size
