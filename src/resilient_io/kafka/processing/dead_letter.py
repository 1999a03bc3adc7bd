"""Dead letters: what could not be handled, with where it came from and why."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from resilient_io.deadlines import deadline
from resilient_io.errors import ConfigurationError, DependencyUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_io.kafka.consumer.record import Record

    from .retries import Case

__all__ = ["CLOSING", "DeadLetterProducer", "DeadLetters", "headers_of", "told"]

_log = logging.getLogger("resilient_io.kafka")

_LONGEST_MESSAGE = 1_000
_SHORTEST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_LONGEST_LINE = 300
_LONGEST_WRITE = 5.0  # then it is tried again later: it must not keep a handler's place for long
CLOSING = 2.0
"""Seconds that a producer of our own gets to be closed in good order."""


class DeadLetterProducer(Protocol):
    """What is used of a `ResilientKafkaProducer`."""

    async def send_and_wait(  # noqa: PLR0917 - aiokafka's own signature
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] | None = None,
    ) -> object:
        """Write a record; returns when the brokers have it."""

    async def aclose(self, timeout: float | None = None) -> object:
        """Close it."""


class DeadLetters:
    """Writes dead letters, through a producer of the application or one of its own.

    Args:
        topic: Where to.
        producer: The application's; it is not closed.
        make: Makes one of our own when the first dead letter is written.
    """

    def __init__(
        self,
        topic: str,
        *,
        producer: DeadLetterProducer | None,
        make: Callable[[], DeadLetterProducer],
    ) -> None:
        self._topic = topic
        self._producer = producer
        self._make = make
        self._own: DeadLetterProducer | None = None
        self._advised = False
        self._writing = 0
        self._failures = 0  # in a row
        self._again_at = 0.0

    @property
    def crowded(self) -> bool:
        """Whether it is another's turn to find out if dead letters can be written again.

        All would wait for the same, each in a place that a handler needs.
        """
        now = asyncio.get_running_loop().time()
        return self._failures > 0 and (self._writing > 0 or now < self._again_at)

    async def write(self, record: Record, case: Case) -> None:
        """Write one; returns when the brokers have it.

        After an unknown outcome it is written again, so a dead letter may be there twice.

        Raises:
            Exception: What the producer raised. It is perhaps, or not, written.
        """
        producer = self._producer or self._own
        if producer is None:
            producer = self._own = self._make()
        now = asyncio.get_running_loop().time()
        self._writing += 1
        try:
            with deadline(_LONGEST_WRITE):
                await producer.send_and_wait(
                    self._topic,
                    value=record.raw_value,
                    key=record.raw_key,
                    headers=headers_of(record, case, now),
                )
        except Exception as error:
            pause = min(_SHORTEST_PAUSE * 2.0 ** min(self._failures, 10), _LONGEST_PAUSE)
            self._failures += 1
            self._again_at = asyncio.get_running_loop().time() + pause
            if producer is self._own:
                self._advise(error)
            raise
        finally:
            self._writing -= 1
        self._failures = 0

    async def aclose(self, timeout: float) -> None:
        """Close the producer of our own, if there is one."""
        own, self._own = self._own, None
        if own is not None:
            await own.aclose(timeout)

    def _advise(self, error: Exception) -> None:
        """Say, once, how to choose the producer: ours may be none that this broker understands."""
        if self._advised or isinstance(error, DependencyUnavailable):
            return
        self._advised = True
        _log.warning(
            "the producer that run() made could not write a dead letter to %s (%s). It is tried "
            "again; if the cluster needs other options than aiokafka's defaults with idempotence, "
            'write DeadLetter(topic="%s", producer=ResilientKafkaProducer(..., '
            "enable_idempotence=False)), say, or with a larger max_request_size",
            self._topic,
            told(error),
            self._topic,
            extra={
                "event": "dead_letter_refused",
                "topic": self._topic,
                "error": type(error).__name__,
            },
        )


def headers_of(record: Record, case: Case, now: float) -> list[tuple[str, bytes]]:
    """Return the headers of a record's dead letter.

    Those of an earlier dead letter (the record came from a dead-letter topic itself) are replaced,
    except for its origin, which stays the first one.

    Args:
        record: The record.
        case: Its history.
        now: Loop time at which it is written.
    """
    origin = {
        "x-original-topic": record.topic.encode(),
        "x-original-partition": b"%d" % record.partition,
        "x-original-offset": b"%d" % record.offset,
        "x-original-timestamp": b"%d" % record.timestamp,
    }
    error = case.error
    history = {
        "x-error-type": f"{type(error).__module__}.{type(error).__qualname__}".encode(),
        "x-error-message": _message_of(error).encode(errors="replace"),
        "x-attempts": b"%d" % case.attempts,
        "x-first-failure-ago": f"{now - case.first_failure:.3f}".encode(),
        "x-last-failure-ago": f"{now - case.last_failure:.3f}".encode(),
    }
    if case.excused:
        history["x-attempts-excused"] = b"%d" % case.excused
    if case.unknown:
        history["x-outcome-unknown"] = b"%d" % case.unknown
    known = {name: value for name, value in record.headers if name in origin}
    kept = [
        (name, value)
        for name, value in record.headers
        if name not in origin and name not in history
    ]
    return [*kept, *{**origin, **known}.items(), *history.items()]


def told(error: BaseException) -> str:
    """Return an error's kind and words, for the log."""
    name, words = type(error).__name__, " ".join(_message_of(error).split())[:_LONGEST_LINE]
    return words if words.startswith(name) else f"{name}: {words}" if words else name


def _message_of(error: BaseException) -> str:
    """Return an error's words, which an application's class may refuse to give."""
    try:
        words = str(error)
    # The boundary to an error class of the application: its __str__ may raise anything.
    except Exception as failure:  # noqa: BLE001
        words = f"(no message: str() raised {type(failure).__name__})"
    return words[:_LONGEST_MESSAGE]


def check_producer(producer: object) -> None:
    """Refuse what cannot write dead letters.

    Raises:
        ConfigurationError: It has no `send_and_wait`.
    """
    if producer is not None and not callable(getattr(producer, "send_and_wait", None)):
        raise ConfigurationError(
            f"producer={producer!r} cannot write: write DeadLetter(topic=..., producer=producer) "
            f"with a ResilientKafkaProducer, or leave it out"
        )
