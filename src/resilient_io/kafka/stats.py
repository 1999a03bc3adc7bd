"""Counters of a consumer and of one `run`."""

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
    already_handled: int = 0
    gaps: int = 0
    records_lost: int = 0


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
        already_handled: Records that were read again, but not delivered, because they had been
            handled before a restart or a rebalance.
        gaps: How often records were lost that Kafka no longer has; see `RecordsLost`.
        records_lost: Offsets that were skipped by these gaps, as far as their number is known.
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
    already_handled: int = 0
    gaps: int = 0
    records_lost: int = 0
    instances: int = 0
    log_records_dropped: int = 0


@dataclass(slots=True)
class RunCounters:
    """Counters that the components of a `run` increment; see `RunStats`."""

    handled: int = 0
    failed: int = 0
    not_counted: int = 0
    retried: int = 0
    sent_to_retry: int = 0
    dead_lettered: int = 0
    skipped: int = 0
    cancelled: int = 0
    pauses: int = 0

    @property
    def judged(self) -> int:
        """Number of calls whose outcome, success or failure, was due to the handler itself."""
        return self.handled + self.failed - self.not_counted

    @property
    def ended(self) -> int:
        """A number that grows whenever a call has ended or a record is finished."""
        return self.handled + self.failed + self.sent_to_retry + self.dead_lettered + self.skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStats:
    """Counters of one `run`.

    Attributes:
        handled: Records whose handler returned.
        failed: Records whose handler raised, counted for each call.
        not_counted: Failures among them that did not count as an attempt, because a required
            dependency caused them.
        retried: Handler calls beyond the first one for a record.
        sent_to_retry: Records written to a retry topic.
        dead_lettered: Records written to the dead-letter topic.
        skipped: Records that were given up without a dead letter.
        cancelled: Handlers that were cancelled because the drain timeout expired.
        in_flight: Records in memory: being handled, or waiting.
        in_flight_bytes: Size of their keys and values in bytes.
        ready: Records among them that wait only for a free handler.
        backing_off: Records among them that wait for the end of their backoff.
        handlers: Handlers that are running.
        allowed: Handlers that may run; 0 while a required dependency is down, or while the
            membership in the group is in doubt.
        pauses: How often handling paused because a required dependency was down.
    """

    handled: int
    failed: int
    not_counted: int
    retried: int
    sent_to_retry: int
    dead_lettered: int
    skipped: int
    cancelled: int
    in_flight: int
    in_flight_bytes: int
    ready: int
    backing_off: int
    handlers: int
    allowed: int
    pauses: int
