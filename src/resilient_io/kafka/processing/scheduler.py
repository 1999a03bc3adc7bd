"""The records in memory: which may be handled now, and which wait behind another one."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from aiokafka import TopicPartition

    from ..record import PartitionProgress, Record
    from .headers import PastFailures
    from .options import Order, RunLimits


class Action(enum.Enum):
    """What to do next with a record that has failed."""

    HANDLE = "handle"  # call the handler again
    RETRY_TOPIC = "retry topic"
    DEAD_LETTER = "dead letter"
    CALLBACK = "callback"  # call the application's `on_failure`
    SKIP = "skip"
    STOP = "stop"  # end `run` with the handler's exception


@dataclass(slots=True, eq=False)
class RetryState:
    """The failures of one record, and what to do next. Times are loop times."""

    first_failure: float
    last_failure: float
    error: Exception  # the last one of the handler, or that of the deserializer
    past: PastFailures
    action: Action = Action.HANDLE
    attempts: int = 0  # handler calls that count
    not_counted: int = 0  # failures that a required dependency caused
    outcome_unknown: int = 0  # handler calls that raised `OutcomeUnknown`
    action_failures: int = 0  # consecutive failures of the dead letter or of `on_failure`
    alone: bool = False  # whether a batch handler is called with this record only
    timer: asyncio.TimerHandle | None = None  # ends the backoff


_WHOLE_PARTITION = True  # the key of the only queue of a partition with order="partition"


class PartitionState:
    """The records of one partition, from its assignment until it is revoked."""

    def __init__(self, partition: TopicPartition, progress: PartitionProgress) -> None:
        self.partition = partition
        self.progress = progress
        # For each key of which a record is ready or being handled: the records behind it.
        self.queues: dict[Hashable, deque[Item] | None] = {}
        self.backing_off: dict[int, Item] = {}  # by offset
        self.revoked = False


Item: TypeAlias = "tuple[PartitionState, Record, RetryState | None]"
"""A record to handle, with its partition and, if it failed before, its retry state."""


class Scheduler:
    """Orders all records in memory.

    At most one record of a key is ready or being handled; the next ones wait in the key queue.
    When it is finished, the next one goes to the end of the ready queue, so that a busy key cannot
    starve the others.
    """

    def __init__(self, order: Order, limits: RunLimits, room: Callable[[], None]) -> None:
        self._by_key = order == "key"
        self._by_partition = order == "partition"
        self._room = room
        self._low_records = limits.records * 3 // 4
        self._low_bytes = limits.bytes * 3 // 4
        self.limits = limits
        self.ready: deque[Item] = deque()  # always the same object
        self.partitions: dict[TopicPartition, PartitionState] = {}
        self.records = 0  # in memory
        self.bytes = 0  # size of their keys and values
        self.awaits_room = False  # whether to call `room` once a quarter of the limits is free

    @property
    def full(self) -> bool:
        """Whether a bound is reached."""
        return self.records >= self.limits.records or self.bytes >= self.limits.bytes

    @property
    def backing_off(self) -> int:
        """Number of records that wait for the end of their backoff."""
        return sum(len(state.backing_off) for state in self.partitions.values())

    def open(self, partition: TopicPartition, progress: PartitionProgress) -> PartitionState:
        """Return the state of a partition; a new one if the partition was assigned again."""
        state = self.partitions.get(partition)
        if state is None or state.progress is not progress:
            if state is not None:
                self.withdraw([state])
            state = self.partitions[partition] = PartitionState(partition, progress)
        return state

    def admit(self, state: PartitionState, records: Sequence[Record]) -> None:
        """Add records of a partition, in the order of their offsets."""
        self.records += len(records)
        self.bytes += sum(
            [record.serialized_key_size + record.serialized_value_size for record in records]
        )
        ready = self.ready
        if not self._by_key and not self._by_partition:
            ready.extend(zip(repeat(state), records, repeat(None)))
            return
        queues, by_key = state.queues, self._by_key
        for record in records:
            key: Hashable = _WHOLE_PARTITION
            if by_key:
                raw = record._raw
                key = record.key if raw is None else raw[0]
                if key is None:  # no key, no order
                    ready.append((state, record, None))
                    continue
            if key not in queues:
                queues[key] = None
                ready.append((state, record, None))
            elif (waiting := queues[key]) is None:
                queues[key] = deque(((state, record, None),))
            else:
                waiting.append((state, record, None))

    def finish(self, state: PartitionState, record: Record) -> None:
        """Note that a record is settled: its offset may be committed, its key queue advances."""
        # Called once per record, so everything is inlined.
        state.progress.done(record.offset)
        key: Hashable = None
        if self._by_key:
            raw = record._raw
            key = record.key if raw is None else raw[0]
        elif self._by_partition:
            key = _WHOLE_PARTITION
        if key is not None:
            queues = state.queues
            waiting = queues.pop(key, None)
            if waiting:
                queues[key] = waiting
                self.ready.append(waiting.popleft())
        self.records -= 1
        self.bytes -= record.serialized_key_size + record.serialized_value_size
        if self.awaits_room:
            self._check_room()

    def forget(self, record: Record) -> None:
        """Remove a record from the account of the memory."""
        self.records -= 1
        self.bytes -= record.serialized_key_size + record.serialized_value_size
        if self.awaits_room:
            self._check_room()

    def _check_room(self) -> None:
        if self.records <= self._low_records and self.bytes <= self._low_bytes:
            self.awaits_room = False
            self._room()

    def key_of(self, record: Record) -> Hashable:
        """Return the key of a record's queue within its partition; None if it has no order."""
        if self._by_key:
            raw = record._raw
            key: Hashable = record.key if raw is None else raw[0]
            return key
        return _WHOLE_PARTITION if self._by_partition else None

    def behind(self, state: PartitionState, record: Record) -> deque[Item] | None:
        """Return the records that wait behind a record in its key queue."""
        return state.queues.get(self.key_of(record))

    def put_behind(self, state: PartitionState, record: Record, items: Iterable[Item]) -> None:
        """Put items into the key queue directly behind a record that is not finished."""
        followers = deque(items)
        if followers:
            key = self.key_of(record)
            followers.extend(state.queues.get(key) or ())
            state.queues[key] = followers

    def withdraw(self, states: Sequence[PartitionState]) -> None:
        """Drop the records of partitions, except those being handled: they will be read again."""
        for state in states:
            state.revoked = True
            dropped = [item for waiting in state.queues.values() if waiting for item in waiting]
            for item in state.backing_off.values():
                retry_state = item[2]
                if retry_state is not None and retry_state.timer is not None:
                    retry_state.timer.cancel()
                dropped.append(item)
            state.queues.clear()
            state.backing_off.clear()
            if self.partitions.get(state.partition) is state:
                del self.partitions[state.partition]
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
