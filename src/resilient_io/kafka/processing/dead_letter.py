"""Writes dead letters: records that could not be handled, with their origin and the error."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from resilient_io.deadlines import deadline
from resilient_io.errors import DependencyUnavailable
from resilient_io.retry import Backoff
from resilient_io.text import clean_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..producer import ResilientKafkaProducer
    from ..record import Record
    from .options import DeadLetter
    from .scheduler import RetryState

_log = logging.getLogger("resilient_io.kafka")

_MESSAGE_LIMIT = 1_000
_BACKOFF = 0.1
_BACKOFF_CAP = 10.0
_WRITE_TIMEOUT = 5.0
"""Seconds for one write; then it is retried later, because it occupies a handler's place."""

CLOSE_TIMEOUT = 2.0
"""Seconds to close the producer that this module created."""


class DeadLetterWriter:
    """Writes dead letters, through the application's producer or one that it creates."""

    def __init__(
        self, options: DeadLetter, make_producer: Callable[[], ResilientKafkaProducer]
    ) -> None:
        self._topic = options.topic
        self._given_producer = options.producer
        self._make_producer = make_producer
        self._own_producer: ResilientKafkaProducer | None = None
        self._advised = False
        self._writing = 0
        self._backoff = Backoff(_BACKOFF, _BACKOFF_CAP)
        self._retry_at = 0.0

    @property
    def busy_retrying(self) -> bool:
        """Whether writing fails, and another record is testing whether it works again."""
        # Otherwise all failed records would wait for that, each in the place of a handler.
        now = asyncio.get_running_loop().time()
        return self._backoff.failures > 0 and (self._writing > 0 or now < self._retry_at)

    async def write(self, record: Record, state: RetryState) -> None:
        """Write a dead letter, again after an unknown outcome, and wait until it is stored."""
        producer = self._given_producer or self._own_producer
        if producer is None:
            producer = self._own_producer = self._make_producer()
        loop = asyncio.get_running_loop()
        self._writing += 1
        try:
            with deadline(_WRITE_TIMEOUT):
                await producer.send_and_wait(
                    self._topic,
                    value=record.raw_value,
                    key=record.raw_key,
                    headers=dead_letter_headers(record, state, loop.time()),
                )
        except Exception as error:
            self._retry_at = loop.time() + self._backoff.next()
            if producer is self._own_producer:
                self._advise(error)
            raise
        finally:
            self._writing -= 1
        self._backoff.reset()

    async def aclose(self, timeout: float) -> None:
        """Close the producer that this object created, if there is one."""
        producer, self._own_producer = self._own_producer, None
        if producer is not None:
            await producer.aclose(timeout)

    def _advise(self, error: Exception) -> None:
        """Log once how to pass a producer: the default one may not suit this cluster."""
        if self._advised or isinstance(error, DependencyUnavailable):
            return
        self._advised = True
        _log.warning(
            "the producer that run() created could not write a dead letter to %s (%s); retrying. "
            "If the cluster needs other options than aiokafka's defaults with idempotence, use "
            'DeadLetter(topic="%s", producer=ResilientKafkaProducer(..., '
            "enable_idempotence=False)), for example, or a larger max_request_size",
            self._topic,
            describe_failure(error),
            self._topic,
            extra={
                "event": "dead_letter_refused",
                "topic": self._topic,
                "error": type(error).__name__,
            },
        )


def dead_letter_headers(record: Record, state: RetryState, now: float) -> list[tuple[str, bytes]]:
    """Return the headers of a record's dead letter."""
    # If the record is a dead letter itself, its headers about the failure are replaced, and those
    # about its origin are kept.
    origin = {
        "x-original-topic": record.topic.encode(),
        "x-original-partition": b"%d" % record.partition,
        "x-original-offset": b"%d" % record.offset,
        "x-original-timestamp": b"%d" % record.timestamp,
    }
    error = state.error
    failure = {
        "x-error-type": f"{type(error).__module__}.{type(error).__qualname__}".encode(),
        "x-error-message": _message_of(error, _MESSAGE_LIMIT).encode(errors="replace"),
        "x-attempts": b"%d" % state.attempts,
        "x-first-failure-ago": f"{now - state.first_failure:.3f}".encode(),
        "x-last-failure-ago": f"{now - state.last_failure:.3f}".encode(),
    }
    if state.not_counted:
        failure["x-attempts-not-counted"] = b"%d" % state.not_counted
    if state.outcome_unknown:
        failure["x-outcome-unknown"] = b"%d" % state.outcome_unknown
    earlier_origin = {name: value for name, value in record.headers if name in origin}
    kept = [
        (name, value)
        for name, value in record.headers
        if name not in origin and name not in failure
    ]
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
