"""What a consumer counts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from resilient_io.deadlines import current_deadline

from ..errors import KafkaDeadlineExceeded, KafkaUnavailable, meaning_of
from ..log_filter import quietly

if TYPE_CHECKING:
    from aiokafka import TopicPartition

    from .engine import Engine


@dataclass(slots=True)
class Counters:
    """Counted as it happens; see `ConsumerStats`."""

    records: int = 0
    unreadable: int = 0
    given_back: int = 0
    commits: int = 0
    commits_failed: int = 0
    rebalances: int = 0
    lost: int = 0
    carried: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerStats:
    """Counters since the consumer was made.

    Attributes:
        records: Records that came from Kafka, those that came again included.
        unreadable: Those among them that a deserialiser could not read.
        given_back: Records that a loop left behind, and that are handed out again.
        outstanding: Records that came and are not handled yet.
        partitions: Partitions that are ours.
        paused: Those among them that are paused.
        commits: Commits that Kafka accepted.
        commits_failed: Commits that failed or were not answered in time.
        rebalances: Times that the group gave us partitions.
        lost: Partitions that were lost without a chance to commit.
        carried: Partitions that came back, and where records that were handled but not committed
            were therefore not read again.
        instances: Instances of the driver that were put in service; 1 if none had to be replaced.
        dropped_logs: Records that the driver would have logged.
    """

    records: int
    unreadable: int
    given_back: int
    outstanding: int
    partitions: int
    paused: int
    commits: int
    commits_failed: int
    rebalances: int
    lost: int
    carried: int
    instances: int
    dropped_logs: int


def nothing_yet() -> ConsumerStats:
    """Return the counters of a consumer that was not used yet."""
    return ConsumerStats(**dict.fromkeys((f.name for f in fields(ConsumerStats)), 0))


_LAG = "lag"


async def ask_lag(engine: Engine, timeout: float | None) -> dict[TopicPartition, int]:
    """Ask for the end of each partition that is ours; see `ResilientKafkaConsumer.lag`."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    until = None if timeout is None else began + timeout
    instance = await engine.supervisor.ready(until, _LAG)
    outer = current_deadline()
    if outer is not None and (until is None or outer < until):
        until = outer
    held = engine.holdings.all
    try:
        async with asyncio.timeout_at(until):
            with quietly(engine.supervisor.tally):
                ends = await instance.end_offsets([holding.partition for holding in held])
    except TimeoutError as error:
        raise KafkaDeadlineExceeded(
            "the end offsets were not answered in time",
            dependency=engine.health.name,
            operation=_LAG,
            attempts=1,
            elapsed=loop.time() - began,
        ) from error
    except KafkaError as error:
        if meaning_of(error).kind == "permanent":
            raise
        raise KafkaUnavailable(
            "the end offsets could not be asked for",
            dependency=engine.health.name,
            operation=_LAG,
            attempts=1,
            elapsed=loop.time() - began,
        ) from error
    return {
        holding.partition: max(0, ends[holding.partition] - at)
        for holding in held
        if holding.partition in ends and (at := holding.counted) is not None
    }
