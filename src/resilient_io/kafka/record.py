"""Records as the consumer hands them out, and how far those of a partition are handled."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from aiokafka import ConsumerRecord, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Sequence


class PartitionProgress:
    """How far the records of one partition are handled, for one assignment of it.

    Records are delivered in the order of their offsets and may be done in any order. The offset to
    commit is the one after the last record before which all records are done. Offsets may have
    gaps (compaction, transaction markers): only delivered records count. Each operation takes
    amortized constant time. A record that is done after the partition was revoked changes nothing.
    """

    __slots__ = ("_finished", "_last", "_waiting", "committable")

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()  # delivered, from the first not done; ascending
        self._finished: set[int] = set()  # done out of order; used only for membership tests
        # The offset to commit: the one after the contiguous done records; None before any.
        self.committable: int | None = None
        self._last = -1

    @property
    def outstanding(self) -> int:
        """Number of records that were delivered and are not done."""
        return len(self._waiting) - len(self._finished)

    @property
    def first_outstanding(self) -> int | None:
        """The lowest offset that was delivered and is not done; None if all are done."""
        return self._waiting[0] if self._waiting else None

    @property
    def finished(self) -> set[int]:
        """The offsets after the first outstanding one that are done; do not change it."""
        return self._finished

    def delivered(self, offset: int) -> None:
        """Note that a record was delivered; ignored if it was delivered before."""
        if offset > self._last:
            self._last = offset
            self._waiting.append(offset)

    def delivered_all(self, offsets: list[int]) -> None:
        """Note that several records were delivered, in ascending order."""
        if offsets and offsets[0] > self._last:
            self._last = offsets[-1]
            self._waiting.extend(offsets)
        else:
            for offset in offsets:
                self.delivered(offset)

    def done(self, offset: int) -> None:
        """Note that a record is done; ignored if it is done already or was never delivered."""
        waiting, finished = self._waiting, self._finished
        if waiting and offset == waiting[0]:
            waiting.popleft()
            while finished and waiting and waiting[0] in finished:
                offset = waiting.popleft()
                finished.remove(offset)
            self.committable = offset + 1
        elif waiting and waiting[0] < offset <= self._last:
            finished.add(offset)

    def reached(self, offset: int) -> None:
        """Note that every record before `offset` is done, delivered or not."""
        # Iteration uses this: it handles one record after the other and need not report each.
        waiting, finished = self._waiting, self._finished
        if waiting and waiting[-1] < offset:
            waiting.clear()
            finished.clear()
        while waiting and waiting[0] < offset:
            finished.discard(waiting.popleft())
        while finished and waiting and waiting[0] in finished:
            done = waiting.popleft()
            finished.remove(done)
            offset = done + 1
        if self.committable is None or offset > self.committable:
            self.committable = offset
        self._last = max(self._last, offset - 1)


class Record(ConsumerRecord[Any, Any]):
    """A record from Kafka: aiokafka's `ConsumerRecord`, and whether it has been handled.

    Two records are equal when they have the same topic, partition and offset.

    Attributes:
        topic: Topic name.
        partition: Partition number.
        offset: Position in the partition.
        timestamp: Milliseconds since 1970.
        timestamp_type: 0 if the producer set the timestamp, 1 if the broker did.
        key: The deserialized key; None if the record has none.
        value: The deserialized value; None for a tombstone.
        serialized_key_size: Size of the key in bytes, as received; -1 for None.
        serialized_value_size: Size of the value in bytes, as received; -1 for None.
        headers: Pairs of a name and bytes.
        error: The exception that a deserializer raised; None if the record is readable.
        handled: Whether `done()` was called.
        retries: The number of retry topics that the record has passed, in a handler of `run`.
    """

    key: Any  # depends on the deserializers: a type checker could only ask for None
    value: Any
    # Not set for each record, because most have none.
    headers: Sequence[tuple[str, bytes]] = ()
    checksum: int | None = None
    error: Exception | None = None
    handled: bool = False
    retries: int = 0
    _source: Record | None = None  # the record of a retry topic of which this is the original
    _progress: PartitionProgress
    _raw: tuple[bytes | None, bytes | None] | None = None  # set only if deserializers ran

    def done(self) -> None:
        """Mark the record as handled: its offset is committed once those before it are handled.

        Needed only before leaving an `async for` loop early, or for single records of a batch.
        It is idempotent, and has no effect once the partition belongs to another consumer.
        """
        if not self.handled:
            self.handled = True
            if self._source is None:
                self._progress.done(self.offset)
            else:
                self._source.done()

    @property
    def topic_partition(self) -> TopicPartition:
        """The topic and the partition, as a pair."""
        return TopicPartition(self.topic, self.partition)

    @property
    def raw_key(self) -> bytes | None:
        """The bytes of the key, as received."""
        key: bytes | None = self.key if self._raw is None else self._raw[0]
        return key

    @property
    def raw_value(self) -> bytes | None:
        """The bytes of the value, as received."""
        value: bytes | None = self.value if self._raw is None else self._raw[1]
        return value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return (self.offset, self.partition, self.topic) == (
            other.offset,
            other.partition,
            other.topic,
        )

    def __hash__(self) -> int:
        return hash((self.topic, self.partition, self.offset))

    def __repr__(self) -> str:
        """Return the position and the size, without the content: it may be confidential."""
        unreadable = "" if self.error is None else f", unreadable: {type(self.error).__name__}"
        return f"<Record {place_of(self)}, {max(self.serialized_value_size, 0)} bytes{unreadable}>"


class UnreadableRecord(Record):
    """A record whose key or value a deserializer could not read.

    Its `key` and `value` raise the deserializer's exception, so that a handler cannot mistake raw
    bytes for deserialized data; `raw_key` and `raw_value` return the bytes, and `error` the
    exception.
    """

    __hash__ = Record.__hash__

    @property
    def key(self) -> Any:  # type: ignore[override]
        """Raises the deserializer's exception."""
        raise self._reason()

    @property
    def value(self) -> Any:  # type: ignore[override]
        """Raises the deserializer's exception."""
        raise self._reason()

    def _reason(self) -> Exception:
        assert self.error is not None  # noqa: S101 (a record becomes unreadable with a reason)
        return self.error


def place_of(record: Record) -> str:
    """Return the position of a record for messages: "orders[0]@42"."""
    return f"{record.topic}[{record.partition}]@{record.offset}"
