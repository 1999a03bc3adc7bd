"""What the callers are told of records that were not delivered, and how often."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, TypeVar

from aiokafka.errors import KafkaError

from resilient_io.errors import Progress, ResilientIOError

from ..errors import (
    KafkaClosed,
    KafkaDeadlineExceeded,
    KafkaOutcomeUnknown,
    KafkaOverloaded,
    KafkaUnavailable,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from resilient_io.health import Dependency


_log = logging.getLogger("resilient_io.kafka")

_T = TypeVar("_T")

_LOG_SPACING = 30.0
"""Least seconds between two log records of failed deliveries."""


class Verdicts:
    """Makes the errors of one producer, counts them, and logs one line for many.

    Attributes:
        delivered: Records that Kafka confirmed.
        ended: Records and calls that failed, by the error's name.
        on_failure: Told of each error that records ended in which had been taken in.
        refusal: Says why no instance can be in service until somebody changes something.
    """

    def __init__(self, health: Dependency, loop: asyncio.AbstractEventLoop) -> None:
        self.delivered = 0
        self.ended: dict[str, int] = {}
        self.on_failure: Callable[[Exception], None] | None = None
        self.refusal: Callable[[], Exception | None] = lambda: None
        self._health = health
        self._loop = loop
        self._unlogged = 0
        self._logged_at = -_LOG_SPACING

    def settle(self, future: asyncio.Future[_T], error: Exception) -> None:
        """End one record's future with an error, unless its caller has left."""
        if future.done():
            return
        future.set_exception(error)
        # Who never looks at the future shall not find a log record for each: there is ours.
        future.exception()
        self.lost(error)

    def lost(self, error: Exception, records: int = 1) -> None:
        """Count records that had been taken in and failed."""
        if self.on_failure is not None:
            self.on_failure(error)
        self.count(error, records)

    def count(self, error: Exception, records: int = 1) -> None:
        """Count records or calls that failed, and log it if that was not done lately."""
        name = type(error).__name__
        self.ended[name] = self.ended.get(name, 0) + records
        self._unlogged += records
        now = self._loop.time()
        if now - self._logged_at >= _LOG_SPACING and not isinstance(error, KafkaClosed):
            few = "1 record was" if self._unlogged == 1 else f"{self._unlogged} records were"
            # What a serializer raised may hold a record's data: that is for the report only.
            ours = isinstance(error, (ResilientIOError, KafkaError))
            _log.warning(
                "%s not delivered; the newest: %s",
                few,
                repr(error) if ours else name,
                extra={
                    "event": "not_delivered",
                    "dependency": self._health.name,
                    "count": self._unlogged,
                    "error": name,
                },
            )
            self._unlogged = 0
            self._logged_at = now

    def too_late(self, sent: float, operation: str = "send") -> KafkaDeadlineExceeded:
        """Say that the time ended before the record was handed over."""
        why = "" if self._health.available else f", and Kafka is down ({self._why()})"
        refusal = self.refusal()
        error = KafkaDeadlineExceeded(
            f"it was not handed over in time{why}",
            dependency=self._health.name,
            operation=operation,
            elapsed=self._loop.time() - sent,
        )
        if refusal is not None:
            error.add_note(f"no producer can be in service because of this: {refusal}")
        return error

    def still_travelling(self, began: float) -> KafkaDeadlineExceeded:
        """Say that some records have no outcome yet, and go on."""
        return KafkaDeadlineExceeded(
            "some records have no outcome yet, and go on",
            dependency=self._health.name,
            operation="flush",
            elapsed=self._loop.time() - began,
        )

    def unknown(self, sent: float, why: str, operation: str = "send") -> KafkaOutcomeUnknown:
        """Say that it was handed over, and that nothing proves what became of it."""
        return KafkaOutcomeUnknown(
            why,
            dependency=self._health.name,
            operation=operation,
            attempts=1,
            elapsed=self._loop.time() - sent,
            progress=Progress.MAYBE_APPLIED,
        )

    def down(self, sent: float, operation: str = "send") -> KafkaUnavailable:
        """Say that Kafka is down, so that nothing is tried."""
        return KafkaUnavailable(
            f"Kafka is down ({self._why()})",
            dependency=self._health.name,
            operation=operation,
            elapsed=self._loop.time() - sent,
        )

    def unavailable(self, sent: float, why: str, operation: str = "send") -> KafkaUnavailable:
        """Say that nothing was applied, and why."""
        return KafkaUnavailable(
            why,
            dependency=self._health.name,
            operation=operation,
            elapsed=self._loop.time() - sent,
        )

    def refused(self, sent: float, why: str, operation: str = "send") -> KafkaUnavailable:
        """Say that a broker answered that it did not write it, and may take it another time."""
        return KafkaUnavailable(
            why,
            dependency=self._health.name,
            operation=operation,
            attempts=1,
            elapsed=self._loop.time() - sent,
            progress=Progress.REFUSED,
        )

    def overloaded(self, sent: float, limit: int, operation: str = "send") -> KafkaOverloaded:
        """Say that there was no room in time."""
        return KafkaOverloaded(
            f"{limit} bytes of records are waiting already: wait for the futures of earlier "
            f"sends, or give DeliverySettings(buffer_bytes=...) more",
            dependency=self._health.name,
            operation=operation,
            elapsed=self._loop.time() - sent,
        )

    def closed(self, sent: float | None = None, operation: str = "send") -> KafkaClosed:
        """Say that the producer was closed before the record was handed over."""
        return KafkaClosed(
            "the producer was closed: make a new ResilientKafkaProducer"
            if sent is None
            else "the producer was closed before it was handed over",
            dependency=self._health.name,
            operation=operation,
            elapsed=0.0 if sent is None else self._loop.time() - sent,
        )

    def _why(self) -> str:
        cause = self._health.cause
        parts = [cause.value if cause is not None else "", self._health.detail]
        return ": ".join(part for part in parts if part) or "no answer"


def refusal(error: Exception) -> Exception:
    """Copy what the broker said of a batch, so that each caller has an error of its own."""
    return noted(error, "the broker refused it for good: sending it again does not help")


def noted(error: Exception, note: str) -> Exception:
    """Copy an error and add a note to the copy alone."""
    own = copy.copy(error)
    own.__notes__ = [*getattr(error, "__notes__", ()), note]
    own.__cause__ = error.__cause__
    return own
