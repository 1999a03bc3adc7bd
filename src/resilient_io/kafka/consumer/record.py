"""A record, as the consumer hands it out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiokafka import ConsumerRecord, TopicPartition

if TYPE_CHECKING:
    from .assignment import PartitionProgress

__all__ = ["Record", "TopicPartition", "UnreadableRecord"]


class Record(ConsumerRecord[Any, Any]):
    """A record from Kafka: aiokafka's `ConsumerRecord`, and whether it is handled.

    Two records are equal when they have the same topic, partition and offset.

    Attributes:
        topic: The topic it comes from.
        partition: The number of its partition.
        offset: Its place in the partition.
        timestamp: Milliseconds since 1970.
        timestamp_type: 0: set by the producer; 1: set by the broker.
        key: The key, deserialised; None if it has none.
        value: The value, deserialised; None for a tombstone.
        serialized_key_size: Bytes of the key as it came; -1 for None.
        serialized_value_size: Bytes of the value as it came; -1 for None.
        headers: Pairs of a name and bytes.
        error: What a deserialiser raised; None when it is readable.
        handled: Whether `done()` was called.
    """

    key: Any  # what it is depends on the deserialisers: no type checker can ask for None alone
    value: Any
    error: Exception | None = None
    handled: bool = False
    _progress: PartitionProgress
    _raw: tuple[bytes | None, bytes | None] | None = None  # only when it was deserialised

    def done(self) -> None:
        """Mark it as handled: its offset may be committed, once those before it are handled.

        Only needed where leaving could mean the opposite: before leaving an `async for` early,
        or for single records of a batch. Twice does no harm, and neither does one whose
        partition went to another consumer: nothing is committed for it here.
        """
        if not self.handled:
            self.handled = True
            self._progress.done(self.offset)

    @property
    def topic_partition(self) -> TopicPartition:
        """Its topic and partition, as a pair."""
        return TopicPartition(self.topic, self.partition)

    @property
    def raw_key(self) -> bytes | None:
        """The key's bytes as they came."""
        key: bytes | None = self.key if self._raw is None else self._raw[0]
        return key

    @property
    def raw_value(self) -> bytes | None:
        """The value's bytes as they came."""
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
        """Say where it is and how large; what it holds may be nobody's business."""
        unreadable = "" if self.error is None else f", unreadable: {type(self.error).__name__}"
        return (
            f"<Record {self.topic}[{self.partition}]@{self.offset}, "
            f"{max(self.serialized_value_size, 0)} bytes{unreadable}>"
        )


class UnreadableRecord(Record):
    """A record whose key or value a deserialiser could not read.

    Its `key` and `value` raise what the deserialiser raised, so that nobody handles bytes for
    what they should have been; `raw_key` and `raw_value` have the bytes, `error` the reason.
    """

    __hash__ = Record.__hash__

    @property
    def key(self) -> Any:  # type: ignore[override]
        """Raises what the deserialiser raised."""
        raise self._reason()

    @property
    def value(self) -> Any:  # type: ignore[override]
        """Raises what the deserialiser raised."""
        raise self._reason()

    def _reason(self) -> Exception:
        if self.error is None:  # pragma: no cover - made only with a reason
            message = "an unreadable record without a reason"
            raise AssertionError(message)
        return self.error
