"""From the driver's records to ours: in place, deserialised outside the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .record import Record, UnreadableRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from .offsets import PartitionProgress
    from .stats import Counters

__all__ = ["Deserializer", "Reader"]

if TYPE_CHECKING:
    Deserializer = Callable[[bytes], Any]

_TURN = 0.005
"""Seconds of deserialising after which the event loop gets its turn."""


class Reader:
    """Makes records of ours out of the driver's.

    The driver's own deserialising would raise for the same record for ever, and name none.

    Args:
        key: Reads keys; never asked for None.
        value: Reads values; never asked for None.
        counters: Counts what could not be read.
    """

    __slots__ = ("_counters", "_key", "_value")

    def __init__(
        self, key: Deserializer | None, value: Deserializer | None, counters: Counters
    ) -> None:
        self._key = key
        self._value = value
        self._counters = counters

    def adopt(self, records: list[Any], progress: PartitionProgress) -> list[Record]:
        """Make them ours, in place, undeserialised, and note that they left the driver."""
        for record in records:
            record.__class__ = Record
            record._progress = progress
        progress.delivered_all([record.offset for record in records])
        self._counters.records += len(records)
        return records

    def read(self, records: list[Record], now: Callable[[], float]) -> int:
        """Deserialise from the front; return how many are ready, which may be fewer than all.

        Args:
            records: Records that are ours; those that were read already are ready.
            now: Tells the time, in seconds.
        """
        if self._key is None and self._value is None:
            return len(records)
        until = now() + _TURN
        for count, record in enumerate(records, 1):
            if record._raw is None:
                self._read(record)
                if now() > until:
                    return count
        return len(records)

    def _read(self, record: Record) -> None:
        key, value = record.key, record.value
        record._raw = (key, value)
        try:
            if self._key is not None and key is not None:
                record.key = self._key(key)
            if self._value is not None and value is not None:
                record.value = self._value(value)
        except Exception as error:  # noqa: BLE001 - whatever the caller's function raises is the record's own fault
            record.error = error
            record.__class__ = UnreadableRecord
            self._counters.unreadable += 1
