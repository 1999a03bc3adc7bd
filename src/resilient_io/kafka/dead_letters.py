"""Dead letters: read them, and send them to their original topics again.

A replay marks what it has sent by committing offsets for a group of its own, in the transaction in
which it sends. So it can be interrupted at any time: the next replay continues, and neither omits
nor repeats a dead letter, as seen by consumers of committed records.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aiokafka.errors import UnknownTopicOrPartitionError

from resilient_io.errors import ConfigurationError, DeadlineExceeded
from resilient_io.urls import read_kafka_url
from resilient_io.validation import check_count, check_name, check_seconds

from .consumer import ConsumerSettings, ResilientKafkaConsumer
from .consumer.commit_metadata import decode_metadata
from .errors import KafkaDeadlineExceeded
from .probe import MetadataQuery
from .processing import ADDED_HEADERS, header, number_header
from .producer import ResilientKafkaProducer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from datetime import datetime

    from aiokafka import TopicPartition

    from .consumer import Record

REPLAYS_HEADER = "x-replays"
"""The header that counts how often a record was replayed. It stays if the record fails again."""

_CHUNK = 100  # most dead letters in one transaction
_WAIT = 0.2  # seconds that a fetch waits for records
_CHECK_TIMEOUT = 2.0  # seconds for a broker to say whether the topic exists
_STAGGER = 0.2  # seconds until the next broker is asked, too
_JOIN_TIMEOUT = 30.0  # seconds until the partitions of the topic are assigned


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Which dead letters to read or to replay. What is None matches all.

    Args:
        topic: The original topic.
        since: The earliest time at which a dead letter was written; with a time zone.
        until: The time before which it was written; with a time zone.
        key: The whole key, as bytes, or as a string that is encoded in UTF-8.
        error: A text that the type or the message of the error contains.

    Raises:
        ConfigurationError: A time has no time zone, or is not a `datetime`.
    """

    topic: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    key: bytes | str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        for name, at in (("since", self.since), ("until", self.until)):
            if at is not None and getattr(at, "tzinfo", None) is None:
                raise ConfigurationError(
                    f"{name}={at!r} has no time zone: use for example "
                    f"datetime.now(timezone.utc) - timedelta(hours=1)"
                )

    def matches(self, letter: StoredDeadLetter) -> bool:
        """Return whether a dead letter is to be read."""
        written = letter.record.timestamp / 1000
        key = self.key.encode() if isinstance(self.key, str) else self.key
        return (
            (self.topic is None or letter.topic == self.topic)
            and (self.since is None or written >= self.since.timestamp())
            and (self.until is None or written < self.until.timestamp())
            and (key is None or letter.record.raw_key == key)
            and (self.error is None or self.error in f"{letter.error}: {letter.message}")
        )


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """A dead letter as it is stored in its topic.

    Attributes:
        record: The record in the topic of the dead letters. Its key and value are those of the
            original record.
    """

    record: Record

    @property
    def topic(self) -> str | None:
        """The original topic; None if the record was not written by this library."""
        return header(self.record, "x-original-topic")

    @property
    def partition(self) -> int | None:
        """The original partition."""
        return number_header(self.record, "x-original-partition")

    @property
    def offset(self) -> int | None:
        """The original offset."""
        return number_header(self.record, "x-original-offset")

    @property
    def timestamp(self) -> int | None:
        """The original timestamp, in milliseconds since 1970."""
        return number_header(self.record, "x-original-timestamp")

    @property
    def error(self) -> str:
        """The type of the error, for example "builtins.ValueError"."""
        return header(self.record, "x-error-type") or ""

    @property
    def message(self) -> str:
        """The message of the error."""
        return header(self.record, "x-error-message") or ""

    @property
    def attempts(self) -> int:
        """How often the handler was called."""
        return number_header(self.record, "x-attempts") or 0

    @property
    def replays(self) -> int:
        """How often the record was replayed before."""
        return number_header(self.record, REPLAYS_HEADER) or 0

    def original_headers(self) -> list[tuple[str, bytes]]:
        """Return the headers of the original record, and the number of this replay."""
        own = (*ADDED_HEADERS, REPLAYS_HEADER)
        kept = [(name, value) for name, value in self.record.headers if name not in own]
        return [*kept, (REPLAYS_HEADER, b"%d" % (self.replays + 1))]


@dataclass(slots=True)
class ReplayReport:
    """How many dead letters a replay has sent, and how many it left, and why.

    Attributes:
        replayed: Dead letters that were sent to their topics; with `dry_run`, those that would be.
        not_selected: Dead letters that the filter does not match. They stay.
        over_limit: Dead letters that were replayed `max_replays` times before. They stay.
        without_origin: Records that do not say where they come from. They stay.
    """

    replayed: int = 0
    not_selected: int = 0
    over_limit: int = 0
    without_origin: int = 0


async def read_dead_letters(
    url: str, topic: str, *, select: DeadLetterFilter | None = None, **options: Any
) -> AsyncGenerator[StoredDeadLetter]:
    """Iterate over the dead letters of a topic, those that were replayed included.

    It ends at the end that the topic had at the beginning. Use `contextlib.aclosing` to leave the
    loop early. Nothing is committed.

    Args:
        url: The cluster, as for `ResilientKafkaConsumer.from_url`.
        topic: The topic of the dead letters.
        select: Which dead letters to return; None for all.
        **options: Further options of `ResilientKafkaConsumer`.

    Raises:
        ConfigurationError: The URL or an option is wrong, or the topic does not exist.
        KafkaDeadlineExceeded: Kafka or the topic was not found within the policy's deadline.
        KafkaError: What Kafka refuses permanently.
    """
    select = select or DeadLetterFilter()
    reader = _Reader(url, check_name("topic", topic, example="orders.dead"), None, options)
    async with reader:
        async for _, letters in reader.chunks():
            for letter in letters:
                if select.matches(letter):
                    yield letter


async def replay_dead_letters(
    url: str,
    topic: str,
    *,
    select: DeadLetterFilter | None = None,
    dry_run: bool = False,
    rate: float = 100.0,
    max_replays: int = 3,
    group_id: str | None = None,
    progress: Callable[[ReplayReport], object] | None = None,
    **options: Any,
) -> ReplayReport:
    """Send the dead letters of a topic to their original topics again, once each.

    A record is sent with its original key, value, headers and timestamp, to its original partition
    if that still exists, and with the header `x-replays`. It is marked as replayed in the same
    transaction. Dead letters that are written meanwhile are left for the next replay. Two replays
    of a topic cannot run at the same time: the second one ends the first.

    Cancelling aborts the transaction that is open: what was sent in it counts as not replayed, and
    consumers of committed records never see it.

    Args:
        url: The cluster, as for `ResilientKafkaConsumer.from_url`.
        topic: The topic of the dead letters.
        select: Which dead letters to replay; None for all. The others stay for a later replay.
        dry_run: Only count.
        rate: Most records per second.
        max_replays: Dead letters that were replayed that often are not replayed again.
        group_id: The group whose offsets mark what was replayed; None for "TOPIC.replay".
        progress: Called after each transaction with the report so far.
        **options: Further options of the consumer and the producer, such as `policy=`.

    Returns:
        The counts.

    Raises:
        ConfigurationError: The URL or an option is wrong, or the topic does not exist.
        KafkaDeadlineExceeded: Kafka or the topic was not found within the policy's deadline.
        KafkaOutcomeUnknown: The answer to the commit of a transaction was lost.
        KafkaError: What Kafka refuses permanently, for example because another replay has begun.
    """
    select = select or DeadLetterFilter()
    check_name("topic", topic, example="orders.dead")
    check_seconds("rate", rate)
    check_count("max_replays", max_replays)
    group = group_id or f"{topic}.replay"
    report, pace = ReplayReport(), _Pace(rate)
    reader = _Reader(url, topic, group, options)
    producer = ResilientKafkaProducer.from_url(url, transactional_id=group, **options)
    async with reader, producer:
        async for partitions, letters in reader.chunks():
            chosen = [each for each in letters if _is_chosen(each, select, max_replays, report)]
            if chosen and not dry_run:
                async with producer.transaction() as transaction:
                    for letter in chosen:
                        await _send(producer, letter)
                        letter.record.done()
                    await transaction.send_offsets(reader.offsets(partitions), group)
            report.replayed += len(chosen)
            if progress is not None:
                progress(report)
            if not dry_run:
                await pace.wait(len(chosen))
    return report


def _is_chosen(
    letter: StoredDeadLetter, select: DeadLetterFilter, max_replays: int, report: ReplayReport
) -> bool:
    if letter.topic is None or letter.timestamp is None:
        report.without_origin += 1
    elif not select.matches(letter):
        report.not_selected += 1
    elif letter.replays >= max_replays:
        report.over_limit += 1
    else:
        return True
    return False


async def _send(producer: ResilientKafkaProducer, letter: StoredDeadLetter) -> None:
    assert letter.topic is not None  # noqa: S101 - it was chosen
    record = letter.record
    arguments: dict[str, Any] = {
        "value": record.raw_value,
        "key": record.raw_key,
        "timestamp_ms": letter.timestamp,
        "headers": letter.original_headers(),
    }
    try:
        await producer.send(letter.topic, partition=letter.partition, **arguments)
    except UnknownTopicOrPartitionError:
        # The topic has fewer partitions than it had; if it does not exist, this raises as well.
        await producer.send(letter.topic, **arguments)


class _Pace:
    """Limits how many records are sent per second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._due: float | None = None

    async def wait(self, count: int) -> None:
        """Wait until `count` more records may have been sent."""
        now = asyncio.get_running_loop().time()
        self._due = max(now, self._due or 0.0) + count / self._rate
        await asyncio.sleep(self._due - now)


class _Reader:
    """Reads a topic up to its present end. With a group, only what the group has not marked."""

    def __init__(self, url: str, topic: str, group: str | None, options: dict[str, Any]) -> None:
        self._topic = topic
        self._consumer = ResilientKafkaConsumer(
            topic,
            group_id=group,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            settings=ConsumerSettings(commit_interval=None),
            **(read_kafka_url(url) | options),
        )

    async def __aenter__(self) -> Self:
        await self._check_topic()
        await self._consumer.__aenter__()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._consumer.aclose()

    async def _check_topic(self) -> None:
        """Raise if the topic does not exist. The consumer would make the broker create it."""
        target = self._consumer._target
        async with MetadataQuery(target, timeout=_CHECK_TIMEOUT, topics=[self._topic]) as query:
            await query.start(target.addresses(), stagger=_STAGGER)
            response = await query.first()
        if response is not None and self._topic in response.metadata.missing:
            raise ConfigurationError(
                f"the topic {self._topic!r} does not exist in {self._consumer.health.name}: use "
                f"the name of a topic of dead letters"
            )

    def offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, Any]:
        """Return what to commit for partitions: the first offset that is not marked, and marks."""
        assignment = self._consumer._started().assignment
        found = {}
        for partition in partitions:
            assigned = assignment.get(partition)
            due = None if assigned is None else assigned.due
            if assigned is None or due is None:
                continue
            ahead = tuple(each for each in assigned.handled_ahead if each[0] > due.offset)
            if decode_metadata(due.metadata, due.offset).handled != ahead:
                raise ConfigurationError(
                    f"too many separate dead letters of {self._topic!r} were selected: Kafka has "
                    f"room for the marks of about 1,000. Replay without a filter, or by time"
                )
            found[partition] = due
        return found

    async def chunks(self) -> AsyncIterator[tuple[list[TopicPartition], list[StoredDeadLetter]]]:
        """Yield the next dead letters, and the partitions that they are in."""
        consumer = self._consumer
        await self._find_topic()
        fetcher = consumer._started().fetcher
        waiting: dict[TopicPartition, list[Record]] = {}
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT):
                while not consumer.assignment():
                    waiting |= await fetcher.fetch(_CHUNK, _WAIT)
        except TimeoutError:
            raise KafkaDeadlineExceeded(
                f"no partition of {self._topic!r} was assigned within {_JOIN_TIMEOUT:g} s",
                dependency=consumer.health.name,
                operation="read dead letters",
                elapsed=_JOIN_TIMEOUT,
            ) from None
        partitions = list(consumer.assignment())
        ends = await consumer.end_offsets(partitions)
        while waiting or not await self._ended(ends):
            for partition, records in waiting.items():
                letters = [
                    StoredDeadLetter(record)
                    for record in records
                    if record.offset < ends[partition]
                ]
                if letters:
                    yield [partition], letters
            if list(consumer.assignment()) != partitions:
                raise ConfigurationError(
                    f"another replay of {self._topic!r} has begun: wait until it has ended"
                )
            waiting = await fetcher.fetch(_CHUNK, _WAIT)

    async def _ended(self, ends: dict[TopicPartition, int]) -> bool:
        for partition, end in ends.items():
            if await self._consumer.position(partition) < end:
                return False
        return True

    async def _find_topic(self) -> None:
        try:
            await self._consumer.end_offsets([(self._topic, 0)])
        except DeadlineExceeded as error:
            error.add_note(f"does the topic {self._topic!r} exist?")
            raise
