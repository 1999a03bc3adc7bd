"""Writes failed records to the dead-letter topic or a retry topic, with the reason in headers."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resilient_io.deadlines import deadline
from resilient_io.errors import DependencyUnavailable
from resilient_io.retry import Backoff
from resilient_io.text import clean_text

from .headers import ADDED_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..producer import ResilientKafkaProducer
    from ..record import Record
    from .options import DeadLetter
    from .scheduler import RetryState

_log = logging.getLogger("resilient_io.kafka")

BACKOFF = 0.1
"""Seconds before a record that could not be written is written again, and before a retry that does
not count as an attempt. It doubles each time."""

BACKOFF_CAP = 10.0

_MESSAGE_LIMIT = 1_000

_WRITE_TIMEOUT = 5.0
"""Seconds for one write; then it is retried later, because it occupies a handler's place."""

CLOSE_TIMEOUT = 2.0
"""Seconds to close the producer that this module created."""


@dataclass(slots=True, eq=False)
class _TopicState:
    """Whether records can be written to a topic."""

    backoff: Backoff = field(default_factory=lambda: Backoff(BACKOFF, BACKOFF_CAP))
    writing: int = 0
    retry_at: float = 0.0


class FailedRecordWriter:
    """Writes failed records, through the application's producer or one that it creates."""

    def __init__(
        self,
        dead_letter: DeadLetter | None,
        make_producer: Callable[[], ResilientKafkaProducer],
    ) -> None:
        self._dead_letter_topic = "..." if dead_letter is None else dead_letter.topic
        self._given_producer = None if dead_letter is None else dead_letter.producer
        self._make_producer = make_producer
        self._own_producer: ResilientKafkaProducer | None = None
        self._topics: dict[str, _TopicState] = {}
        self._advised = False

    def busy_retrying(self, topic: str) -> bool:
        """Return whether writing to a topic fails, and another record tests whether it works."""
        # Otherwise all failed records would wait for that, each in the place of a handler.
        state = self._topics.get(topic)
        if state is None or not state.backoff.failures:
            return False
        return state.writing > 0 or asyncio.get_running_loop().time() < state.retry_at

    async def write(self, topic: str, record: Record, headers: list[tuple[str, bytes]]) -> None:
        """Write a record, again after an unknown outcome, and wait until it is stored."""
        producer = self._given_producer or self._own_producer
        if producer is None:
            producer = self._own_producer = self._make_producer()
        state = self._topics.setdefault(topic, _TopicState())
        state.writing += 1
        try:
            with deadline(_WRITE_TIMEOUT):
                await producer.send_and_wait(
                    topic, value=record.raw_value, key=record.raw_key, headers=headers
                )
        except Exception as error:
            state.retry_at = asyncio.get_running_loop().time() + state.backoff.next()
            if producer is self._own_producer:
                self._advise(topic, error)
            raise
        finally:
            state.writing -= 1
        state.backoff.reset()

    async def aclose(self, timeout: float) -> None:
        """Close the producer that this object created, if there is one."""
        producer, self._own_producer = self._own_producer, None
        if producer is not None:
            await producer.aclose(timeout)

    def _advise(self, topic: str, error: Exception) -> None:
        """Log once how to pass a producer: the default one may not suit this cluster."""
        if self._advised or isinstance(error, DependencyUnavailable):
            return
        self._advised = True
        _log.warning(
            "the producer that run() created could not write a failed record to %s (%s); retrying. "
            "If the cluster needs other options than aiokafka's defaults with idempotence, use "
            'DeadLetter(topic="%s", producer=ResilientKafkaProducer(..., '
            "enable_idempotence=False)), for example, or a larger max_request_size",
            topic,
            describe_failure(error),
            self._dead_letter_topic,
            extra={
                "event": "dead_letter_refused",
                "topic": topic,
                "error": type(error).__name__,
            },
        )


def failure_headers(record: Record, state: RetryState, now: float) -> list[tuple[str, bytes]]:
    """Return the headers of a failed record: its own, where it comes from, and why it failed."""
    # If the record is a dead letter itself, its headers about the failure are replaced, and those
    # about its origin are kept.
    origin = {
        "x-original-topic": record.topic.encode(),
        "x-original-partition": b"%d" % record.partition,
        "x-original-offset": b"%d" % record.offset,
        "x-original-timestamp": b"%d" % record.timestamp,
    }
    error, past = state.error, state.past
    failure = {
        "x-error-type": f"{type(error).__module__}.{type(error).__qualname__}".encode(),
        "x-error-message": _message_of(error, _MESSAGE_LIMIT).encode(errors="replace"),
        "x-attempts": b"%d" % (past.attempts + state.attempts),
        "x-first-failure-ago": f"{past.seconds + now - state.first_failure:.3f}".encode(),
        "x-last-failure-ago": f"{now - state.last_failure:.3f}".encode(),
    }
    if not_counted := past.not_counted + state.not_counted:
        failure["x-attempts-not-counted"] = b"%d" % not_counted
    if outcome_unknown := past.outcome_unknown + state.outcome_unknown:
        failure["x-outcome-unknown"] = b"%d" % outcome_unknown
    earlier_origin = {name: value for name, value in record.headers if name in origin}
    kept = [(name, value) for name, value in record.headers if name not in ADDED_HEADERS]
    return [*kept, *{**origin, **earlier_origin}.items(), *failure.items()]


def describe_failure(error: BaseException) -> str:
    """Return the type and the message of an exception, in one clean line, for the log."""
    name, message = type(error).__name__, _message_of(error)
    if message.startswith(name):
        return message
    return f"{name}: {message}" if message else name


def _message_of(error: BaseException, limit: int = 300) -> str:
    try:
        message = str(error)
    # The boundary to an exception class of the application: its __str__ may raise anything.
    except Exception as failure:  # noqa: BLE001
        message = f"(no message: str() raised {type(failure).__name__})"
    return clean_text(message, limit=limit)
