"""Options of a consumer: what it reads, its own settings, and aiokafka's options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from aiokafka import AIOKafkaConsumer, TopicPartition

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_choice, check_count, check_number, check_seconds

from ..options import ClientOptions, Options, is_topic_name, split_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiokafka.abc import ConsumerRebalanceListener
    from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor

    from ..driver import ConsumerDriver
    from .assignor import CooperativeStickyAssignor
    from .positions import OnGap


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """When a consumer commits, and how long draining and closing may take.

    Args:
        commit_interval: Seconds between two background commits; None never commits: use it when a
            transaction commits the offsets (`transaction().send_offsets`).
        commit_records: Records received since the last background commit after which the next one
            is made, one at a time, so that a process that is killed redelivers few records also at
            a high rate; None commits at intervals only. Without an interval it has no effect.
        commit_timeout: Longest time for one commit, in seconds.
        drain_timeout: Seconds that records in hand get to be handled when their partition is
            revoked or the consumer is closed; then the handlers of `run` are cancelled. Together
            with `commit_timeout` it must stay below `rebalance_timeout_ms` (by default
            `session_timeout_ms`, 10 s), or the group continues without this member. At a
            rebalance, `run` shortens it to 80 % of that time, minus 1 s for the cleanup of
            cancelled handlers.
        close_timeout: Default timeout of `aclose()`, in seconds.
        stalled_after: Seconds after which a partition whose position does not move, although it
            has records to read, or whose fetches fail, makes health DEGRADED (`Cause.STALLED`, or
            `Cause.OPEN_TRANSACTION`), as does a rebalance that takes this long
            (`Cause.REBALANCING`); None disables this.
        gap_degraded_for: Seconds for which health is DEGRADED (`Cause.RECORDS_LOST`) after records
            were lost that Kafka no longer has.
        fetch_records: Largest number of records that iteration takes from aiokafka at once. The
            event loop runs other tasks in between.

    Raises:
        ConfigurationError: A value is out of range.
    """

    commit_interval: float | None = 1.0
    commit_records: int | None = 1000
    commit_timeout: float = 3.0
    drain_timeout: float = 5.0
    close_timeout: float = 10.0
    stalled_after: float | None = 60.0
    gap_degraded_for: float = 300.0
    fetch_records: int = 400  # twice as many would start the garbage collector each time

    def __post_init__(self) -> None:
        if self.commit_interval is not None:
            check_seconds("commit_interval", self.commit_interval)
        if self.commit_records is not None:
            check_count("commit_records", self.commit_records)
        check_seconds("commit_timeout", self.commit_timeout)
        check_number("drain_timeout", self.drain_timeout)
        check_seconds("close_timeout", self.close_timeout)
        if self.stalled_after is not None:
            check_seconds("stalled_after", self.stalled_after)
        check_seconds("gap_degraded_for", self.gap_degraded_for)
        check_count("fetch_records", self.fetch_records)


class ConsumerOptions(ClientOptions, total=False):
    """The options of aiokafka that a consumer passes on; see `aiokafka.AIOKafkaConsumer`."""

    group_instance_id: str | None
    fetch_max_wait_ms: int
    fetch_max_bytes: int
    fetch_min_bytes: int
    max_partition_fetch_bytes: int
    auto_offset_reset: Literal["earliest", "latest", "none"]
    check_crcs: bool
    partition_assignment_strategy: Sequence[
        type[AbstractPartitionAssignor | CooperativeStickyAssignor]
    ]
    max_poll_interval_ms: int
    rebalance_timeout_ms: int | None
    session_timeout_ms: int
    heartbeat_interval_ms: int
    consumer_timeout_ms: int
    exclude_internal_topics: bool
    isolation_level: Literal["read_uncommitted", "read_committed"]
    client_rack: str | None


_OWNED = {
    "enable_auto_commit": "leave it out: offsets are committed once their records are handled",
    "auto_commit_interval_ms": "use settings=ConsumerSettings(commit_interval=1.0), in seconds",
    "max_poll_records": "use settings=ConsumerSettings(fetch_records=1000), or "
    "batches(max_records=1000)",
}

# aiokafka 0.14's own defaults, in milliseconds.
_MAX_POLL_INTERVAL_MS = 300_000
_SESSION_TIMEOUT_MS = 10_000
_FETCH_MAX_WAIT_MS = 500

_MILLISECONDS = (
    "heartbeat_interval_ms",
    "max_poll_interval_ms",
    "session_timeout_ms",
    "rebalance_timeout_ms",
    "fetch_max_wait_ms",
)
_CHOICES = {
    "auto_offset_reset": ("earliest", "latest", "none"),
    "isolation_level": ("read_uncommitted", "read_committed"),
}


def split_consumer_options(options: Mapping[str, Any]) -> Options:
    """Return aiokafka's options, checked, and split into those for the cluster and the instance."""
    split = split_options(options, of=AIOKafkaConsumer, owned=_OWNED)
    for name in _MILLISECONDS:
        if name in split.own and (name, split.own[name]) != ("rebalance_timeout_ms", None):
            check_count(name, split.own[name])
    for name, choices in _CHOICES.items():
        if name in split.own:
            check_choice(name, split.own[name], choices)
    session = split.own.get("session_timeout_ms", _SESSION_TIMEOUT_MS)
    if split.own.get("heartbeat_interval_ms", 0) >= session:
        raise ConfigurationError(
            f"heartbeat_interval_ms={split.own['heartbeat_interval_ms']} is not shorter than "
            f"session_timeout_ms={session}: use at most a third of it, {session // 3}"
        )
    _check_assignors(split.own.get("partition_assignment_strategy", ()))
    return split


def _check_assignors(assignors: object) -> None:
    if not isinstance(assignors, list | tuple) or not all(hasattr(a, "assign") for a in assignors):
        raise ConfigurationError(
            f"partition_assignment_strategy={assignors!r} must be a list of assignors, for example "
            f"[CooperativeStickyAssignor]"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTimes:
    """Times that aiokafka's options imply, in seconds."""

    max_poll_interval: float
    session: float
    rebalance: float
    fetch: float

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GroupTimes:
        """Return the times of aiokafka's options, with aiokafka's defaults."""
        # aiokafka 0.14: without rebalance_timeout_ms, the group waits for session_timeout_ms.
        session = options.get("session_timeout_ms", _SESSION_TIMEOUT_MS)
        return cls(
            max_poll_interval=options.get("max_poll_interval_ms", _MAX_POLL_INTERVAL_MS) / 1000,
            session=session / 1000,
            rebalance=(options.get("rebalance_timeout_ms") or session) / 1000,
            fetch=options.get("fetch_max_wait_ms", _FETCH_MAX_WAIT_MS) / 1000,
        )


def check_on_gap(on_gap: OnGap) -> OnGap:
    """Return what to do about lost records, checked."""
    if isinstance(on_gap, str):
        check_choice("on_gap", on_gap, ("continue", "stop"))
    elif not callable(on_gap):
        raise TypeError(
            f'on_gap must be "continue", "stop" or a function, not {type(on_gap).__name__}'
        )
    return on_gap  # pyright: ignore[reportReturnType] - checked above


_PAIR = 2
_EXAMPLE = 'for example ResilientKafkaConsumer("orders", group_id="billing")'


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSubscription:
    """What a consumer reads."""

    topics: tuple[str, ...]
    pattern: str | None
    partitions: tuple[TopicPartition, ...]
    group: str | None
    retry_topics: tuple[str, ...] = ()  # read in addition, during a `run` with retry topics

    def __str__(self) -> str:
        what = self.pattern or ", ".join(
            self.topics or [f"{topic}[{number}]" for topic, number in self.partitions]
        )
        return what if self.group is None else f"{what} as {self.group}"

    def reads(self, topic: str) -> bool:
        """Return whether a topic is read."""
        if topic in self.topics or topic in self.retry_topics:
            return True
        return self.pattern is not None and re.match(self.pattern, topic) is not None

    def apply(self, instance: ConsumerDriver, listener: ConsumerRebalanceListener) -> None:
        """Subscribe a started instance, which then joins the group in the background."""
        if self.partitions:
            instance.assign(list(self.partitions))
        elif self.pattern is not None:
            further = [f"{re.escape(topic)}$" for topic in self.retry_topics]
            pattern = "|".join([f"(?:{self.pattern})", *further]) if further else self.pattern
            instance.subscribe(pattern=pattern, listener=listener)
        else:
            instance.subscribe(topics=[*self.topics, *self.retry_topics], listener=listener)


def check_subscription(
    topics: tuple[object, ...],
    pattern: str | None,
    partitions: Iterable[tuple[str, int]] | None,
    group: object,
) -> ConsumerSubscription:
    """Return what a consumer reads, checked."""
    if group is not None and (not isinstance(group, str) or not group):
        raise ConfigurationError(f"group_id={group!r} must be a non-empty string, {_EXAMPLE}")
    fixed = () if partitions is None else tuple(_check_partition(each) for each in partitions)
    given = [bool(topics), pattern is not None, bool(fixed)]
    if not any(given):
        raise ConfigurationError(
            f"no topics given: pass at least one topic, pattern= or partitions=, {_EXAMPLE}"
        )
    if sum(given) > 1:
        raise ConfigurationError(
            "topics, pattern= and partitions= are mutually exclusive: pass only one of them"
        )
    for topic in [*topics, *(each.topic for each in fixed)]:
        _check_topic(topic)
    if pattern is not None:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigurationError(
                f"pattern={pattern!r} is not a regular expression ({error}): use for example "
                f'pattern=r"orders\\..*"'
            ) from error
    if fixed and group is not None:
        raise ConfigurationError(
            "fixed partitions are read without a group: leave out group_id=, or pass topics and "
            "let the group assign their partitions"
        )
    return ConsumerSubscription(
        topics=tuple(str(topic) for topic in topics),
        pattern=pattern,
        partitions=fixed,
        group=group,
    )


def _check_topic(topic: object) -> None:
    if not isinstance(topic, str) or not topic:
        raise ConfigurationError(f"a topic must be a non-empty string, not {topic!r}: {_EXAMPLE}")
    if not is_topic_name(topic):
        raise ConfigurationError(
            f"{topic!r} is not the name of a topic: a name has at most 249 letters, digits, "
            f'".", "_" and "-"; for several topics, pass several names or pattern='
        )


def _check_partition(partition: object) -> TopicPartition:
    if isinstance(partition, tuple) and len(partition) == _PAIR:
        topic, number = partition
        if isinstance(topic, str) and topic and type(number) is int and number >= 0:
            return TopicPartition(topic, number)
    raise ConfigurationError(
        f"{partition!r} is not a partition: use for example "
        f'partitions=[TopicPartition("orders", 0)]'
    )
