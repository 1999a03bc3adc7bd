"""Counters of a consumer, and how far it is behind the end of its partitions."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from resilient_io.deadlines import current_deadline, earlier

from ..errors import (
    KafkaDeadlineExceeded,
    KafkaUnavailable,
    classify_error,
    without_secrets,
)

if TYPE_CHECKING:
    from aiokafka import TopicPartition

    from ..connect import KafkaTarget
    from ..protocols import ConsumerDriver
    from ..supervisor import Supervisor
    from .assignment import Assignment


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

    records: int
    unreadable: int
    returned: int
    outstanding: int
    partitions: int
    paused: int
    commits: int
    commits_failed: int
    rebalances: int
    lost: int
    resumed: int
    instances: int
    log_records_dropped: int


def empty_consumer_stats() -> ConsumerStats:
    """Return the counters of a consumer that has not been used yet."""
    return ConsumerStats(**dict.fromkeys((field.name for field in fields(ConsumerStats)), 0))


_LAG = "lag"


async def query_lag(
    supervisor: Supervisor[ConsumerDriver],
    assignment: Assignment,
    target: KafkaTarget,
    dependency: str,
    timeout: float | None,
) -> dict[TopicPartition, int]:
    """Return the lag of each assigned partition; see `ResilientKafkaConsumer.lag`."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    until = None if timeout is None else began + timeout
    instance = await supervisor.ready(until, _LAG)
    assigned = assignment.all
    kind: type[KafkaDeadlineExceeded | KafkaUnavailable]
    failure: Exception
    try:
        async with asyncio.timeout_at(earlier(until, current_deadline())):
            with supervisor.driver_log.filtering():
                ends = await instance.end_offsets([each.partition for each in assigned])
    except TimeoutError as error:
        kind, reason, failure = KafkaDeadlineExceeded, "no end offsets came in time", error
    except KafkaError as error:
        kind, reason = KafkaUnavailable, "the end offsets could not be queried"
        failure = without_secrets(error, target.secrets())
    else:
        return {
            each.partition: lag
            for each in assigned
            if (lag := each.lag(ends.get(each.partition))) is not None
        }
    # Raised here, so that the driver's error, which may contain a secret, is not its context.
    if classify_error(failure).kind == "permanent":
        raise failure
    raise kind(
        reason,
        dependency=dependency,
        operation=_LAG,
        attempts=1,
        elapsed=loop.time() - began,
    ) from failure


def known_lag(assignment: Assignment) -> dict[TopicPartition, int]:
    """Return the lag by the end offsets that the latest fetches reported."""
    return {
        each.partition: lag
        for each in assignment.all
        if (lag := each.lag(each.end_offset)) is not None
    }
