"""Records: what callers pass in, checked and measured, and the reports on what became of them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from aiokafka.errors import MessageSizeTooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from resilient_io.errors import Progress

Headers: TypeAlias = list[tuple[str, bytes | None]]
Serializer: TypeAlias = "Callable[[Any], bytes | None]"

# Bytes that a record costs besides its own: its tuple, its future, its place in a queue.
OVERHEAD = 256

_WITH_SERIALIZER = ("key", "value")

_PAIR = 2
_MAX_PARTITION = 2**31 - 1
_MAX_TIMESTAMP = 2**63


class OutgoingRecord(NamedTuple):
    """A record for `send_many` that has more than a key and a value.

    Attributes:
        value: Value, as the value serializer takes it.
        key: Key, as the key serializer takes it.
        headers: Pairs of a name and bytes.
        partition: Partition; None to let the key choose.
        timestamp_ms: Timestamp in milliseconds since 1970; None for now.
    """

    value: Any = None
    key: Any = None
    headers: Iterable[tuple[str, bytes | None]] | None = None
    partition: int | None = None
    timestamp_ms: int | None = None


def to_bytes(name: str, data: object) -> bytes | None:
    """Return a key or a value as bytes; mutable data is copied because the record may wait."""
    if data is None or isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    hint = f", or pass {name}_serializer= to the producer" if name in _WITH_SERIALIZER else ""
    raise TypeError(f"{name} must be bytes, not {type(data).__name__}; encode it{hint}")


def check_rare_fields(
    headers: Iterable[tuple[str, bytes | None]] | None,
    partition: int | None,
    timestamp_ms: int | None,
) -> tuple[Headers | None, int]:
    """Check the fields that most records do not have; return the headers and their size."""
    if partition is not None:
        if isinstance(partition, bool) or not isinstance(partition, int):
            raise TypeError(f"partition must be an int, not {partition!r}")
        if not 0 <= partition <= _MAX_PARTITION:
            raise ValueError(f"partition must be 0 or more, not {partition!r}")
    if timestamp_ms is not None:
        if isinstance(timestamp_ms, bool) or not isinstance(timestamp_ms, int):
            raise TypeError(
                f"timestamp_ms must be an int, not {timestamp_ms!r}; use int(time.time() * 1000)"
            )
        if not 0 <= timestamp_ms < _MAX_TIMESTAMP:
            raise ValueError(f"timestamp_ms must be 0 or more, not {timestamp_ms!r}")
    if not headers:
        return None, 0
    pairs: Headers = []
    size = 0
    for pair in headers:
        given: object = pair
        if not isinstance(given, tuple) or len(given) != _PAIR or not isinstance(given[0], str):
            raise TypeError(
                f"a header must be a pair of a name and bytes, not {type(pair).__name__}; use "
                f'headers=[("name", b"value")]'
            )
        name, value = pair
        data = to_bytes("a header's value", value)
        pairs.append((name, data))
        size += len(name.encode()) + len(data or b"") + 8
    return pairs, size


def check_function(name: str, function: object) -> None:
    """Check a serializer or partitioner."""
    if function is None:
        return
    if not callable(function):
        raise TypeError(f"{name} must be a function, not {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{name} must be a plain function, not an async one; await before you send")


def too_large(size: int, limit: int) -> Exception:
    """Return the error of a record that is larger than the producer accepts."""
    return MessageSizeTooLargeError(
        f"the record has {size} bytes, more than max_request_size={limit}; send less, or raise "
        f"max_request_size and the topic's max.message.bytes"
    )


@dataclass(slots=True)
class OffsetRange:
    """Where records of one partition were written.

    Attributes:
        first: Lowest offset; -1 if Kafka confirmed the records without it.
        last: Highest offset. Records of other producers may lie between.
        count: Number of records.
    """

    first: int
    last: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFailure:
    """One record that was not delivered, or whose outcome is unknown.

    Attributes:
        position: Its position among the given records, from 0; -1 for a record of `send`.
        topic: Its topic.
        partition: Its partition; None if it had not been chosen.
        key: Its key in bytes, or as it was given if a serializer raised.
        value: Its value in bytes, or as it was given if a serializer raised.
        headers: Its headers.
        timestamp_ms: Its timestamp, if one was given.
        error: The error that `send` would have raised.
        progress: How far it got. Only a record that was not sent or was refused may safely be sent
            again.
    """

    position: int
    topic: str
    partition: int | None
    key: object
    value: object
    headers: Headers | None
    timestamp_ms: int | None
    error: Exception
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryReport:
    """The outcomes of many records, returned by `send_many` and `aclose`.

    Attributes:
        delivered: Number of records that Kafka confirmed.
        failures: The other records, by position.
        offsets: Where the confirmed records were written, by partition.
        taken: Number of records taken from the source.
        complete: Whether the whole source was taken; not so when the time ended or Kafka went
            down first.
    """

    delivered: int = 0
    failures: tuple[DeliveryFailure, ...] = ()
    offsets: Mapping[int, OffsetRange] = field(default_factory=dict)
    taken: int = 0
    complete: bool = True

    @property
    def ok(self) -> bool:
        """Whether everything was taken and delivered."""
        return self.complete and not self.failures

    def of(self, progress: Progress) -> list[DeliveryFailure]:
        """Return the failures that got as far as this."""
        return [failure for failure in self.failures if failure.progress is progress]

    def check(self) -> None:
        """Raise the first failure's error, if there is one.

        Raises:
            Exception: The error that `send` would have raised for the first record that failed. A
                note says how many failed.
        """
        if not self.failures:
            return
        error = self.failures[0].error
        note = f"{len(self.failures)} of {self.taken} records failed, this one first"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise error


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerStats:
    """Counters since the producer was started; sizes in bytes.

    Attributes:
        delivered: Records that Kafka confirmed.
        ended: Records and calls that ended in an error, by its name.
        batches: Batches sent.
        in_flight: Batches sent that have no outcome yet.
        waiting: Records that wait to be sent. Those of one `send_many` for one partition may count
            as one.
        buffered: Bytes of records held. Each record counts as its own bytes and 256 more.
        callers_waiting: Callers that wait for room in the buffer.
        instances: aiokafka producers that were in service, the present one included.
        log_records_dropped: Log records of aiokafka that were counted instead of written.
        latency: The time within which 50 %, 90 %, 99 % and 99.9 % of the batches were confirmed
            after they were sent; empty before the first use.
        latency_total: The sum of those times in seconds.
        latency_counts: Non-empty histogram buckets as `(upper_bound_seconds, count)`; eight buckets
            per power of two.
    """

    delivered: int = 0
    ended: Mapping[str, int] = field(default_factory=dict)
    batches: int = 0
    in_flight: int = 0
    waiting: int = 0
    buffered: int = 0
    callers_waiting: int = 0
    instances: int = 0
    log_records_dropped: int = 0
    latency: Mapping[str, float | None] = field(default_factory=dict)
    latency_total: float = 0.0
    latency_counts: tuple[tuple[float, int], ...] = ()
