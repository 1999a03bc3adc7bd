"""Counters of a consumer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ConsumerCounters:
    """Counters that a consumer increments while it runs; see `ConsumerStats`."""

    records: int = 0
    unreadable: int = 0
    returned: int = 0
    commits: int = 0
    commits_failed: int = 0
    rebalances: int = 0
    lost: int = 0
    resumed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerStats:
    """Counters since the consumer was created.

    Attributes:
        records: Records received from Kafka, including those received again.
        unreadable: Records among them that a deserializer could not read.
        returned: Records that a loop left unhandled, and that are delivered again.
        outstanding: Records that were received and are not handled yet.
        partitions: Partitions that are assigned to this consumer.
        paused: Partitions among them that are paused.
        commits: Commits that Kafka accepted.
        commits_failed: Commits that failed or were not answered in time.
        rebalances: Number of times that the group assigned partitions.
        lost: Partitions that were lost before their offsets could be committed.
        resumed: Partitions that were assigned again, and where records that were handled but not
            yet committed were therefore not read again.
        instances: aiokafka instances that entered service; 1 if none had to be replaced.
        log_records_dropped: Log records of aiokafka that were suppressed.
    """

    records: int = 0
    unreadable: int = 0
    returned: int = 0
    outstanding: int = 0
    partitions: int = 0
    paused: int = 0
    commits: int = 0
    commits_failed: int = 0
    rebalances: int = 0
    lost: int = 0
    resumed: int = 0
    instances: int = 0
    log_records_dropped: int = 0
