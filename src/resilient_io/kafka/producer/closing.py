"""Ends what a producer still holds, and says what that was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .partition_queue import Parcel, Slice
from .reports import DeliveryFailure, progress_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .buffer import Room
    from .errors import Verdicts
    from .partition_queue import Cargo, Item, Line, Record

__all__ = ["drop_travelling", "drop_waiting"]

_UNKNOWN = "the producer was closed before an answer came"


def drop_travelling(lines: list[Line], verdicts: Verdicts) -> list[DeliveryFailure]:
    """Tell the callers of every batch that was handed over that nobody knows."""
    found: list[DeliveryFailure] = []
    for line in lines:
        if line.cargo is not None and not line.cargo.told:
            found += _drop_cargo(line, line.cargo, verdicts)
    return found


def _drop_cargo(line: Line, cargo: Cargo, verdicts: Verdicts) -> list[DeliveryFailure]:
    found: list[DeliveryFailure] = []
    for entry in cargo.entries:
        if isinstance(entry, Slice):
            if not entry.told:
                error = verdicts.unknown(entry.parcel.sent, _UNKNOWN, "send_many")
                verdicts.lost(error, entry.count)
                items = entry.parcel.items[entry.first : entry.last]
                found += [_failure(line, item, error) for item in items]
                entry.fail(line.tp, error)
        elif not entry[0].done():
            error = verdicts.unknown(entry[7], _UNKNOWN)
            found.append(_failure(line, _item(entry), error))
            verdicts.settle(entry[0], error)
    cargo.told = True
    return found


def drop_waiting(
    lines: list[Line],
    verdicts: Verdicts,
    room: Room,
    error_for: Callable[[float, str], Exception],
) -> list[DeliveryFailure]:
    """Fail every record that was not handed over; it is certainly not sent.

    Args:
        lines: Where they wait.
        verdicts: Counts.
        room: Gets their bytes back.
        error_for: Makes an error, from the time a record was sent and the call's name.
    """
    found: list[DeliveryFailure] = []
    for line in lines:
        for entry in line.records:
            if isinstance(entry, Parcel):
                rest = entry.items[entry.cursor :]
                entry.drop()
                if rest:
                    error = error_for(entry.sent, "send_many")
                    verdicts.lost(error, len(rest))
                    found += [_failure(line, item, error) for item in rest]
                    entry.shipment.fail(line.tp, rest, error)
            elif not entry[0].done():
                error = error_for(entry[7], "send")
                found.append(_failure(line, _item(entry), error))
                verdicts.settle(entry[0], error)
        line.position += len(line.records)
        line.records.clear()
        freed, line.waiting = line.waiting, 0
        if freed:
            room.release(freed)
    return found


def _item(record: Record) -> Item:
    _, key, value, headers, stamp, *_ = record
    return (-1, key, value, headers, stamp)


def _failure(line: Line, item: Item, error: Exception) -> DeliveryFailure:
    position, key, value, headers, stamp = item
    return DeliveryFailure(
        position=position,
        topic=line.topic,
        partition=line.partition,
        key=key,
        value=value,
        headers=headers,
        timestamp_ms=stamp,
        error=error,
        progress=progress_of(error),
    )
