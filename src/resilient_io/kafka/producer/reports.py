"""What became of many records: `send_many` and `aclose` return it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resilient_io.errors import Progress, ResilientIOError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .records import Headers


@dataclass(slots=True)
class OffsetRange:
    """Where records of one partition were written.

    Attributes:
        first: The least offset; -1 if Kafka confirmed them without telling.
        last: The greatest offset. Other producers' records may lie between.
        count: How many records.
    """

    first: int
    last: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFailure:
    """One record that was not delivered, or of which nobody can say.

    Attributes:
        position: Its place among the given records, from 0; -1 where there was no order.
        topic: Its topic.
        partition: Its partition; None when it had not been chosen.
        key: Its key in bytes, or as it was given when a serializer raised.
        value: Its value in bytes, or as it was given when a serializer raised.
        headers: Its headers.
        timestamp_ms: Its timestamp, if one was given.
        error: What `send` would have raised.
        progress: How far it got: only what was not sent, or was refused, may safely be sent again.
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


def progress_of(error: Exception) -> Progress:
    """Tell how far a record got that had been taken in; what is not our error is the broker's."""
    return error.progress if isinstance(error, ResilientIOError) else Progress.REFUSED


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryReport:
    """What became of many records.

    Attributes:
        delivered: How many Kafka confirmed.
        failures: The others, by their places.
        offsets: By partition, where the confirmed ones were written.
        taken: How many records were taken from what was given.
        complete: Whether all that was given was taken; not so when the time ended, or Kafka went
            down, before the source did.
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
        """Give the failures that got as far as this."""
        return [failure for failure in self.failures if failure.progress is progress]

    def check(self) -> None:
        """Raise the first failure's error, if there is one.

        Raises:
            Exception: What `send` would have raised for the first record that failed; a note says
                how many did.
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
        batches: Batches that were handed over.
        travelling: Batches that were handed over and are not settled.
        waiting: Records that wait to be handed over; those of one `send_many` for one partition may
            count as one.
        buffered: Bytes of records held, each counted as its own bytes and 256.
        callers_waiting: Callers that wait for room.
        instances: aiokafka instances that were in service, the present one included.
        log_records_dropped: Log records of aiokafka's that were counted instead of written.
        latency: The time within which 50 %, 90 %, 99 % and 99.9 % of the batches were confirmed,
            counted from their being handed over; empty before the first use.
        latency_total: All those times together, in seconds.
        latency_counts: The same as a histogram: pairs of the most seconds that belong to a bucket
            (eight to an octave) and how many batches took so long, without the empty ones.
    """

    delivered: int = 0
    ended: Mapping[str, int] = field(default_factory=dict)
    batches: int = 0
    travelling: int = 0
    waiting: int = 0
    buffered: int = 0
    callers_waiting: int = 0
    instances: int = 0
    log_records_dropped: int = 0
    latency: Mapping[str, float | None] = field(default_factory=dict)
    latency_total: float = 0.0
    latency_counts: tuple[tuple[float, int], ...] = ()
