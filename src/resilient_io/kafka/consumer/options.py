"""What can be chosen for a consumer, beside the driver's own options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka import TopicPartition

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count, check_number, check_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiokafka.abc import ConsumerRebalanceListener

    from ..protocols import ConsumerDriver


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """When a consumer commits, and how long its ends may take.

    Args:
        commit_interval: Seconds between two commits in the background; None commits nothing, ever:
            for offsets that a transaction takes along (`transaction().send_offsets`).
        commit_timeout: Longest time for one commit, in seconds.
        drain_timeout: Seconds that a record or batch in hand gets to be handled, when its partition
            is revoked or the consumer is closed. Together with `commit_timeout` it must stay below
            `rebalance_timeout_ms` (by default `session_timeout_ms`, 10 s), or the group goes on
            without waiting for this member.
        close_timeout: Seconds within which `aclose()` ends when it is given no timeout.
        stalled_after: Seconds after which a partition that has records waiting, but does not move,
            makes health DEGRADED (`Cause.STALLED`); None never does.
        fetch_records: Most records that iteration takes from the driver at once. The event loop
            gets its turn in between.

    Raises:
        ConfigurationError: A value is out of range.
    """

    commit_interval: float | None = 1.0
    commit_timeout: float = 3.0
    drain_timeout: float = 5.0
    close_timeout: float = 10.0
    stalled_after: float | None = 60.0
    fetch_records: int = 1000

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.commit_interval is not None:
            check_seconds("commit_interval", self.commit_interval)
        check_seconds("commit_timeout", self.commit_timeout)
        check_number("drain_timeout", self.drain_timeout)
        check_seconds("close_timeout", self.close_timeout)
        if self.stalled_after is not None:
            check_seconds("stalled_after", self.stalled_after)
        check_count("fetch_records", self.fetch_records)


_PAIR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What a consumer reads.

    Attributes:
        topics: Names of topics.
        pattern: A regular expression that names of topics match from their beginning.
        partitions: Fixed partitions.
        group: The group's id; None reads alone.
    """

    topics: tuple[str, ...]
    pattern: str | None
    partitions: tuple[TopicPartition, ...]
    group: str | None

    def apply(self, instance: ConsumerDriver, listener: ConsumerRebalanceListener) -> None:
        """Tell a started instance; it joins the group by itself."""
        if self.partitions:
            instance.assign(list(self.partitions))
        elif self.pattern is not None:
            instance.subscribe(pattern=self.pattern, listener=listener)
        else:
            instance.subscribe(topics=list(self.topics), listener=listener)


def subscription_to(
    topics: tuple[object, ...],
    pattern: str | None,
    partitions: Iterable[tuple[str, int]] | None,
    group: object,
) -> Subscription:
    """Check what is to be read.

    Raises:
        ConfigurationError: It is nothing, or said twice; the message says what to write.
    """
    example = 'write ResilientKafkaConsumer("orders", group_id="billing")'
    if group is not None and (not isinstance(group, str) or not group):
        raise ConfigurationError(
            f"group_id={group!r} must be a string that is not empty: {example}"
        )
    fixed = () if partitions is None else tuple(_checked(partition) for partition in partitions)
    given = [bool(topics), pattern is not None, bool(fixed)]
    if sum(given) != 1:
        what = "nothing" if not any(given) else "topics, pattern= or partitions= together"
        raise ConfigurationError(f"the consumer is to read {what}: {example}")
    for topic in topics:
        if not isinstance(topic, str) or not topic:
            raise ConfigurationError(f"a topic is a name, not {topic!r}: {example}")
    if pattern is not None:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigurationError(
                f"pattern={pattern!r} is no regular expression ({error}): "
                f'write pattern=r"orders\\..*"'
            ) from error
    if fixed and group is not None:
        raise ConfigurationError(
            "fixed partitions are read without a group: leave group_id= out, or name topics and "
            "let the group share them out"
        )
    return Subscription(
        topics=tuple(str(topic) for topic in topics),
        pattern=pattern,
        partitions=fixed,
        group=group,
    )


def _checked(partition: object) -> TopicPartition:
    if isinstance(partition, tuple) and len(partition) == _PAIR:
        topic, number = partition
        if isinstance(topic, str) and topic and type(number) is int and number >= 0:
            return TopicPartition(topic, number)
    raise ConfigurationError(
        f'{partition!r} is no partition: write partitions=[TopicPartition("orders", 0)]'
    )
