"""Topics in which failed records wait until their handler is called again.

A record that waits in memory holds back the commit of its partition. So a record that is to wait
for minutes is written to a retry topic, and its offset is committed. The consumer reads that topic
as well, and holds each of its partitions until its first record is due.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resilient_io import wall_clock
from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_name, check_seconds

from .headers import PastFailures, header, number_header, original_record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from ..record import Record

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DELAY = re.compile(r"(?:^|[._-])(\d+)(ms|s|m|h|d)$")
_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class RetryTopic:
    """A topic in which failed records wait, for `run(retry_topics=[...])`.

    Args:
        name: Topic name. The topic must exist.
        delay: Seconds that a record waits in it.

    Raises:
        ConfigurationError: The name is not one that Kafka accepts, or the delay is not a number
            above 0.
    """

    name: str
    delay: float

    def __post_init__(self) -> None:
        check_name("name", self.name, example="orders.retry.10m")
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"{self.name!r} is not a topic name: use at most 249 letters, digits, dots, "
                f"hyphens and underscores"
            )
        check_seconds("delay", self.delay)

    @classmethod
    def from_name(cls, name: str) -> RetryTopic:
        """Return a topic with the delay at the end of its name."""
        found = _DELAY.search(name)
        if found is None:
            raise ConfigurationError(
                f"no delay in the name {name!r}: use a name that ends with one, such as "
                f'"orders.retry.30s", "orders.retry.10m" or "orders.retry.1h", or '
                f"RetryTopic({name!r}, delay=600.0), in seconds"
            )
        number, unit = found.groups()
        return cls(name, int(number) * _UNITS[unit])


class RetryTopics:
    """The retry topics of a `run`, in the order in which a record passes them."""

    def __init__(self, topics: Sequence[RetryTopic], group: str) -> None:
        self.names = tuple(dict.fromkeys(topic.name for topic in topics))
        self._topics = topics
        self.delays = {topic.name: topic.delay for topic in topics}
        self._group = group

    def next_of(self, record: Record) -> RetryTopic | None:
        """Return the topic in which a record waits after it has failed; None after the last."""
        passed = self._passed(record)
        return self._topics[passed] if passed < len(self._topics) else None

    def headers_for(self, record: Record, topic: RetryTopic) -> list[tuple[str, bytes]]:
        """Return the headers that a record has in a retry topic only."""
        due = math.ceil((wall_clock.now() + topic.delay) * 1000)
        return [
            ("x-retries", b"%d" % (self._passed(record) + 1)),
            ("x-retry-due", b"%d" % due),
            ("x-retry-group", self._group.encode()),
        ]

    # --- records of retry topics

    def is_of_other_group(self, record: Record) -> bool:
        """Return whether another group has written a record, and handles it itself."""
        return header(record, "x-retry-group") not in (None, self._group)

    def seconds_until_due(self, record: Record) -> float:
        """Return how many seconds a record must still wait; 0 if it is due."""
        due = number_header(record, "x-retry-due")
        if due is None:  # it was written by another program
            return 0.0
        return max(0.0, due / 1000 - wall_clock.now())

    def past_failures(self, record: Record) -> PastFailures:
        """Return how a record has failed before; not at all if it is not from a retry topic."""
        if record.topic not in self.delays:
            return PastFailures()
        return PastFailures.of(record, wall_clock.now())

    def original(self, record: Record) -> Record:
        """Return a record of a retry topic as it was in its own topic; others are unchanged."""
        if record.topic not in self.delays:
            return record
        found = original_record(record)
        found.retries = self._passed(record)
        return found

    def handler_of_originals(
        self, handler: Callable[[Any], Awaitable[object]], *, batches: bool
    ) -> Callable[[Any], Awaitable[object]]:
        """Return a handler that passes records on as they were in their own topics."""
        if not self.names:
            return handler

        # Not coroutine functions: one coroutine for each record is enough.
        def handle(record: Record) -> Awaitable[object]:
            return handler(self.original(record))

        def handle_batch(records: Iterable[Record]) -> Awaitable[object]:
            return handler([self.original(record) for record in records])

        return handle_batch if batches else handle

    def _passed(self, record: Record) -> int:
        """Return the number of retry topics that a record has passed."""
        if record.topic not in self.delays:
            return 0
        return number_header(record, "x-retries") or self.names.index(record.topic) + 1


def check_retry_topics(
    given: object, *, group: str, reads: Callable[[str], bool], dead_letter: str | None
) -> RetryTopics:
    """Return the retry topics of `run`, checked."""
    hint = 'use for example retry_topics=["orders.retry.1m", "orders.retry.10m"]'
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"retry_topics must be a list, not {type(given).__name__}: {hint}")
    topics: dict[str, RetryTopic] = {}
    checked = []
    for each in given:
        if not isinstance(each, (str, RetryTopic)):
            raise TypeError(
                f"retry_topics contains an object of type {type(each).__name__}: {hint}"
            )
        topic = RetryTopic.from_name(each) if isinstance(each, str) else each
        if topics.setdefault(topic.name, topic) != topic:
            raise ConfigurationError(
                f"the retry topic {topic.name!r} has the delays {topics[topic.name].delay:g} and "
                f"{topic.delay:g} s: its records wait behind each other, so use one topic for "
                f"each delay"
            )
        checked.append(topic)
    for name in topics:
        if reads(name):
            raise ConfigurationError(
                f"{name!r} is both a topic of this consumer and a retry topic: leave it out of the "
                f"topics and of what pattern= matches; run() adds the retry topics"
            )
        if name == dead_letter:
            raise ConfigurationError(
                f"{name!r} is both the dead-letter topic and a retry topic: its records would be "
                f"handled again and again"
            )
    return RetryTopics(checked, group)
