"""What `ResilientKafkaProducer.stats()` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ProducerStats"]


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
