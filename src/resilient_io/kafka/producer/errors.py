"""The errors of records that were not delivered: created, counted and logged here."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka.errors import KafkaError

from resilient_io.errors import Progress, ResilientIOError

from ..driver import DriverClosed
from ..errors import (
    KafkaClosed,
    KafkaDeadlineExceeded,
    KafkaOutcomeUnknown,
    KafkaOverloaded,
    KafkaUnavailable,
    copy_with_note,
    describe_driver_error,
    unavailable_because_of,
    without_secrets,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from resilient_io.health import Dependency

    from ..connect import KafkaTarget
    from ..supervisor import Supervisor
    from .transaction_state import TransactionState


_log = logging.getLogger("resilient_io.kafka")

_T = TypeVar("_T")

_LOG_INTERVAL = 30.0  # minimum seconds between two log records of failed deliveries


class DeliveryErrors:
    """Creates the errors of one producer, counts them, and writes one log record for many."""

    def __init__(
        self,
        *,
        target: KafkaTarget,
        health: Dependency,
        loop: asyncio.AbstractEventLoop,
        supervisor: Supervisor[Any],
        transaction: TransactionState,
    ) -> None:
        self.delivered = 0
        self.failed: dict[str, int] = {}
        self._target = target
        self._health = health
        self._loop = loop
        self._supervisor = supervisor
        self._transaction = transaction
        self._unlogged = 0
        self._logged_at = -_LOG_INTERVAL

    def fail(self, future: asyncio.Future[_T], error: Exception) -> None:
        """Fail the future of one record, unless it is done already."""
        if future.done():
            return
        future.set_exception(error)
        # Mark it as retrieved: futures that are never awaited would log one message each.
        future.exception()
        self.count_lost(error)

    def count_lost(self, error: Exception, records: int = 1) -> None:
        """Count records that had been accepted and failed."""
        self._transaction.abort(error)
        self.count(error, records)

    def count(self, error: Exception, records: int = 1) -> None:
        """Count records or calls that failed, and log them unless one was logged recently."""
        name = type(error).__name__
        self.failed[name] = self.failed.get(name, 0) + records
        self._unlogged += records
        now = self._loop.time()
        if now - self._logged_at < _LOG_INTERVAL or isinstance(error, KafkaClosed):
            return
        if isinstance(error, ResilientIOError):
            text = str(error)
        elif isinstance(error, KafkaError):
            text = describe_driver_error(error, secrets=self._target.secrets())
        else:  # a serializer's error may contain the record's data: only the report has it
            text = name
        _log.warning(
            "%s not delivered; last error: %s",
            "1 record was" if self._unlogged == 1 else f"{self._unlogged} records were",
            text,
            extra={
                "event": "not_delivered",
                "dependency": self._health.name,
                "count": self._unlogged,
                "error": name,
            },
        )
        self._unlogged = 0
        self._logged_at = now

    def describe(self, error: BaseException) -> str:
        """Return what aiokafka raised, in one line and without secrets."""
        if isinstance(error, DriverClosed):
            return "the aiokafka producer was closed before an answer came"
        return f"aiokafka failed: {describe_driver_error(error, secrets=self._target.secrets())}"

    def rejections(self, error: Exception) -> Callable[[float, str], Exception]:
        """Return a function that copies a broker's rejection, so that each caller has its own."""
        clean = without_secrets(error, self._target.secrets())
        note = "the broker rejected it permanently: sending it again does not help"
        return lambda _began, _operation: copy_with_note(clean, note)

    def cause(self, error: BaseException | None) -> BaseException | None:
        """Return an error of aiokafka that may be the cause of one that callers get."""
        if isinstance(error, Exception):
            return without_secrets(error, self._target.secrets())
        return error

    def too_late(self, began: float, operation: str = "send") -> KafkaDeadlineExceeded:
        """Return the error of a record that was not sent in time."""
        why = "" if self._health.available else f", and Kafka is down ({self._why_down()})"
        error = KafkaDeadlineExceeded(f"not sent in time{why}", **self._context(began, operation))
        reason = self._supervisor.permanent_error
        if reason is not None:
            why = describe_driver_error(reason, secrets=self._target.secrets())
            error.add_note(f"no aiokafka producer can be used because of this error: {why}")
        return error

    def down(self, began: float, operation: str = "send") -> KafkaUnavailable:
        """Return the error of a call that is not tried because Kafka is down."""
        kind = unavailable_because_of(self._health.cause)
        return kind(f"Kafka is down ({self._why_down()})", **self._context(began, operation))

    def unavailable(self, began: float, why: str, operation: str = "send") -> KafkaUnavailable:
        """Return the error of a record that was not written, and why."""
        return KafkaUnavailable(why, **self._context(began, operation))

    def overloaded(self, began: float, limit: int, operation: str = "send") -> KafkaOverloaded:
        """Return the error of a call that found no room in buffer memory in time."""
        return KafkaOverloaded(
            f"{limit} bytes of records are waiting already: await the futures of earlier sends, "
            f"or raise DeliverySettings(buffer_bytes=...)",
            **self._context(began, operation),
        )

    def closed(self, began: float | None = None, operation: str = "send") -> KafkaClosed:
        """Return the error of a record that was not sent, or of a call after `aclose()`."""
        return KafkaClosed(
            "the producer is closed: create a new ResilientKafkaProducer"
            if began is None
            else "the producer was closed before the record was sent",
            **self._context(self._loop.time() if began is None else began, operation),
        )

    def unknown(self, began: float, why: str, operation: str = "send") -> KafkaOutcomeUnknown:
        """Return the error of a record that was sent and may have been written."""
        return KafkaOutcomeUnknown(
            why,
            attempts=1,
            progress=Progress.MAYBE_APPLIED,
            **self._context(began, operation),
        )

    def refused(self, began: float, why: str, operation: str = "send") -> KafkaUnavailable:
        """Return the error of a record that a broker did not write, but may write another time."""
        return KafkaUnavailable(
            why, attempts=1, progress=Progress.REFUSED, **self._context(began, operation)
        )

    def flush_timed_out(self, began: float) -> KafkaDeadlineExceeded:
        """Return the error of a `flush()` whose time ended first; the records are still sent."""
        return KafkaDeadlineExceeded(
            "some records have no outcome yet; they are still being delivered",
            **self._context(began, "flush"),
        )

    def _context(self, began: float, operation: str) -> dict[str, Any]:
        return {
            "dependency": self._health.name,
            "operation": operation,
            "elapsed": self._loop.time() - began,
        }

    def _why_down(self) -> str:
        cause = self._health.cause
        parts = [cause.value if cause is not None else "", self._health.detail]
        return ": ".join(part for part in parts if part) or "no answer"
