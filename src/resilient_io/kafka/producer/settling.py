"""Tells the callers what became of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka.structs import RecordMetadata

from .parcel import Slice

if TYPE_CHECKING:
    from collections.abc import Callable

    from .line import Cargo, Line
    from .verdict import Verdicts

__all__ = ["confirm", "fail", "put_back"]

_UNKNOWN_TIME = -1


def confirm(cargo: Cargo, metadata: RecordMetadata | None, verdicts: Verdicts) -> None:
    """Tell the callers that a batch was written, and where.

    Args:
        cargo: The batch.
        metadata: What aiokafka says of it; None with acks=0. Then, and when the broker knew the
            batch already, its records have the offset -1.
        verdicts: Counts.
    """
    verdicts.delivered += cargo.count
    cargo.told = True
    line = cargo.line
    if metadata is None:
        metadata = RecordMetadata(line.topic, line.partition, line.tp, -1, -1, 0, None)
    topic, partition, tp, base, stamp, kind, start = metadata
    step = 1 if base >= 0 else 0
    fixed = None if stamp == _UNKNOWN_TIME else stamp  # the broker's, for all of them
    # `RecordMetadata(...)` would go through a function of Python's, for each record.
    new, made = tuple.__new__, RecordMetadata
    stamps = iter(cargo.stamps)
    offset = base
    for entry in cargo.entries:
        if not isinstance(entry, Slice):
            future = entry[0]
            own = next(stamps)
            if not future.done():
                when = own if fixed is None else fixed
                future.set_result(new(made, (topic, partition, tp, offset, when, kind, start)))
            offset += step
        else:
            entry.confirm(tp, offset)
            offset += step * entry.count


def fail(cargo: Cargo, verdicts: Verdicts, error_for: Callable[[float, str], Exception]) -> None:
    """Tell the callers that a batch failed.

    Args:
        cargo: The batch.
        verdicts: Counts.
        error_for: Makes the error of one record, from the time it was sent and the call's name.
    """
    cargo.told = True
    for entry in cargo.entries:
        if isinstance(entry, Slice):
            if not entry.told:
                error = error_for(entry.parcel.sent, "send_many")
                verdicts.lost(error, entry.count)
                entry.fail(cargo.line.tp, error)
        elif not entry[0].done():
            verdicts.settle(entry[0], error_for(entry[7], "send"))


def put_back(cargo: Cargo) -> int:
    """Put the records of a batch that certainly was not written back to the front of their line.

    Returns:
        The bytes of those that do not go back, because their time has ended.
    """
    line: Line = cargo.line
    freed = 0
    for entry in reversed(cargo.entries):
        if isinstance(entry, Slice):
            if entry.told:
                freed += entry.size
                continue
            parcel = entry.parcel
            parcel.cursor = entry.first
            parcel.left += entry.size
            if line.records and line.records[0] is parcel:
                continue
            line.records.appendleft(parcel)
        else:
            line.records.appendleft(entry)
        line.position -= 1
    line.waiting += cargo.size - freed
    cargo.told = True
    return freed
