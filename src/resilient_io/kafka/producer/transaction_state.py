"""The transaction that is open, and whether records may be sent now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.errors import IllegalOperation

from ..errors import copy_with_note

if TYPE_CHECKING:
    from ..driver import ProducerDriver


@dataclass(slots=True, eq=False)
class OpenTransaction:
    """One transaction from its beginning to its end; without a driver it has not begun yet."""

    driver: ProducerDriver | None = None
    abort_reason: Exception | None = None  # first error of a record, or the loss of the driver
    ending: bool = False  # it is being committed or aborted, so it accepts no more records

    def raise_if_aborted(self) -> None:
        """Raise the error that the transaction is aborted for, if there is one."""
        if self.abort_reason is not None:
            raise self.aborted()

    def aborted(self) -> Exception:
        """Return a copy of the abort reason, for one caller."""
        assert self.abort_reason is not None  # noqa: S101 (callers check it)
        return copy_with_note(
            self.abort_reason,
            "the transaction is aborted because of this error: none of it becomes visible",
        )


class TransactionState:
    """Which transaction is open. Without a transactional id, records may always be sent."""

    def __init__(self, *, transactional: bool) -> None:
        self.transactional = transactional
        self.current: OpenTransaction | None = None
        self.sendable = not transactional  # whether batches may be passed to aiokafka

    def open(self, transaction: OpenTransaction) -> None:
        """Make a transaction the current one; records are sent once it has begun."""
        self.current = transaction

    def begun(self) -> None:
        """Allow records to be sent."""
        self.sendable = True

    def close(self) -> None:
        """Accept and send no more records until the next transaction."""
        self.current = None
        self.sendable = False

    def suspend(self) -> None:
        """Send nothing more, because the driver of the transaction ended."""
        self.sendable = False

    def abort(self, error: Exception) -> None:
        """Note that the current transaction has to be aborted; the first reason counts."""
        if self.current is not None and self.current.abort_reason is None:
            self.current.abort_reason = error

    def check(self) -> None:
        """Raise unless a record may be accepted now."""
        if self.transactional and (self.current is None or self.current.ending):
            raise IllegalOperation(
                "a producer with a transactional_id sends only in transactions: use "
                "`async with producer.transaction():`"
            )
        if self.current is not None:
            self.current.raise_if_aborted()
